"""What mastery is: events, scores, levels and the fold; pure, without I/O, clock or randomness."""
