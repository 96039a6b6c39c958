"""masteryctl: the mastery engine from a terminal."""
