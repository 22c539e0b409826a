"""The figures for Prometheus: read back by its own parser, and true."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedvision.watching.followed_run import FollowedRun
from fedvision.watching.metrics import MOST, Exposition, metrics
from tests.watching.sample import WrittenRun

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Samples:
    """Return samples by name and labels; every family must have a help, a type, and each sample once."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.type in ("gauge", "counter"), family.name
        assert family.documentation.endswith(".")
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            assert sample.name.startswith("fedvision_")
            assert (family.type == "counter") == sample.name.endswith("_total")
            found[key] = sample.value
    return found


def of(path: Path) -> Samples:
    followed = FollowedRun(path)
    followed.poll()
    return parsed(metrics(followed.snapshot()))


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"fedvision_{name}", tuple(sorted(labels.items()))]


def test_figures_are_those_of_the_run(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", clients=6, rounds=10, machines=True)
    run.begin()
    for _ in range(3):
        run.round()
    late = {"client": 1, "requested": 3, "loss": 1.0, "examples": 5}
    run.round(
        clients=[0, 2],
        busy=[4],
        late=[{**late, "used": True, "weight": 0.5}, {**late, "used": False, "reason": "x"}],
        refused=[{"client": 3, "stage": "training", "kind": "refused", "reason": "NaN"}],
    )
    run.folder.write_summary({"status": "failed", "error": "x"})
    found = of(tmp_path / "run")
    records = run.folder.rounds()
    assert value(found, "run_state", state="failed") == 1
    assert sum(number for (name, _), number in found.items() if name == "fedvision_run_state") == 1
    assert (value(found, "rounds_total"), value(found, "rounds_planned")) == (4, 10)
    assert value(found, "round_seconds_total") == 8.0
    assert value(found, "recent_round_seconds") == 2.0
    assert value(found, "stage_seconds_total", stage="train") == pytest.approx(4 * 1.4)
    assert value(found, "bytes_total", direction="up") == sum(record["bytes"]["up"] for record in records)
    assert (value(found, "clients_known"), value(found, "clients_connected")) == (6, 6)
    assert (value(found, "clients_late"), value(found, "clients_replied")) == (1, 2)
    assert value(found, "replies_used_total") == sum(len(record["clients"]) for record in records)
    assert value(found, "replies_unused_total", kind="refused", stage="training") == 1
    assert value(found, "replies_unused_total", kind="failed", stage="training") == 3
    assert value(found, "replies_late_total", outcome="used") == 1
    assert value(found, "replies_late_total", outcome="discarded") == 1
    assert value(found, "client_connected", client="site-0003") == 1
    scores = records[-1]["server"]["scores"]
    assert (
        value(found, "score_ratio", view="server", score="balanced_accuracy") == scores["balanced_accuracy"]
    )
    assert value(found, "score_round", view="server") == 4
    assert value(found, "class_recall_ratio", **{"class": "class 0"}) > 0.5


def test_a_loss_that_is_not_known_is_no_figure(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run")
    run.begin()
    record = run.record(1)
    run.round(server={**record["server"], "loss": None})
    found = of(tmp_path / "run")
    assert value(found, "loss_nats", view="local") == pytest.approx(record["local"]["loss"])
    assert ("fedvision_loss_nats", (("view", "server"),)) not in found
    assert value(found, "score_round", view="server") == 1


def test_a_run_that_is_not_there_has_a_state(tmp_path: Path) -> None:
    found = of(tmp_path / "none")
    assert value(found, "run_state", state="absent") == 1
    assert {name for name, _ in found} == {"fedvision_run_state"}


def test_names_that_people_chose_stay_labels(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", classes=2)
    run.names = ['a "b"\\', "two\nlines"]
    run.begin()
    run.round()
    found = of(tmp_path / "run")
    labels = {dict(key)["class"] for name, key in found if name == "fedvision_class_recall_ratio"}
    assert labels == {'a "b"\\', "two\nlines"}


def test_labels_are_bounded(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", clients=MOST + 1, classes=MOST + 1, machines=True)
    run.begin()
    run.round()
    found = of(tmp_path / "run")
    assert len(found) < 80
    assert not any("client" in dict(labels) or "class" in dict(labels) for _, labels in found)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1, 3.0, -2.0, 2.0**60])
def test_every_number_is_one_for_prometheus(value: float) -> None:
    text = Exposition()
    text.add("x", "gauge", "A number.", [({}, value)])
    assert parsed(str(text))["fedvision_x", ()] == pytest.approx(value, nan_ok=True)
    text.add("none", "gauge", "Nothing is known of it.", [])
    assert "none" not in str(text)
