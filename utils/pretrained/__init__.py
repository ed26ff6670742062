"""Trained networks: built from settings, loaded from run folders or from published files of weights.

`load_autoencoder` and `load_prior` are the public Python interface.
"""

from utils.pretrained.loading import load_autoencoder, load_prior

__all__ = ["load_autoencoder", "load_prior"]
