"""Sampling flow maps: all that it needs, without the rest of the package, so that one file can be made of it."""
