"""Sampling: codes and images of trained models, the codes of a data set, larger images, inpainting."""
