"""Start the processes of a run on this machine, watch them, and leave none behind."""
