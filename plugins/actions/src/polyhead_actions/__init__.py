"""Temporal action detection."""
