"""Many students at once, in the background."""
