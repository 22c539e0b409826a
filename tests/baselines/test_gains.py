"""Who gains, worked out by hand: three clients, three classes, ten test images of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision.baselines import chosen
from fedvision.baselines.gains import HELD_OUT, TEST, read_baselines, summary
from fedvision.errors import ConfigError
from fedvision.runs.baseline_folder import BaselineFolder
from fedvision.runs.folder import RunFolder
from fedvision.tasks import metrics
from tests.experiments import tiny

TEN = [10, 10, 10]


def measured(right: list[int], images: list[int] = TEN) -> dict[str, Any]:
    """Return a view of a model that finds so many images of each class."""
    recalls = [r / n for r, n in zip(right, images, strict=True) if n]
    balanced = sum(recalls) / len(recalls)
    scores = {"accuracy": sum(right) / sum(images), "balanced_accuracy": balanced}
    return {"examples": sum(images), "loss": 1.0, "scores": scores, "right": right, "images": images}


def server(right: list[int]) -> dict[str, Any]:
    """Return a record of the test images; what is wrong is named as the next class."""
    confusion = np.diag(right)
    for c in range(3):
        confusion[c, (c + 1) % 3] = 10 - right[c]
    return {"loss": 1.0, "confusion": confusion.tolist(), "scores": metrics.scores(confusion, [5, 3, 1])}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "run", tiny(rounds=1))
    counts = [[3, 1, 0], [2, 2, 1], [0, 0, 4]]
    folder.write_split({"digest": "d", "classes": ["a", "b", "c"], "counts": counts, "left_out": 0})
    folder.append_round({"round": 1, "server": server([8, 6, 4]), "clients": [0, 1, 2], "examples": 9}, {})
    own = {0: [10, 8, 0], 1: [3, 3, 0], 2: [0, 0, 10]}  # balanced accuracy 60, 20 and 33.3 percent
    local = BaselineFolder(folder.path, "local")
    local.begin({"rounds": [1], "rounds_done": 1})
    for client, right in own.items():
        views = {"server": measured(right), "local": measured([1, 0, 0], [2, 0, 0]) if client else None}
        local.append({"client": client, "images": 4, "loss": 0.5, **views})
    local.append({"client": 3, "failed": "it burnt"})
    local.finish()
    federated = BaselineFolder(folder.path, "federated")
    federated.begin({})
    federated.write_clients(
        [{"client": client, "local": measured([client, 0, 0], [2, 0, 0])} for client in range(3)]
    )
    federated.finish()
    return folder


def test_clients_are_compared_one_by_one(run: RunFolder) -> None:
    found = read_baselines(run)
    assert found is not None
    gains = found.gains(TEST)
    assert gains is not None
    assert (gains.score, gains.clients) == ("balanced_accuracy", (0, 1, 2))
    assert gains.alone == pytest.approx([0.6, 0.2, 1 / 3])
    assert gains.federated == pytest.approx([0.6] * 3)
    assert gains.sure is not None
    # Of 30 images, 60 against 20 percent is no chance, and 60 against 33 neither: recalls of 0 and 10 of 10.
    assert gains.sure.tolist() == [0, 1, 1]
    facts = gains.facts()
    assert (facts["gain"], facts["lose"], facts["surely_gain"], facts["surely_lose"]) == (2, 0, 2, 0)
    assert facts["difference"]["mean"] == pytest.approx((0 + 0.4 + 0.6 - 1 / 3) / 3)


def test_on_held_out_images_only_those_who_have_some_count(run: RunFolder) -> None:
    found = read_baselines(run)
    assert found is not None
    gains = found.gains(HELD_OUT)
    assert gains is not None
    assert gains.clients == (1, 2)
    assert gains.difference.tolist() == [0.0, 0.5]
    assert gains.sure is not None
    assert gains.sure.tolist() == [0, 0]  # two images prove nothing


def test_a_sure_loss_is_told_from_chance(run: RunFolder) -> None:
    place = BaselineFolder(run.path, "local")
    lines = list(place.clients().values())
    lines[0]["server"] = measured([10, 10, 10])
    place.write_clients(lines)
    found = read_baselines(run)
    assert found is not None
    gains = found.gains(TEST)
    assert gains is not None
    assert gains.sure is not None
    assert gains.sure.tolist() == [-1, 1, 1]


def test_classes_that_a_client_lacks(run: RunFolder) -> None:
    found = read_baselines(run)
    assert found is not None
    # Client 0 lacks c: alone 0, federated 0.4; client 2 lacks a and b: alone 0 and 0, federated 0.8 and 0.6.
    assert found.missing_classes() == {"pairs": 3, "local": 0.0, "federated": pytest.approx(0.6)}
    worst = found.worst_class()
    assert worst["federated"] == {"class": 2, "recall": 0.4}
    assert worst["local"] == {"mean": 0.0, "median": 0.0, "min": 0.0, "max": 0.0}


def test_the_summary_is_json_and_has_what_was_found(run: RunFolder) -> None:
    facts = json.loads(json.dumps(summary(run), allow_nan=False))
    assert (facts["clients"], facts["failed"]) == (3, 1)
    assert facts["scores"]["test"]["federated"]["accuracy"] == 0.6
    assert facts["scores"]["test"]["local"]["accuracy"]["max"] == 0.6
    assert "central" not in facts["scores"]["test"]
    assert facts["scores"]["held_out"]["federated"]["accuracy"] == {
        "mean": 0.5,
        "median": 0.5,
        "min": 0.0,
        "max": 1.0,
    }


def test_what_is_not_finished_is_not_read(run: RunFolder) -> None:
    BaselineFolder(run.path, "local").note("begun")
    assert read_baselines(run) is None
    assert summary(run) == {}


def test_names_are_put_in_order_and_unknown_ones_refused() -> None:
    assert chosen(["local", "central", "local"]) == ("central", "local")
    assert chosen([]) == ()
    with pytest.raises(ConfigError, match="no baseline 'centrl'; did you mean 'central'"):
        chosen(["centrl"])
