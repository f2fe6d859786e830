"""Measurements side by side with the libraries that a reader would otherwise use."""
