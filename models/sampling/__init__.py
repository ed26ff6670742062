"""Drawing codes (paper, section 3.3): categorical draws, when which token is drawn, larger grids, inpainting."""
