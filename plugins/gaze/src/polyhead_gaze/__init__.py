"""Gaze scanpaths over objects: the Object-level Attention Transformer."""
