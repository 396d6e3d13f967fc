"""Classify the rows of a table, with attention across its columns."""
