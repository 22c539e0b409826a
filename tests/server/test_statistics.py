"""Statistics of clients: added exactly, masked ones by their group, odd ones refused by name."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedvision.aggregation.fixed_point import FixedPoint
from fedvision.flower import internals
from fedvision.flower.client_registry import FIRST_NODE, SimulatedClientRegistry
from fedvision.flower.query_codec import (
    StatisticRequest,
    decode_reply,
    decode_request,
    encode_sums,
    encode_withheld,
    numbers_to_mask,
    with_masked,
)
from fedvision.server.statistics import StatisticResult, query_statistic
from fedvision.types import Query

QUERY = Query(
    use="class-counts", args={"a": 1}, tensors={"mean": torch.tensor([0.5, 2**-40], dtype=torch.float64)}
)
REQUEST = StatisticRequest(query=QUERY, round=4, state={})


class Registry(SimulatedClientRegistry):
    """Members some of whom mask."""

    groups: Mapping[str, Any] = {"g": (0, 1, 2)}  # type: ignore[misc]


class Answers:
    """A grid that answers with contents by client; an error where there is none."""

    def __init__(self, contents: Mapping[int, RecordDict | None]) -> None:
        self.contents, self.requests = contents, list[StatisticRequest]()

    def get_node_ids(self) -> list[int]:
        return [FIRST_NODE + client for client in self.contents]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        for number, message in enumerate(messages):
            internals.set_message_id(message, str(number))
            self.requests.append(decode_request(message.content))
            content = self.contents[message.metadata.dst_node_id - FIRST_NODE]
            if content is None:
                yield Message(Error(code=1, reason="no images"), reply_to=message)
            else:
                yield Message(content, reply_to=message)


def sums(count: list[int], examples: int | None = None) -> RecordDict:
    numbers = FixedPoint(numbers={"count": np.array(count, np.int64)}, whole=frozenset({"count"}))
    return encode_sums(numbers, sum(count) if examples is None else examples)


def collect(
    contents: Mapping[int, RecordDict | None], bits: int = 64, *, optional: bool = False
) -> tuple[StatisticResult, Answers]:
    internals.identify(1)
    grid = Answers(contents)
    registry = Registry(clients=len(contents), counts=(1, 1))
    request = replace(REQUEST, query=replace(QUERY, bits=bits), optional=optional)
    return query_statistic(grid, registry, request, clients=list(contents)), grid  # type: ignore[arg-type]


def test_sums_are_added_and_failures_named() -> None:
    found, grid = collect({0: sums([3, 1]), 1: None, 2: sums([0, 5])})
    assert found.sums["count"].tolist() == [3.0, 6.0]
    assert (found.clients, found.examples) == ((0, 2), 9)
    assert [(item["client"], item["reason"]) for item in found.refused] == [(1, "no images")]
    for request in grid.requests:
        assert (request.query.use, request.query.args, request.round) == (QUERY.use, QUERY.args, 4)
        assert torch.equal(request.query.tensors["mean"], QUERY.tensors["mean"])
    assert found.facts() == {"clients": [0, 2], "examples": 9, "shapes": {"count": [2]}}


def test_sums_of_another_shape_than_most_are_refused() -> None:
    found, _ = collect({0: sums([1, 2, 3]), 1: sums([1, 1]), 2: sums([2, 2])})
    assert found.sums["count"].tolist() == [3.0, 3.0]
    assert [(item["client"], item["reason"][:28]) for item in found.refused] == [
        (0, "its sums have other names or")
    ]


def test_what_is_no_statistic_or_too_large_is_refused() -> None:
    too_many = FixedPoint(numbers={"count": np.array([2**62 + 1, 0], np.int64)}, whole=frozenset({"count"}))
    large = encode_sums(too_many, 1)
    found, _ = collect({0: RecordDict(), 1: large, 2: sums([1, 0])})
    assert found.sums["count"].tolist() == [1.0, 0.0]
    assert [item["reason"] for item in found.refused] == [
        "its reply lacks sums or the number of images",
        "the sum 'count' is above 2^62",
    ]


def test_sums_of_a_group_without_their_check_are_not_read_as_plain_ones() -> None:
    masked_one = sums([7, 7])
    masked_one["config"] = ConfigRecord({"group": "g"})
    found, _ = collect({0: masked_one, 1: sums([1, 0])})
    assert found.sums["count"].tolist() == [1.0, 0.0]
    assert [(item["client"], item["reason"]) for item in found.refused] == [
        (0, "its reply lacks sums or the number of images")
    ]


def test_a_check_of_more_than_64_bits_refuses_its_client_alone() -> None:
    odd = sums([7, 7])
    odd["config"] = ConfigRecord({"group": "g", "masked-examples": 2**63})
    found, _ = collect({0: odd, 1: sums([1, 0])})
    assert found.sums["count"].tolist() == [1.0, 0.0]
    assert [(item["client"], item["reason"]) for item in found.refused] == [
        (0, "its sums are no whole numbers of 64 bits")
    ]


def masked(rows: list[list[int]]) -> list[RecordDict]:
    """Replies of three clients whose masks cancel modulo 2^64."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-(2**63), 2**63, (2, 3), np.int64)
    noise = [*noise, -noise.sum(0)]
    bare = [sums(row) for row in rows]
    return [with_masked(one, numbers_to_mask(one) + mask, "g") for one, mask in zip(bare, noise, strict=True)]


def test_masked_sums_are_read_as_the_sum_of_their_group_alone() -> None:
    replies = masked([[3, 1], [0, 2], [5, 5]])
    found, _ = collect({**dict(enumerate(replies)), 3: sums([10, 0])})
    assert found.sums["count"].tolist() == [18.0, 8.0]
    assert (found.clients, found.examples, found.refused) == ((0, 1, 2, 3), 26, ())


def test_an_incomplete_group_gives_no_sum() -> None:
    replies = masked([[3, 1], [0, 2], [5, 5]])
    found, _ = collect({0: replies[0], 1: replies[1], 2: None, 3: sums([10, 0])})
    assert found.sums["count"].tolist() == [10.0, 0.0]
    assert found.clients == (3,)
    assert {item["client"] for item in found.refused} == {0, 1, 2}


def test_who_withholds_an_optional_statistic_is_not_refused() -> None:
    found, grid = collect({0: sums([3, 1]), 1: encode_withheld(), 2: None}, optional=True)
    assert found.sums["count"].tolist() == [3, 1]
    assert (found.clients, found.withheld) == ((0,), (1,))
    assert [(item["client"], item["reason"]) for item in found.refused] == [(2, "no images")]
    assert [request.optional for request in grid.requests] == [True] * 3
    found, grid = collect({0: sums([3, 1]), 1: encode_withheld()})
    assert found.withheld == ()
    assert [(item["client"], item["reason"]) for item in found.refused] == [
        (1, "it withholds sums that the experiment needs")
    ]
    assert not any(request.optional for request in grid.requests)


def test_a_group_with_a_client_that_withholds_is_withheld() -> None:
    """Unless another one of it failed: that one is why there is no sum."""
    replies = masked([[3, 1], [0, 2], [5, 5]])
    found, _ = collect({0: replies[0], 1: encode_withheld(), 2: replies[2], 3: sums([10, 0])}, optional=True)
    assert (found.clients, found.withheld, found.refused) == ((3,), (0, 1, 2), ())
    found, _ = collect({0: replies[0], 1: encode_withheld(), 2: None}, optional=True)
    assert (found.clients, found.withheld) == ((), (1,))
    assert {item["client"] for item in found.refused} == {0, 2}


def test_a_group_whose_masks_stay_is_refused() -> None:
    replies = masked([[3, 1], [0, 2], [5, 5]])
    replies[2] = with_masked(sums([5, 5]), numbers_to_mask(sums([5, 5])) + 12345, "g")
    found, _ = collect({**dict(enumerate(replies)), 3: sums([10, 0])})
    assert found.sums["count"].tolist() == [10.0, 0.0]
    assert {item["reason"] for item in found.refused} == {
        "the masked sums of its group give no sum: somebody masked otherwise"
    }


def narrow(count: list[int], bits: int, name: str = "count") -> RecordDict:
    numbers = FixedPoint(numbers={name: np.array(count, np.int64)}, whole=frozenset({name}))
    return encode_sums(numbers, 1, bits)


def test_numbers_of_few_bits_are_added_exactly_and_take_few_bytes() -> None:
    found, grid = collect({0: narrow([2**39 - 8, -5], 40), 1: narrow([7, 6 - 2**39], 40)}, bits=40)
    assert (found.sums["count"].tolist(), found.refused) == ([2**39 - 1, 1 - 2**39], ())
    assert [request.query.bits for request in grid.requests] == [40, 40]
    assert found.up == 2 * 2 * 5


def test_a_total_of_more_bits_than_requested_is_refused() -> None:
    found, _ = collect({0: narrow([2**15 - 1], 16), 1: narrow([1], 16)}, bits=16)
    assert found.sums["count"].tolist() == [2**15 - 1]
    assert [(item["client"], item["reason"]) for item in found.refused] == [
        (1, "the sum 'count' over all clients is more than 16 bits hold")
    ]
    with pytest.raises(ValueError, match="the sum 'count' is more than 16 bits hold, which the query allows"):
        narrow([2**15], 16)


def test_replies_in_another_number_of_bits_or_another_unit_are_refused() -> None:
    real = encode_sums(FixedPoint(numbers={"count": np.array([1, 0], np.int64)}), 1, 40)
    found, _ = collect(
        {0: narrow([1, 0], 40), 1: narrow([1, 0], 48), 2: sums([1, 0]), 3: real, 4: narrow([2, 0], 40)},
        bits=40,
    )
    assert found.sums["count"].tolist() == [3, 0]
    assert [(item["client"], item["reason"]) for item in found.refused] == [
        (1, "its sums are no whole numbers of 40 bits"),
        (2, "its sums are no whole numbers of 40 bits"),
        (3, "its sums have other names or shapes than those of other clients"),
    ]
    both = narrow([1, 0], 64)
    both["sums"] = both["whole-sums"]
    found, _ = collect({0: both, 1: sums([1, 0])})
    assert [item["reason"] for item in found.refused] == ["its reply has two sums of one name"]


def test_masked_numbers_of_few_bits_are_read_as_their_sum() -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(-(2**63), 2**63, (2, 3), np.int64)
    noise = np.stack([*noise, -noise.sum(0)])
    bare = [narrow(row, 24) for row in ([2**22, -9], [2**22 - 3, 4], [-1, 6 - 2**23])]
    replies = [
        with_masked(one, numbers_to_mask(one, 24) + mask, "g", 24)
        for one, mask in zip(bare, noise, strict=True)
    ]
    found, _ = collect(dict(enumerate(replies)), bits=24)
    assert (found.sums["count"].tolist(), found.examples) == ([2**23 - 4, 1 - 2**23], 3)
    assert found.up == 3 * 2 * 3


def test_no_reply_is_held_while_the_next_one_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of thousands of features are megabytes for each of many clients."""
    held: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def decode(content: RecordDict, bits: int) -> Any:
        alive.append(sum(one() is not None for one in held))
        reply = decode_reply(content, bits)
        held.append(weakref.ref(reply))
        return reply

    monkeypatch.setattr("fedvision.flower.query_codec.decode_reply", decode)
    found, _ = collect({client: sums([client, 1]) for client in range(20)})
    assert found.sums["count"].tolist() == [190, 20]
    assert max(alive) == 0


def test_of_two_shapes_as_frequent_that_of_the_lowest_client_counts() -> None:
    for order in ([0, 1, 2, 3], [1, 3, 0, 2]):
        contents = {client: sums([1, 0] if client % 2 else [1, 0, 0]) for client in order}
        found, _ = collect(contents)
        assert found.clients == (0, 2)
        assert sorted(item["client"] for item in found.refused) == [1, 3]
