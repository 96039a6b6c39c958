"""Groups of students."""
