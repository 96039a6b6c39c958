"""Training the pooled forecaster, and measuring forecasters on students whose future is known."""
