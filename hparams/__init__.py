"""Typed settings, presets by data set, and the command line made from them."""
