"""Rows beside counts: what is known of single images travels, is checked and is put in one order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedvision import simulate
from fedvision.flower import codec, masked_codec
from fedvision.flower.client_registry import SimulatedClientRegistry
from fedvision.server.scores import Scores
from fedvision.tasks.stats import MetricStats
from fedvision.training.evaluate import Evaluation
from tests.tasks import pixel_task
from tests.tasks.pixel_task import SIDE, Cases
from tests.tasks.test_own_task import HERE, pixels

FORM = Cases().stats_form(3)


def stats_of(right: list[int]) -> MetricStats:
    """Return the counts of images of which so many pixels of class 0 are right, the others taken for 1."""
    table = np.zeros((1, 3, 3), np.int64)
    table[0, 0, :2] = sum(right), sum(SIDE**2 - one for one in right)
    rows = np.array([[place, one, SIDE**2] for place, one in enumerate(right)], np.int64).reshape(-1, 3)
    return replace(MetricStats.from_tables(table), rows=rows)


def reply(right: list[int]) -> RecordDict:
    return codec.encode_evaluation(Evaluation(stats=stats_of(right), loss_sum=1.0))


def rows_of(stats: MetricStats) -> list[list[int]]:
    assert stats.rows is not None
    rows: list[list[int]] = stats.rows.tolist()
    return rows


@given(st.lists(st.lists(st.integers(0, SIDE**2), max_size=4), min_size=1, max_size=6), st.integers(1, 5))
def test_parts_give_the_rows_of_the_whole(parts: list[list[int]], cut: int) -> None:
    total = MetricStats.total([stats_of(part) for part in parts])
    whole = stats_of([one for part in parts for one in part])
    assert rows_of(total) == rows_of(whole)
    assert (total.tables() == whole.tables()).all()
    ends = [parts[:cut], parts[cut:]]
    halves = [MetricStats.total([stats_of(part) for part in end]) for end in ends if end]
    assert rows_of(MetricStats.total(halves)) == rows_of(whole)


def test_a_masked_part_leaves_rows_unknown() -> None:
    masked = MetricStats.from_tables(stats_of([3]).tables(), masked=True)
    assert masked.rows is None
    assert MetricStats.total([stats_of([3]), masked]).rows is None
    assert np.isnan(Cases().scores(masked)["worst_image"])


def test_rows_travel() -> None:
    for right in ([], [3], [1, 64, 0]):
        found = masked_codec.decode_evaluation(reply(right), FORM).plain
        assert found is not None
        assert rows_of(found.stats) == [[place, one, SIDE**2] for place, one in enumerate(right)]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (np.empty((0, 0), np.int64), r"its rows are int64 \[0, 0\], not int64 \[M, 3\]"),
        (np.zeros((2, 3), np.float64), r"its rows are float64 \[2, 3\], not"),
        (np.zeros((2, 4), np.int64), r"its rows are int64 \[2, 4\], not"),
        (np.zeros((1, 2, 3), np.int64), r"its rows are int64 \[1, 2, 3\], not"),
        (np.array([[1, 0, 64], [0, 0, 64]]), "do not begin with rising numbers of images"),
        (np.array([[-1, 0, 64]]), "do not begin with rising numbers of images"),
        (np.array([[2**41, 0, 64]]), "do not begin with rising numbers of images"),
        (np.array([[0, 65, 64]]), "more right pixels than pixels"),
    ],
)
def test_rows_of_another_form_are_refused(rows: Any, problem: str) -> None:
    content = reply([1, 2])
    content.pop("counts-rows")
    content["counts-rows"] = ArrayRecord([rows])
    with pytest.raises(ValueError, match=problem):
        masked_codec.decode_evaluation(content, FORM)


def test_missing_rows_are_refused() -> None:
    content = reply([1, 2])
    content.pop("counts-rows")
    with pytest.raises(ValueError, match=r"its rows are int64 \[0, 0\]"):
        masked_codec.decode_evaluation(content, FORM)


def test_a_task_without_rows_takes_none() -> None:
    with pytest.raises(ValueError, match=r"its rows are int64 \[1, 3\], not int64 \[M, 0\]"):
        masked_codec.decode_evaluation(reply([1]), pixel_task.Pixels().stats_form(3))


def test_masks_leave_no_rows() -> None:
    numbers = masked_codec.numbers_to_mask(reply([5, 6]))
    content = masked_codec.mask_counts(reply([5, 6]), numbers + 7, "group")
    assert masked_codec.decode_evaluation(content, FORM).group == "group"
    content["counts-rows"] = ArrayRecord([np.zeros((1, 3), np.int64)])
    with pytest.raises(ValueError, match="rows beside masked counts"):
        masked_codec.decode_evaluation(content, FORM)
    withheld = masked_codec.drop_counts(reply([5, 6]))
    assert "counts-rows" not in withheld
    assert masked_codec.decode_evaluation(withheld, FORM).plain is None


def test_clients_are_put_in_the_order_of_their_numbers() -> None:
    scores = Scores(Cases(), SimulatedClientRegistry(clients=9, counts=(5, 5, 5)), {})
    orders = []
    for clients in ((0, 4, 7), (7, 0, 4)):
        good, refused = scores.usable({client: reply([client, 60, 1][: client + 1]) for client in clients})
        assert not refused
        local = scores.local(good)
        assert local is not None
        orders.append(local["scores"])
    assert orders[0] == orders[1]
    assert orders[0]["last_image"] == 6
    assert orders[0]["worst_image"] == 0
    assert orders[0]["first_right"] == 0, "the first image is client 0's, whoever answered first"


@pytest.mark.slow
def test_a_run_measures_every_image(tmp_path: Path) -> None:
    """The server's 20 images are measured in parts and in batches, which nobody sees in the rows."""
    tables = pixels(task={"use": f"{HERE}:Cases"}, evaluation={"holdout": 0.2, "batch_size": 3})
    result = simulate(tables, engine="serial", out=tmp_path / "run")
    scores = result.rounds[-1]["server"]["scores"]
    test = pixel_task.squares().test
    assert test is not None
    x = (torch.from_numpy(test.images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    weight, bias = result.state["weight"][:, 0, 0, 0], result.state["bias"]
    named = (x * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)).argmax(1).numpy()
    assert scores["last_image"] == 19
    assert scores["worst_image"] == (named == test.labels).mean(axis=(1, 2)).min()
    again = simulate(tables, engine="vectorized", out=tmp_path / "stacked")
    assert again.rounds[-1]["local"]["scores"] == result.rounds[-1]["local"]["scores"]
