"""The serial engine as a Flower Grid, driven by Flower's own ServerApp pieces and a ClientApp of the test."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedvision.engines.serial import SerialEngine
from fedvision.flower.client_registry import FIRST_NODE
from tests.engines.hosts import AppRecipe


def counting_app() -> ClientApp:
    """Add the partition's number to the model; count this client's messages in its state."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        seen = int(context.state["seen"]["n"]) if "seen" in context.state else 0  # type: ignore[index, arg-type]
        context.state["seen"] = MetricRecord({"n": seen + 1})
        if partition == 3:
            raise ValueError("no luck")
        value = message.content.array_records["arrays"]["x"].numpy() + partition
        return Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({"x": Array(value)}),
                    "metrics": MetricRecord({"num-examples": 1, "seen": seen + 1}),
                }
            ),
            reply_to=message,
        )

    return app


@pytest.fixture
def grid() -> Iterator[Grid]:
    with SerialEngine().open(AppRecipe(app=counting_app, clients=4)) as opened:
        yield opened


def order(grid: Grid, *partitions: int) -> list[Message]:
    content = RecordDict({"arrays": ArrayRecord({"x": Array(np.zeros(1))})})
    return [Message(content, FIRST_NODE + partition, "train") for partition in partitions]


def test_replies_come_lazily_in_the_order_sent(grid: Grid) -> None:
    replies = iter(grid.send_and_receive(order(grid, 2, 0, 1)))
    assert next(replies).content.array_records["arrays"]["x"].numpy() == 2
    rest = [float(reply.content.array_records["arrays"]["x"].numpy()[0]) for reply in replies]
    assert rest == [0.0, 1.0]


def test_a_client_that_raises_is_an_error_reply_and_the_others_answer(grid: Grid) -> None:
    replies = list(grid.send_and_receive(order(grid, 3, 1)))
    assert [reply.has_error() for reply in replies] == [True, False]
    assert replies[0].error.reason == "no luck"
    assert replies[0].metadata.src_node_id == FIRST_NODE + 3


def test_a_clients_state_is_kept_between_messages(grid: Grid) -> None:
    for expected in (1, 2):
        (reply,) = grid.send_and_receive(order(grid, 1))
        assert reply.content.metric_records["metrics"]["seen"] == expected


def test_push_and_pull_match_replies_by_message(grid: Grid) -> None:
    first, second = grid.push_messages(order(grid, 1, 2))
    (reply,) = grid.pull_messages([second])
    assert reply.metadata.reply_to_message_id == second
    assert list(grid.pull_messages([second])) == []
    assert len(list(grid.pull_messages([first]))) == 1


def test_flowers_own_strategy_runs_on_it_unchanged(grid: Grid) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=4)
    result = strategy.start(
        grid, ArrayRecord({"x": Array(np.zeros(1))}), num_rounds=2, train_config=ConfigRecord()
    )
    # Clients 0, 1 and 2 add their numbers, client 3 fails: the mean grows by 1 a round.
    assert result.arrays["x"].numpy() == pytest.approx(2.0)
