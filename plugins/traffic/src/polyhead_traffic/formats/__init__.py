"""Readers of the field's on-disk formats."""
