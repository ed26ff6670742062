"""Codes and images of trained models.

`drawing`: codes and images from a prior. `latents`: the codes of a data set. `larger`: larger images. `inpainting`:
what is given, and a picture of what comes of it. `unmasking`: one sample on its way. `sample_files`: sampled images on
disk.
"""
