"""Stage 2 (paper, section 3.2): p(codes), absorbing diffusion and the autoregressive comparison."""
