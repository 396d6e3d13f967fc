"""Triton kernels for the operators of Polyhead."""
