"""Who accessed whose data."""
