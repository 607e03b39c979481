"""Faults on purpose: a plan in the config, and the few places where a run asks it what shall go wrong now.

A plan says what breaks, at which agent, in which round. It is for tests and for users who want to see what their run
does when something dies. Without one nothing is wrapped, nothing is asked and nothing changes.
"""

from dimat.faults.plan import PHASES, At, Fault, check_faults
from dimat.faults.transport import FaultyTransport, planned
from dimat.faults.triggers import Killed, Marks, coordinator_hook, phase_hook

__all__ = [
    "PHASES",
    "At",
    "Fault",
    "FaultyTransport",
    "Killed",
    "Marks",
    "check_faults",
    "coordinator_hook",
    "phase_hook",
    "planned",
]
