"""How agents train together by exchanging within a round: the methods that DIMAT is compared with, one to a file.

Same agent, same transport: each publishes, waits and gathers as the rounds of `merge` do. The config's `algorithm`
chooses one, by a built-in name, an entry point `dimat.algorithms`, `module:function` or `file.py:function`.
"""

from dimat.agent.algorithms.api import Algorithm, State
from dimat.agent.algorithms.registry import builtin_algorithms, find_algorithm, make_algorithm

__all__ = ["Algorithm", "State", "builtin_algorithms", "find_algorithm", "make_algorithm"]
