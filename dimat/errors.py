"""Every error that dimat raises on purpose, and the exit code a command ends with when it meets one.

    DimatError                exit 1   something failed while running
    ├── UsageError            exit 2   wrong usage, config or input: nothing was started, nothing was written
    │   ├── ConfigError                an unknown key, a value out of range
    │   ├── PluginError                a name that nothing answers to
    │   ├── TopologyError              a graph or a mixing matrix that cannot carry a run
    │   ├── TaskError                  data or a task that cannot be trained on
    │   ├── SchemaError                two models that are not of one shape
    │   ├── NoCoordinator              nobody answers at the coordinator's address
    │   └── NotAllowed                 whoever asked is not entitled to it
    ├── AlignmentError                 permutation groups that do not verify
    └── TransportError                 a peer that did not answer as it should
        ├── PeerUnavailable            nobody listens there, or not in time
        │   └── Busy                       it is there, and has been asked too much
        ├── NotTrusted                 certificates are missing on one side, or prove somebody else
        ├── RoundGone                  the round asked for is no longer (or never was) held
        └── PayloadError               a wrong digest, a truncated stream, NaN or Inf, a size that was not announced
    Interrupted               exit 130 stopped by the user

A message says what was given, what was expected, what exists and what to do, in that order.
"""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TARGET_MISSED = 3
EXIT_INTERRUPTED = 130


class DimatError(Exception):
    """Something failed while running; `hint` tells the cure when there is one."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(DimatError):
    """What the user typed or wrote cannot be run; raised before anything starts."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A run's config has an unknown key or a value that is not allowed."""


class PluginError(UsageError):
    """A built-in name, entry point or `module:object` that does not exist."""


class TopologyError(UsageError):
    """A graph, a topology file or a mixing matrix that cannot carry a run."""


class TaskError(UsageError):
    """A task, its data file or its partition that cannot be trained on."""


class SchemaError(UsageError):
    """Two models differ; the message names the first tensor that does, and both shapes."""


class NoCoordinator(UsageError):
    """Nobody answered at the coordinator's address before the deadline."""


class NotAllowed(UsageError):
    """Who asks is not entitled to the answer: another identity than claimed, no neighbour, no admin."""


class AlignmentError(DimatError):
    """Permutation groups that do not leave the model's function unchanged, or a model that cannot be traced."""


class TransportError(DimatError):
    """A peer did not answer as it should; the round goes on without it."""


class PeerUnavailable(TransportError):
    """Nobody listens at the address, or the answer did not come before the deadline."""


class Busy(PeerUnavailable):
    """The peer is there and has been asked more than it answers at once; later it will answer again."""


class NotTrusted(TransportError):
    """One side speaks with certificates and the other without, or a certificate does not prove who was dialled."""


class RoundGone(TransportError):
    """The peer no longer holds the round that was asked for."""


class PayloadError(TransportError):
    """What arrived is not what was announced: digest, length, dtype, shape, NaN or Inf."""


class Interrupted(DimatError):
    """The user stopped the run; it can be continued with the same command."""

    exit_code = EXIT_INTERRUPTED
