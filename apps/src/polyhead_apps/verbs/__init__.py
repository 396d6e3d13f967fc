"""The verbs of every app, one file each: plain functions that read from top to bottom."""
