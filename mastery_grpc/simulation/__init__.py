"""A simulated class and the terminal that shows its mastery grow: demonstrations, load and tests use it."""
