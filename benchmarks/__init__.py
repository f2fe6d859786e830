"""Measurements side by side with what a reader would otherwise use: `python -m benchmarks --help`."""
