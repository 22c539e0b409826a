"""Sums of a stack at once: those of its clients folded one by one, and a bad client is named as ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.mean import MeanStrategy, Sums, WeightedTensors
from fedvision.algorithms.server_optimizers import FedAdam
from fedvision.engines.partial_aggregation import PartialAggregator
from fedvision.flower import codec, internals, partial_sum_codec
from fedvision.flower.client_registry import FIRST_NODE
from fedvision.flower.internals_message import answer
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.training.evaluate import Evaluation
from fedvision.training.vectorized.client_batch import ClientBatchResult
from fedvision.training.vectorized.local_steps import fit_many
from fedvision.types import ClientUpdate, State
from fedvision.updates.chain import UpdateChain
from fedvision.updates.float16 import Float16
from fedvision.updates.schema import UpdateSchema
from tests.training.client_cases import Cohort, network

BOUND = 1e6


class Trained:
    """A cohort that was trained at once, and its messages."""

    def __init__(self) -> None:
        cohort = Cohort(model=network(double=False))
        measured = Evaluation(stats=ConfusionCounts.from_matrix(np.eye(4, dtype=np.int64)), loss_sum=1.5)
        jobs = [replace(job, measured=measured) for job in cohort.jobs()]
        self.places, self.stacked = fit_many(
            cohort.model, jobs, loss=cohort.build_loss, settings=cohort.settings
        )
        self.state = cohort.requests()[0].state
        internals.identify(1)
        config_record = ConfigRecord({codec.ROUND: 2, codec.NORM_BOUND: BOUND})
        content = RecordDict({"arrays": codec.encode_state(self.state), "config": config_record})
        self.messages = [Message(content, FIRST_NODE + place, "train") for place in self.places]

    def one_by_one(self, strategy: MeanStrategy) -> tuple[list[Message], State]:
        """Return the replies, and the model that their sums conclude to."""
        aggregator = PartialAggregator(strategy)
        both = zip(self.messages, self.stacked.split(), strict=True)
        replies = [aggregator.add_update(m, answer(codec.encode_update(update), m)) for m, update in both]
        return replies, concluded(aggregator, strategy, self.state)

    def at_once(self, strategy: MeanStrategy) -> tuple[list[Message], State]:
        """Return the same, of the stack as a whole."""
        aggregator = PartialAggregator(strategy)
        replies = aggregator.add_stack(self.messages, self.stacked)
        return replies, concluded(aggregator, strategy, self.state)


def concluded(aggregator: PartialAggregator, strategy: MeanStrategy, state: State) -> State:
    sums, content = Sums(strategy, state), aggregator.close()
    assert content is not None
    partial_sum_codec.decode_sums(content, sums)
    return sums.finalize()


def facts(reply: Message) -> dict[str, Any]:
    if reply.has_error():
        return {"code": reply.error.code, "reason": reply.error.reason}
    content = reply.content
    assert codec.is_folded(content)
    measured = codec.unload(content)
    assert measured is not None
    return {
        "node": reply.metadata.src_node_id,
        "metrics": dict(content.metric_records[codec.METRICS]),
        "size": codec.size(content),
        "norm": pytest.approx(codec.folded_norm(content), rel=1e-6),
        "measured": codec.decode_evaluation(measured).stats.tables().tolist(),
    }


def same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam])
def test_a_stack_has_the_bits_and_the_replies_of_its_clients(strategy: type[MeanStrategy]) -> None:
    cohort = Trained()
    (mine, found), (his, wanted) = cohort.at_once(strategy()), cohort.one_by_one(strategy())
    assert same(found, wanted)
    assert [facts(reply) for reply in mine] == [facts(reply) for reply in his]


@pytest.mark.parametrize(("value", "problem"), [(float("nan"), "holds NaN"), (1e9, "above the bound")])
def test_a_client_that_cannot_be_averaged_is_left_out_by_name(value: float, problem: str) -> None:
    cohort = Trained()
    cohort.stacked.tensors["head.bias"][1] = value
    (mine, found), (his, wanted) = cohort.at_once(FedAvg()), cohort.one_by_one(FedAvg())
    assert same(found, wanted)
    assert [reply.has_error() for reply in mine] == [place == 1 for place in range(5)]
    assert facts(mine[1]) == facts(his[1])
    assert mine[1].error.code == internals.REPLY_REFUSED
    assert problem in (mine[1].error.reason or "")


def test_transformed_updates_are_decoded_before_they_are_added() -> None:
    """A worker's sum of float16 updates is that of the models which the server would decode of them."""
    cohort = Trained()
    updates = UpdateChain(UpdateSchema.of(cohort.state), [Float16()], list(cohort.state))
    aggregator, sums = PartialAggregator(FedAvg(), updates), Sums(FedAvg(), cohort.state)
    for message, update in zip(cohort.messages, cohort.stacked.split(), strict=True):
        sent, _ = updates.encode(update.state, cohort.state, {}, np.random.default_rng(0))
        encoded = codec.encode_update(replace(update, state=sent, measured=None))
        reply = aggregator.add_update(message, answer(encoded, message))
        assert codec.size(reply.content) == sum(tensor.nbytes for tensor in cohort.state.values()) // 2
        client = message.metadata.dst_node_id - FIRST_NODE
        state = {
            name: tensor + (update.state[name] - tensor).half().float()
            for name, tensor in cohort.state.items()
        }
        sums.add(ClientUpdate(client=client, position=0, examples=update.examples, state=state))
    assert same(concluded(aggregator, FedAvg(), cohort.state), sums.finalize())


def test_strategy_for_the_processor_only() -> None:
    """A strategy that works on the processor only gets one after the other."""

    class Shy(FedAvg):
        """Refuses views of a stack, as it would refuse tensors of another device."""

        def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
            if update.state["head.bias"].untyped_storage().nbytes() > 4 * 4:
                raise RuntimeError("expected all tensors to be on the same device")
            return super().contribute(state, update)

    cohort = Trained()
    (mine, found), (_, wanted) = cohort.at_once(Shy()), cohort.one_by_one(FedAvg())
    assert same(found, wanted)
    assert not any(reply.has_error() for reply in mine)


def test_sums_ride_on_a_reply_that_has_something_in_them() -> None:
    cohort = Trained()
    cohort.stacked.tensors["head.bias"][0] = torch.nan
    aggregator = PartialAggregator(FedAvg())

    def replies() -> Iterator[Message]:
        yield from aggregator.add_stack(cohort.messages, cohort.stacked)

    found = list(aggregator.with_sums(replies()))
    assert len(found) == 5
    assert found[0].has_error()
    assert [not r.has_error() and "sums" in r.content for r in found] == [False] * 4 + [True]
    assert aggregator.close() is None


def test_where_all_failed_there_are_no_sums() -> None:
    cohort = Trained()
    cohort.stacked.tensors["head.bias"].fill_(torch.nan)
    aggregator = PartialAggregator(FedAvg())
    found = list(aggregator.with_sums(iter(aggregator.add_stack(cohort.messages, cohort.stacked))))
    assert [reply.has_error() for reply in found] == [True] * 5


def test_clients_folded_as_a_stack() -> None:
    """Only clients without memory and tensors of their own are folded as a stack."""
    stacked: ClientBatchResult = Trained().stacked
    assert stacked.alone
    ends = [({"control": {"w": torch.ones(1)}}, {}), *stacked.ends[1:]]
    assert not replace(stacked, ends=ends).alone
