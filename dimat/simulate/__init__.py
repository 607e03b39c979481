"""Many agents in one process, over memory instead of a network."""

from dimat.simulate.simulate import simulate

__all__ = ["simulate"]
