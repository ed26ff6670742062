"""Experiments on trained models; each file is a script."""
