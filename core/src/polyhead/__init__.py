"""Polyhead: one attention core under many domains."""
