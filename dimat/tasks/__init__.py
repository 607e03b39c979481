"""Tasks: the model, the data of agent i of n, the loss and the evaluation. What the user brings to a run.

`base` holds the contract; `digits` and `arrays` are built in; `load_task` finds these and the user's own; `check` tells
the author of a task what is wrong with it. A task does not know that other agents exist.
"""

from dimat.tasks.base import PROBE_LIMIT, Task, label_histogram, model_inputs, preflight, probe_batches
from dimat.tasks.check import check_task
from dimat.tasks.findings import Finding
from dimat.tasks.load import load_task
from dimat.tasks.loader import TensorLoader
from dimat.tasks.partition import Partition, deal

__all__ = [
    "PROBE_LIMIT",
    "Finding",
    "Partition",
    "Task",
    "TensorLoader",
    "check_task",
    "deal",
    "label_histogram",
    "load_task",
    "model_inputs",
    "preflight",
    "probe_batches",
]
