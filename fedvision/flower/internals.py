"""Flower's non-public names for runs, messages and records (flwr 1.41 and 1.42), contract-tested.

What is leaned on, and why:

* ``TaskIdentity``: ``Message(...)`` reads run, node and task from these process-wide values, which a
  SuperLink would set. One run a process at a time.
* ``Run``: the type of ``Grid.run``.
* ``Message.__dict__["_metadata"]`` and in it ``__dict__["_message_id"]``: the id that a SuperLink would give;
  replies are matched by it.
* ``make_message``: a message of no run.
* ``Array``'s fields in ``__dict__``: ``TensorArray`` fills ``data`` only when its bytes are read.
* ``__dict__["_data"]`` of records: the values by name, filled without a check of each.
* ``ErrorCode.CLIENT_APP_RAISED_EXCEPTION``: the code of an error reply.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import (
    SUPERLINK_NODE_ID,
    ErrorCode,
    SType,
)
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    import torch

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord, RecordDict)
CLIENT_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
REPLY_REFUSED = 100
"""Code of an error reply that stands for a reply that could not be used; Flower has none above 8."""
DECLINED = 101
"""Code of an error reply of a client whose owner's policy does not allow the task."""
SERVER_NODE = SUPERLINK_NODE_ID
PARTITION = "partition-id"
"""Flower's key in ``node_config`` for the number of a simulated client."""


class TensorArray(Array):
    """An ``Array`` that holds a CPU tensor and serialises it only when ``data`` is read.

    Inside one process nothing ever reads it: 100 replies of 8 tensors cost 21 ms instead of 98.
    """

    # The name stands in the serialised object, by which the other side finds the class to build.
    __qualname__ = "Array"

    def __init__(self, tensor: torch.Tensor) -> None:
        self.__dict__.update(
            _tensor=tensor, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape)
        )
        self.__dict__["stype"] = SType.NUMPY

    def __getattr__(self, name: str) -> Any:
        if name != "data":
            raise AttributeError(name)
        data = Array.from_torch_tensor(self.tensor).data
        self.__dict__["data"] = data
        return data

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor itself; not to be changed in place."""
        held: torch.Tensor = self.__dict__["_tensor"]
        return held

    def numpy(self) -> Any:
        """Return the tensor's memory as a NumPy array, without a copy."""
        return self.tensor.numpy()


class DistantArray(Array):
    """An ``Array`` whose numbers lie in another process of this program, from which slices are fetched.

    Args:
        dtype: NumPy's name of the type.
        shape: [layers, ...].
        part: As ``aggregation.summation.Distant`` has it.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...], part: Callable[[int, int], torch.Tensor]) -> None:
        self.__dict__.update(dtype=dtype, shape=shape, part=part, stype=SType.NUMPY)


def filled(kind: type[R], values: Mapping[str, Any]) -> R:
    """Return a record of values whose types are known to be right: Flower would check every one anew."""
    record = kind()
    record.__dict__["_data"].update(values)
    return record


def identify(run_id: int) -> None:
    """Set Flower's run of this process, as a SuperLink would."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SERVER_NODE, 1


def empty_run(run_id: int) -> Run:
    """Return the facts of a run that no SuperLink knows."""
    return Run.create_empty(run_id)


def trial_message(content: RecordDict) -> Message:
    """Return a message of no run, to be cut into objects and read back."""
    now = time.time()
    head = Metadata(
        run_id=1,
        message_id="",
        src_node_id=1,
        dst_node_id=2,
        reply_to_message_id="",
        group_id="",
        created_at=now,
        ttl=60.0,
        message_type="train",
    )
    return make_message(metadata=head, content=content)


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would give it."""
    message.__dict__["_metadata"].__dict__["_message_id"] = message_id


def quiet() -> None:
    """Keep Flower's own log lines to warnings: progress and records are fedvision's."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
