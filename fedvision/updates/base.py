"""What a transform of updates is: one verb for the client, one for the server, and what travels between them.

An experiment's ``[[update]]`` tables are a chain. A client's update is the change of the model's parameters,
trained minus received, as named tensors in float32 or wider. The chain encodes it in order on the client and
decodes it in reverse on the server, so that strategies and checks see models whatever travelled.

Error feedback: what an encoding leaves out, a client may keep and add to its next update (Seide et al. 2014,
Interspeech; Karimireddy et al. 2019, "Error Feedback Fixes SignSGD", arXiv 1901.09847). A transform returns
that as its residual; the client's memory keeps it with the round, and goes back to an older one where the
server used no answer since.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from fedvision.types import State
from fedvision.updates.schema import UpdateSchema

if TYPE_CHECKING:
    import numpy as np


class UpdateTransform(ABC):
    """One link of the chain; only ``encode`` is abstract. An object serves all clients and keeps nothing."""

    keeps_residual: bool = False
    """Whether ``encode`` returns tensors that the client must get back with its next update."""
    linear: bool = False
    """Whether ``decode`` is linear, so that it may be applied to a sum of what clients send."""
    sum_only: bool = False
    """Whether the server can read only the sum over all clients of a round, as with pairwise masks.

    ``encode`` is then given the change times the client's training images. The server adds what clients send,
    whole numbers modulo 2^64, and calls ``decode`` with the sum. Such a transform must be the last one, those
    before it ``linear``, and the strategy may need no more of a round than the mean model: all of that is
    checked before a run. A round in which a client is missing leaves the model as it is."""

    def schema(self, schema: UpdateSchema) -> UpdateSchema:
        """Return what ``encode`` makes of tensors of a schema: by default the same names, types and shapes.

        It must not depend on the values: both sides compute it before anything is trained.

        Raises:
            ValueError: Such tensors cannot be encoded.
        """
        return schema

    @abstractmethod
    def encode(self, tensors: State, residual: State, rng: np.random.Generator) -> tuple[State, State]:
        """Return what travels instead of tensors, and what is kept.

        Args:
            tensors: The change of each parameter, or what the transform before made of it; on the CPU, not to
                be changed.
            residual: What this transform kept of the client's last update that the server used; empty first.
            rng: A stream of this client and round.

        Returns:
            Tensors by ``schema``, and the residual.

        Raises:
            ValueError: These values cannot be encoded; the client's round fails with this sentence.
        """

    def decode(self, tensors: State, schema: UpdateSchema) -> State:
        """Return tensors of the schema that was encoded from those that travelled: by default the same.

        Args:
            tensors: By ``self.schema(schema)``; the sender may have chosen any values.
            schema: Of what ``encode`` was given.

        Raises:
            ValueError: The values cannot be what ``encode`` makes; the update is refused.
        """
        return tensors
