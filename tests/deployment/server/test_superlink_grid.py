"""The server's Grid over a SuperLink that is a table in memory: checks, lost replies, memory."""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Error, RecordDict

from fedvision.algorithms.base import RoundStrategy
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.robust import Median
from fedvision.deployment.server.superlink_grid import SuperLinkGrid, expected_replies
from fedvision.deployment.transport import internals_message_objects, message_format
from fedvision.deployment.transport.internals_message_objects import (
    NODE_UNAVAILABLE,
    IncomingMessage,
    LinkDown,
)
from fedvision.errors import ProtocolError, RecordError
from fedvision.flower import codec, internals
from fedvision.flower.query_codec import STATISTIC
from fedvision.flower.strategy import FlowerStrategy
from fedvision.server.round_state import RoundState
from fedvision.server.server_app import ServerPlan, build
from fedvision.types import State
from tests.deployment.server.superlink_links import (
    STATE,
    FakeLink,
    grid,
    messages_to,
    packed,
    plain,
    trained,
    update,
)
from tests.experiments import tiny
from tests.flower.test_strategy import Members


def test_no_message_of_a_round_before_the_last_one_is_settled(link: FakeLink) -> None:
    def before_sending() -> None:
        raise RecordError("the disk is full")

    with pytest.raises(RecordError, match="the disk is full"):
        list(grid(link, before_sending=before_sending).send_and_receive(messages_to([10])))
    assert link.pushed == []


def test_nodes_come_in_the_order_of_their_clients(link: FakeLink) -> None:
    assert list(grid(link).get_node_ids()) == [20, 30, 10]


def test_who_is_no_member_is_not_shown_to_strategies(link: FakeLink) -> None:
    made = grid(link)
    made._belongs = {10, 30}.__contains__
    assert list(made.get_node_ids()) == [30, 10]
    assert set(made.names()) == {10, 20, 30}


def test_replies_come_back_whole_and_messages_share_their_tensors(link: FakeLink) -> None:
    link.replies = {10: [update(1.0)], 20: [update(2.0)]}
    link.down = 2
    replies = list(grid(link).send_and_receive(messages_to([10, 20])))
    values = {
        r.metadata.src_node_id: float(r.content.array_records["arrays"]["w"].numpy()[0, 0]) for r in replies
    }
    assert values == {10: 1.0, 20: 2.0}
    first, second = (message.content for message in link.pushed)
    assert first.array_records["blob"] is second.array_records["blob"]
    heads = [str(content.config_records["packed"]["layout"]) for content in (first, second)]
    assert [message_format.MessageHeader.from_text(head).client for head in heads] == [2, 0]


def test_a_reply_that_does_not_fit_is_refused_and_never_fetched(link: FakeLink) -> None:
    link.replies = {10: [update(1.0, (300, 200))], 20: [update(2.0)]}
    bad, good = list(grid(link).send_and_receive(messages_to([10, 20])))
    assert bad.error.reason == "the tensor 'w' is float32 [300, 200], not float32 [3, 2]"
    assert bad.metadata.src_node_id == 10
    assert good.has_content()
    assert len(link.fetched) == 3, "two layouts and one piece"


def test_notes_of_a_client_are_delivered_once(link: FakeLink) -> None:
    record = RecordDict({"arrays": codec.encode_state(STATE)})
    layout = replace(message_format.describe(record), notes=("its process died", "it got a task twice"))
    reply = internals_message_objects.pack_message(
        layout, internals_message_objects.pack_tensors(message_format.TensorSource(record, layout), layout)
    )
    link.replies, link.late = {10: [reply]}, 2
    noticed: list[tuple[int, str]] = []
    made = grid(link)
    made._on_client_notice = lambda client, sentence: noticed.append((client, sentence))
    (back,) = made.send_and_receive(messages_to([10]))
    assert noticed == [(2, "its process died"), (2, "it got a task twice")]
    assert set(back.content) == {"arrays"}


def test_a_reply_that_is_still_on_its_way_is_waited_for(link: FakeLink) -> None:
    link.replies, link.late = {10: [update(1.0)]}, 3
    (reply,) = grid(link).send_and_receive(messages_to([10]))
    assert reply.has_content()


def test_a_client_that_went_offline_is_named(link: FakeLink) -> None:
    link.replies = {10: [Error(code=NODE_UNAVAILABLE, reason="Node Unavailable")]}
    (reply,) = grid(link).send_and_receive(messages_to([10]))
    assert (reply.metadata.src_node_id, reply.error.reason) == (10, "it went offline before it answered")


def test_a_reply_lost_by_the_superlink_is_requested_once_more(link: FakeLink) -> None:
    lost = Error(code=3, reason="Message Unavailable")
    link.replies = {10: [lost, update(4.0)], 20: [lost, lost]}
    replies = {r.metadata.src_node_id: r for r in grid(link).send_and_receive(messages_to([10, 20]))}
    assert replies[10].content.array_records["arrays"]["w"].numpy()[0, 0] == 4.0
    assert replies[20].has_error()
    assert len(link.pushed) == 4


def test_a_clients_own_error_is_passed_on(link: FakeLink) -> None:
    link.replies = {10: [Error(code=internals.CLIENT_RAISED, reason="client 2, training: no")]}
    (reply,) = grid(link).send_and_receive(messages_to([10]))
    assert reply.error.reason == "client 2, training: no"


def test_a_deadline_leaves_the_rest(link: FakeLink) -> None:
    link.replies, link.late = {10: [update(1.0)]}, 10**9
    assert list(grid(link).send_and_receive(messages_to([10]), timeout=0.2)) == []


def test_expected_replies_follow_the_model() -> None:
    expected = expected_replies(plain({"h": torch.zeros(4, dtype=torch.bfloat16)}), (1, 1000, 1000))
    assert [str(entry) for entry in expected["train"].groups["arrays"].tensors] == ["float32 [4]"]
    confusion = np.zeros((1000, 1000), np.int64)
    content = RecordDict({"counts": ArrayRecord([confusion])})
    expected["evaluate"].check(message_format.describe(content))


def test_training_replies_have_counts_only_where_requested() -> None:
    state = {"w": torch.zeros(4)}
    counts = {"measured.counts": ArrayRecord([np.zeros((1000, 1000), np.int64)])}
    layout = message_format.describe(RecordDict({"arrays": codec.encode_state(state), **counts}))
    expected_replies(plain(state), (1, 1000, 1000), measured=True)["train"].check(layout)
    for fewer in (
        expected_replies(plain(state), (1, 1000, 1000)),
        expected_replies(plain(state), (1, 990, 990), measured=True),
    ):
        with pytest.raises(ProtocolError, match="it would bring 8,000,000 bytes"):
            fewer["train"].check(layout)


class Silent:
    """A journal that keeps the states."""

    def __init__(self) -> None:
        self.states: list[State] = []

    def begin(self, *args: object) -> None:
        pass

    client_done = begin

    def round_done(self, record: object, seconds: object, state: State, *_: object) -> None:
        self.states.append(state)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class Watched(SuperLinkGrid):
    """Counts the replies that are still held when the next one is fetched."""

    def __post__(self) -> None:
        self.seen: list[weakref.ref[RecordDict]] = []
        self.most = 0

    def _fetch(self, incoming: IncomingMessage, kind: str) -> RecordDict:
        self.most = max(self.most, sum(reference() is not None for reference in self.seen))
        content = super()._fetch(incoming, kind)
        self.seen.append(weakref.ref(content))
        return content


@pytest.mark.parametrize("clients", [3, 12])
@pytest.mark.parametrize("strategy", [FedAvg(), Median()], ids=["summed", "listed"])
def test_the_server_holds_no_reply_when_it_fetches_the_next(
    link: FakeLink, clients: int, strategy: RoundStrategy
) -> None:
    """A round through all its layers; a strategy that needs all models at once holds them, and only they."""
    nodes = [10 * (number + 1) for number in range(clients)]
    link.here = {node: "" for node in nodes}
    link.replies = {node: [trained(float(node))] for node in nodes}
    numbers = {node: number for number, node in enumerate(nodes)}
    held = Watched(link, expected_replies(plain(STATE), (1, 2, 2)), numbers, pytest.fail)  # type: ignore[arg-type]
    held.__post__()
    journal = Silent()
    config, client_registry = tiny(rounds=1, evaluation={"holdout": 0.0}), Members(numbers)
    plan = ServerPlan(
        config=config,
        strategy=FlowerStrategy(strategy, seed=0),
        state=dict(STATE),
        journal=journal,
        client_registry=client_registry,
        rounds=RoundState(config.round),
    )
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    build(plan)(grid=held, context=context)
    assert journal.states[0]["w"][0, 0] == pytest.approx(np.mean(nodes))
    assert len(held.seen) == clients
    if isinstance(strategy, FedAvg):
        assert held.most == 0


def test_a_reply_is_let_go_at_the_superlink_and_no_round_waits_for_it(link: FakeLink) -> None:
    link.replies = {10: [update(1.0)], 20: [update(2.0)]}
    confirmed, may = [], threading.Event()

    def confirm(incoming: IncomingMessage) -> None:
        may.wait(60)
        confirmed.append(incoming.head.metadata.src_node_id)
        raise LinkDown("away")

    link.confirm = confirm  # type: ignore[method-assign]
    sender = grid(link)
    assert len(list(sender.send_and_receive(messages_to([10, 20])))) == 2
    assert confirmed == []
    may.set()
    sender._later.shutdown()
    assert sorted(confirmed) == [10, 20]


def test_what_does_not_fit_is_marked_as_refused(link: FakeLink) -> None:
    link.replies = {10: [update(1.0, (300, 200))]}
    (reply,) = grid(link).send_and_receive(messages_to([10]))
    assert reply.error.code == internals.REPLY_REFUSED


def test_allowed_records_of_a_reply(link: FakeLink) -> None:
    """A statistic may bring half a gigabyte, a measurement no model: the sender must not choose."""
    link.replies = {10: [update(1.0)], 20: [packed(RecordDict({"x": ArrayRecord([np.zeros(9, np.int64)])}))]}
    link.kinds = {10: "evaluate", 20: STATISTIC}
    good, bad = list(grid(link).send_and_receive(messages_to([10, 20])))
    assert good.content.array_records["arrays"]["w"].numpy()[0, 0] == 1.0
    assert "is missing" in bad.error.reason


def test_a_client_cannot_say_that_its_update_is_in_a_sum(link: FakeLink) -> None:
    folded = codec.encode_folded(4, 0.5, 0, 1.0, None)
    folded["arrays"] = codec.encode_state(STATE)
    link.replies = {10: [packed(folded)]}
    (reply,) = grid(link).send_and_receive(messages_to([10]))
    assert reply.error.code == internals.REPLY_REFUSED
    assert "in a sum" in reply.error.reason


def test_a_clients_own_error_is_one_line_of_some_length(link: FakeLink) -> None:
    link.replies = {10: [Error(code=internals.CLIENT_RAISED, reason="no\n\x1b[2J" + "x" * 100_000)]}
    (reply,) = grid(link).send_and_receive(messages_to([10]))
    assert reply.error.reason.startswith("no  [2Jxxx")
    assert reply.error.reason.isprintable()
    assert len(reply.error.reason) <= 1000


def test_a_refused_reply_is_let_go_at_the_superlink_too(link: FakeLink) -> None:
    """Else what one client sends in vain would fill the disk, round by round."""
    confirmed: list[int] = []
    link.confirm = lambda incoming: confirmed.append(incoming.head.metadata.src_node_id)  # type: ignore[method-assign]
    link.replies = {10: [update(1.0, (300, 200))]}
    sender = grid(link)
    list(sender.send_and_receive(messages_to([10])))
    sender._later.shutdown()
    assert confirmed == [10]


def test_a_message_outlives_the_longest_training(link: FakeLink) -> None:
    """Flower's own are forgotten after 12 hours: a reply that comes later would be dropped in silence."""
    link.replies = {10: [update(1.0)]}
    list(grid(link).send_and_receive(messages_to([10])))
    (sent,) = link.pushed
    assert sent.metadata.ttl >= 30 * 86_400
    assert internals_message_objects.reply_to(sent, RecordDict()).metadata.ttl == sent.metadata.ttl
