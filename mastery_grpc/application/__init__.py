"""Use cases: load, decide, save; and the ports that they need."""
