"""Sums taken where the clients work: a worker keeps the sum of its clients' updates and sends that instead.

Traffic and the receiver's memory then grow with the workers and not with the clients. The sums are exact (see
``strategies.summation``), so nothing depends on which worker trained whom. It serves carriers that are a part
of this program; a client far away sends its own update.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, Message, RecordDict

from fedvision.flower import codec
from fedvision.flower.internals_message import answer
from fedvision.flower.screening import Screen
from fedvision.strategies.mean import MeanStrategy, Sums


class Folding:
    """The sums of one worker's clients over one round.

    Args:
        strategy: Says what an update contributes.
    """

    def __init__(self, strategy: MeanStrategy) -> None:
        self._strategy = strategy
        self._sums: Sums | None = None
        self._screen: Screen | None = None

    def fold(self, message: Message, reply: Message, client: int) -> Message:
        """Add a training reply's update to the sums and return the reply without its tensors.

        Raises:
            UpdateRefused: The update cannot be averaged with the others; nothing was added.
        """
        if self._sums is None or self._screen is None:
            state = codec.decode_state(codec.record(message.content, codec.ARRAYS, ArrayRecord))
            self._sums = Sums(self._strategy, state)
            self._screen = Screen(state, codec.norm_bound(message.content))
        norm = self._screen.check(reply.content, client)
        self._sums.add(codec.decode_update(reply.content, client, 0))
        return answer(codec.encode_folded(reply.content, norm), message)

    def close(self) -> RecordDict | None:
        """Return the sums since the last call and begin anew; None where nothing was added."""
        sums, self._sums, self._screen = self._sums, None, None
        return codec.encode_sums(sums) if sums is not None and sums.heard else None
