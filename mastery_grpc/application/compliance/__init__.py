"""What is held about a student: told, erased, put back, and how long it is kept."""
