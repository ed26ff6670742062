"""Metrics of what was trained, and what they need.

`features`: networks that turn images into features. `feature_sources`: the two sets that a metric compares, and the
features of a data set, kept. `given_files`: codes and features that users give. `fid`: FID and KID. `prdc`: precision,
recall, density, coverage. `reconstructions`: images through an autoencoder and back. `likelihood`: bits per dimension;
`head`: training the log-sigma head, which they need. `neighbours`: the nearest training images.
"""
