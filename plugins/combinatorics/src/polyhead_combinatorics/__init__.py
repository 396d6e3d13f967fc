"""Pointer Networks for tours, hulls and triangulations."""
