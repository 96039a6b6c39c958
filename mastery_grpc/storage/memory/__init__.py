"""The ports in a process's memory: the fakes that tests may trust, held to the same contracts."""
