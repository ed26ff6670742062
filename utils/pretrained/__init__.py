"""Trained networks. `load_autoencoder` and `load_prior` are the public Python interface.

`building`: networks and data sets from settings, and the tables of quantisers and priors. `loading`: from run folders.
`trained_models`: the two of an experiment. `perceptual`: LPIPS. `weights`: published files, downloaded on demand.
"""

from utils.pretrained.loading import load_autoencoder, load_prior

__all__ = ["load_autoencoder", "load_prior"]
