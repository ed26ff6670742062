"""Networks, quantisers, losses, diffusion and samplers: mathematics only, no files, flags or devices."""
