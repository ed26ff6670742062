"""Stage 2 (paper, section 3.2): p(codes), by absorbing diffusion and, for comparison, autoregressively.

`transformer`: the network of both. `prior`: the interface of both. `diffusion`: masks and objectives. `bounds`: bounds
on −log p(codes). `absorbing`, `autoregressive`: the priors.
"""
