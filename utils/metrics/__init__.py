"""Metrics: features and their cache, FID, KID, PRDC, likelihood, reconstructions, nearest neighbours."""
