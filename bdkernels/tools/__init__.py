"""Measuring the kernels, and describing the machine."""
