"""Sums taken where the clients work: a worker keeps the sum of its clients' updates and sends that instead.

Traffic and the receiver's memory then grow with the workers and not with the clients. The sums are exact
(``aggregation.summation``), so nothing depends on which worker trained whom. It serves carriers that are a
part of this program; a client far away sends its own update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flwr.app import ArrayRecord, Error, Message, RecordDict

from fedvision.algorithms.mean import MeanStrategy, Sums
from fedvision.errors import InvalidUpdate
from fedvision.flower import codec, internals, partial_sum_codec
from fedvision.flower.client_registry import FIRST_NODE
from fedvision.flower.internals_message import answer
from fedvision.server.update_validator import UpdateValidator
from fedvision.training.vectorized.client_batch import ClientBatchResult
from fedvision.types import ClientUpdate
from fedvision.updates.chain import UpdateChain


class PartialAggregator:
    """The sums of one worker's clients over one round.

    Args:
        strategy: Defines what an update contributes.
        updates: Decodes what clients send; None where they send models as they are.
    """

    def __init__(self, strategy: MeanStrategy, updates: UpdateChain | None = None) -> None:
        self._strategy, self._updates = strategy, updates
        self._sums: Sums | None = None
        self._screen: UpdateValidator | None = None

    def add_update(self, message: Message, reply: Message) -> Message:
        """Add a training reply's update to the sums and return the reply without its tensors.

        An update that cannot be averaged with the others is not added: the reply is then the error that says
        why. What is an error or folded already is returned as it is.
        """
        if reply.has_error() or codec.is_folded(reply.content):
            return reply
        sums, validator = self._begun(message)
        client = message.metadata.dst_node_id - FIRST_NODE
        nbytes = codec.size(reply.content)
        try:
            found = validator.decode(reply, client)
        except InvalidUpdate as error:
            return Message(Error(code=internals.REPLY_REFUSED, reason=error.cause), reply_to=message)
        sums.add(found.update(0))
        assert found.norm is not None
        folded = codec.encode_folded(found.examples, found.loss, nbytes, found.norm, found.measured)
        return answer(folded, message)

    def add_stack(self, messages: Sequence[Message], stacked: ClientBatchResult) -> list[Message]:
        """Add the updates of a stack to the sums where they are, and return a reply to each message.

        The device sums them and finds which of them cannot be averaged; only those are looked at one by one.

        Args:
            messages: To the stack's clients, in its order.
            stacked: Clients whose models, as they are, are all that they send.
        """
        sums, validator = self._begun(messages[0])
        state = {name: tensor.to(stacked.sums.device) for name, tensor in validator.state.items()}
        norms = stacked.norms(state)
        good = [k for k, norm in enumerate(norms) if norm <= validator.bound and norm < float("inf")]
        try:
            if good:
                sums.add_all([_update(stacked, k) for k in good], state)
        except RuntimeError:  # a strategy that works on the CPU only, or no memory for the sums
            good = []
        nbytes = sum(tensor.nbytes for tensor in codec.sent(stacked.sent(0)).values())
        replies = {k: answer(_content(stacked, k, nbytes, norms[k]), messages[k]) for k in good}
        if len(good) < len(messages):
            updates = stacked.split()
            for k, message in enumerate(messages):
                if k not in replies:
                    replies[k] = self.add_update(message, answer(codec.encode_update(updates[k]), message))
        return [replies[k] for k in range(len(messages))]

    def with_sums(self, replies: Iterator[Message]) -> Iterator[Message]:
        """Yield folded replies, the first of them last, which carries the sums."""
        held: Message | None = None
        for reply in replies:
            if held is None and not reply.has_error() and codec.is_folded(reply.content):
                held = reply
            else:
                yield reply
        sums = self.close()
        if held is not None and sums is not None:
            for key, record in sums.items():
                held.content[key] = record
            yield held

    def close(self) -> RecordDict | None:
        """Return the sums since the last call and begin anew; None where nothing was added."""
        sums, self._sums, self._screen = self._sums, None, None
        return partial_sum_codec.encode_sums(sums) if sums is not None and sums.num_updates else None

    def _begun(self, message: Message) -> tuple[Sums, UpdateValidator]:
        if self._sums is None or self._screen is None:
            state = codec.decode_state(codec.record(message.content, codec.ARRAYS, ArrayRecord))
            self._sums = Sums(self._strategy, state)
            self._screen = UpdateValidator(state, codec.norm_bound(message.content), self._updates)
        return self._sums, self._screen


def _update(stacked: ClientBatchResult, place: int) -> ClientUpdate:
    return ClientUpdate(
        client=stacked.requests[place].client,
        position=0,
        examples=stacked.plan.sizes[place],
        state=codec.sent(stacked.sent(place)),
        loss=stacked.losses[place],
    )


def _content(stacked: ClientBatchResult, place: int, nbytes: int, norm: float) -> RecordDict:
    counted = stacked.who.jobs[place].measured
    measured = None if counted is None else codec.encode_evaluation(counted)
    nbytes += 0 if measured is None else codec.size(measured)
    return codec.encode_folded(stacked.plan.sizes[place], stacked.losses[place], nbytes, norm, measured)
