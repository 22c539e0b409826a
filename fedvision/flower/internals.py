"""The only file that touches Flower's non-public names (flwr 1.41 and 1.42); each has a contract test.

What is leaned on, and why:

* ``TaskIdentity``: ``Message(...)`` reads run, node and task from these process-wide values, which a
  SuperLink would set. One run a process at a time.
* ``Run``: the type of ``Grid.run``.
* ``Metadata.__dict__["_message_id"]``: the id that a SuperLink would give; replies are matched by it.
* ``Array``'s fields in ``__dict__``: ``TensorArray`` fills ``data`` only when something asks for bytes.
* ``ErrorCode.CLIENT_APP_RAISED_EXCEPTION``: the code of an error reply.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from flwr.app import Array, Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode, SType
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    import torch

CLIENT_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
SERVER_NODE = SUPERLINK_NODE_ID
PARTITION = "partition-id"
"""Flower's key in ``node_config`` for the number of a simulated client."""


class TensorArray(Array):
    """An ``Array`` that holds a CPU tensor and serialises it only when ``data`` is asked for.

    Inside one process nothing ever asks: 100 replies of 8 tensors cost 21 ms instead of 98.
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


def identify(run_id: int) -> None:
    """Tell Flower which run this process carries, as a SuperLink would."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SERVER_NODE, 1


def empty_run(run_id: int) -> Run:
    """Return the facts of a run that no SuperLink knows."""
    return Run.create_empty(run_id)


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would give it."""
    message.metadata.__dict__["_message_id"] = message_id


def quiet() -> None:
    """Keep Flower's own log lines to warnings: progress and records are fedvision's."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
