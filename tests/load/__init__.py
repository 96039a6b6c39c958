"""Measurements under load. Nothing here asserts a time: machines differ, so ratios are reported."""
