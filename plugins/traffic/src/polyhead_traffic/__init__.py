"""Traffic forecasting."""
