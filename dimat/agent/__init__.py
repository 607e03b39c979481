"""One agent: its round, its checkpoints, its life as a process."""
