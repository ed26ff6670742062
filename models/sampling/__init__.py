"""Drawing codes (paper, section 3.3).

`categorical`: what is drawn where a token is due. `plans`: when which token is drawn. `rounds`: many plans at once.
`samplers`: the samplers by name. `larger`: grids larger than the prior's own. `inpainting`: pixels
that are drawn anew, and their codes.
"""
