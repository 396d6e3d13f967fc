"""Agents that learn from recorded episodes, with a state of constant size."""
