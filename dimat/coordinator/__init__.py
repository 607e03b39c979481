"""Who is in a run, how far it has come and when it ends. Sees numbers and sketches; never touches weights.

>>> from dimat.coordinator import Coordinator, Store
"""

from dimat.coordinator.convergence import Outcome
from dimat.coordinator.core import Coordinator
from dimat.coordinator.options import Options
from dimat.coordinator.store import Event, Store

__all__ = ["Coordinator", "Event", "Options", "Outcome", "Store"]
