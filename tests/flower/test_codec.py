"""The wire format: what goes in comes out, whatever carries it, and what does not fit is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedvision.data.image_counts import ImageCounts
from fedvision.flower import codec, internals, masked_codec
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.training.evaluate import Evaluation
from fedvision.training.loop import TrainResult
from fedvision.types import ClientConfig, State
from tests.replies import decoded

STATE: State = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([0.5])}


def message(content: RecordDict) -> Message:
    internals.identify(1)
    return Message(content, 7, "train")


def over_the_wire(content: RecordDict) -> RecordDict:
    """Return the content as it arrives from another machine: plain arrays instead of tensors."""
    for key, record in content.array_records.items():
        content[key] = ArrayRecord({n: Array(a.numpy()) for n, a in record.items()})
    return content


@pytest.mark.parametrize("carrier", [lambda content: content, over_the_wire], ids=["process", "wire"])
def test_a_task_comes_out_as_it_went_in(carrier: Callable[[RecordDict], RecordDict]) -> None:
    expected_config = ClientConfig(numbers={"mu": 0.5}, tensors={"control": STATE}, lr_factor=0.25)
    config = codec.encode_counts((3, 0, 2))
    config[codec.ROUND] = 4
    config[codec.ALGORITHM] = "scaffold"
    content = carrier(codec.encode_client_config(expected_config, codec.encode_state(STATE), config))
    request = codec.decode_task(message(content), client=9)
    assert (request.round, request.client, request.counts) == (4, 9, (3, 0, 2))
    assert (request.algorithm, request.client_config.numbers) == ("scaffold", {"mu": 0.5})
    assert codec.algorithm_name(content) == "scaffold"
    assert request.client_config.lr_factor == 0.25
    for found in (request.state, request.client_config.tensors["control"]):
        assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_an_instruction_leaves_the_shared_configuration_alone() -> None:
    config = ConfigRecord({codec.ROUND: 1})
    codec.encode_client_config(ClientConfig(numbers={"mu": 1.0}), ArrayRecord(), config)
    assert dict(config) == {codec.ROUND: 1}


def test_the_stock_fedprox_selects_the_proximal_client_half() -> None:
    config = ConfigRecord({codec.ROUND: 2, "proximal-mu": 0.25})
    request = codec.decode_task(
        message(RecordDict({"arrays": codec.encode_state(STATE), "config": config})), 0
    )
    assert (request.algorithm, request.client_config.numbers) == ("fedprox", {"mu": 0.25})


def update(**changes: Any) -> RecordDict:
    facts: dict[str, Any] = {"state": dict(STATE), "examples": 12, "loss": 0.7, "steps": 3, **changes}
    return codec.encode_update(TrainResult(**facts))


def test_an_update_comes_out_as_it_went_in() -> None:
    content = over_the_wire(update(tensors={"control": STATE}))
    found = decoded(content, client=3).update(position=1)
    assert (found.client, found.position, found.examples, found.loss) == (3, 1, 12, 0.7)
    assert torch.equal(found.state["w"], STATE["w"])
    assert torch.equal(found.tensors["control"]["b"], STATE["b"])


def test_a_plain_reply_has_one_array_record_and_one_metric_record() -> None:
    content = update()
    assert (list(content.array_records), list(content.metric_records)) == (["arrays"], ["metrics"])


def test_bfloat16_travels_as_float32_with_the_same_values() -> None:
    state = {"w": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}
    assert torch.equal(codec.decode_state(codec.encode_state(state))["w"], torch.tensor([1.5, -2.0]))


def test_counts_travel_whole() -> None:
    evaluation = Evaluation(stats=ConfusionCounts.from_matrix(np.array([[3, 1], [0, 2]])), loss_sum=4.5)
    found = codec.decode_evaluation(over_the_wire(codec.encode_evaluation(evaluation)))
    assert (found.stats.tables().tolist(), found.loss_sum, found.examples) == ([[[3, 1], [0, 2]]], 4.5, 6)


def test_a_roster_entry_comes_out_as_it_went_in() -> None:
    entry = codec.ClientInfo(client=4, image_counts=ImageCounts(images=5, counts=(0, 7)))
    assert codec.decode_client_info(codec.encode_client_info(entry)) == entry


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("client", math.inf),
        ("client", "4"),
        ("images", 10**400),
        ("images", 5.0),
        ("class-counts", "ab"),
        ("class-counts", [0.5, 7.0]),
        ("class-counts", [0, 1 << 62]),
        ("card", "[1]"),
        ("card", "{"),
    ],
)
def test_a_damaged_roster_entry_is_refused(key: str, value: Any) -> None:
    entry = codec.ClientInfo(client=4, image_counts=ImageCounts(images=5, counts=(0, 7)))
    content = codec.encode_client_info(entry)
    content["config"][key] = value
    with pytest.raises(ValueError, match=r"a client's|Expecting"):
        codec.decode_client_info(content)


@pytest.mark.parametrize("numbers", ["ab", [0.5], ["1"], [1 << 63], 3])
def test_damaged_masked_counts_are_refused(numbers: Any) -> None:
    with pytest.raises(ValueError, match="masked counts are no whole numbers of 64 bits"):
        masked_codec.decode_masked(RecordDict({"config": ConfigRecord({"masked-counts": numbers})}))
    least = RecordDict({"config": ConfigRecord({"masked-counts": [-(2**63), 2**63 - 1]})})
    assert masked_codec.decode_masked(least).tolist() == [-(2**63), 2**63 - 1]


@pytest.mark.parametrize("cards", ["3", "[3]", "{}", "["])
def test_damaged_cards_of_a_group_are_refused(cards: str) -> None:
    with pytest.raises(ValueError, match=r"cards are no list of tables|Expecting"):
        masked_codec.decode_group(RecordDict({"config": ConfigRecord({"cards": cards})}))


def test_size_counts_bytes_of_tensors() -> None:
    assert codec.size(update()) == 3 * 4


COUNTED = Evaluation(stats=ConfusionCounts.from_matrix(np.array([[3, 1], [0, 2]])), loss_sum=4.5)


def test_measurement_in_a_training_reply() -> None:
    """A measurement rides with an update and leaves a plain reply behind."""
    content = over_the_wire(update(measured=COUNTED, tensors={"control": STATE}))
    assert codec.size(content) == 2 * 3 * 4 + 4 * 8
    taken = codec.unload(content)
    assert taken is not None
    found = codec.decode_evaluation(taken)
    assert (found.stats.tables().tolist(), found.loss_sum) == ([[[3, 1], [0, 2]]], 4.5)
    assert codec.reported_examples(taken) == 6
    assert list(content) == list(update(tensors={"control": STATE}))
    assert codec.unload(content) is None


def test_a_folded_reply_keeps_its_measurement_and_counts_its_bytes() -> None:
    content = codec.encode_folded(12, 0.7, 44, 1.0, codec.encode_evaluation(COUNTED))
    assert codec.size(content) == 44
    assert list(content.array_records) == ["measured.counts"]
    assert codec.decode_evaluation(codec.unload(content) or content).loss_sum == 4.5


def test_a_task_requests_a_measurement_only_where_configured() -> None:
    for wanted in (True, False):
        config = ConfigRecord({codec.ROUND: 2} | ({codec.MEASURE_FIRST: True} if wanted else {}))
        content = codec.encode_client_config(ClientConfig(), codec.encode_state(STATE), config)
        assert codec.decode_task(message(content), 0).measure is wanted


def test_counts_travel_in_the_smaller_form() -> None:
    """Two pairs are four numbers: as many as a matrix of two classes has, and fewer than one of three."""
    for classes, sent in ((2, "counts"), (3, "counts-cells"), (20_000, "counts-cells")):
        labels, predicted = np.array([0, 1, 1]), np.array([classes - 1, 0, 0])
        counted = ConfusionCounts.from_predictions(labels, predicted, classes)
        content = codec.encode_evaluation(Evaluation(stats=counted, loss_sum=4.5))
        assert (list(content.array_records), codec.size(content)) == ([sent], 4 * 8)
        found = codec.decode_evaluation(over_the_wire(content))
        assert (found.loss_sum, found.examples, found.stats.shape) == (4.5, 3, (1, classes, classes))
        assert found.stats.cells.tolist() == [classes - 1, classes]
        assert found.stats.counts.tolist() == [1, 2]
