"""Stage 1 (paper, section 3.1): images to codes and back, and the losses that train it.

`layers`: blocks of the networks. `networks`: encoder, generator, discriminator. `quantizers`: latents to ids.
`autoencoder`: the three that code an image. `augment`: DiffAugment. `vqgan`: the objectives. `gaussian`: the density of
pixels. `similarity`: PSNR and SSIM.
"""
