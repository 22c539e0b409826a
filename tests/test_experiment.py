"""A federation is built and checked before anything is written; a million clients cost no more than a few."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision import ExperimentConfig, simulate
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.experiment import Experiment
from fedvision.reporting.inspect_experiment import _loss_by_class, inspect_experiment
from fedvision.reporting.run_data import read_facts
from fedvision.runs.folder import RunFolder
from fedvision.runs.progress import Progress
from fedvision.simulation import Simulation
from fedvision.tasks.metrics import tail_groups
from tests.experiments import tiny
from tests.work import lines_of, peak_memory

MILLION = {"use": "population", "clients": 1_000_000, "alpha": 0.1, "mean_images": 20}


def lonely() -> Any:
    """A partition whose clients 1 and 3 have one image each."""

    def partition(labels: Any, clients: int, rng: np.random.Generator) -> Any:
        rest = np.arange(2, len(labels))
        return [rest[::2], [0], rest[1::2], [1]]

    return partition


def test_notices_name_clients_with_a_single_image_and_vacant_classes() -> None:
    config = ExperimentConfig.from_dict(
        {"data": {"use": "digits"}, "partition": {"use": f"{__name__}:lonely", "clients": 4}}
    )
    federation = Experiment.build(config)
    assert federation.notices() == ["with a single image each to train on: client 1, client 3"]
    federation.split.totals[[2, 7]] = 0
    assert federation.notices()[0] == "no client trains on images of 2, 7; the model cannot learn it"


def test_a_million_clients_are_built_as_fast_and_as_small_as_ten() -> None:
    built: list[Experiment] = []
    peaks, lines = [], []
    for clients in (10, 10, 1_000_000):  # the first one imports
        config = tiny(partition={**MILLION, "clients": clients})
        peaks.append(peak_memory(lambda config=config: built.append(Experiment.build(config))))  # type: ignore[misc]
        lines.append(lines_of(lambda config=config: Experiment.build(config)))  # type: ignore[misc]
        assert len(built.pop().split.clients) == clients
    assert peaks[2] - peaks[1] < 1_000_000
    assert lines[2] - lines[1] < 20_000


def test_a_million_clients_are_inspected_by_a_sample() -> None:
    config = tiny(partition=MILLION, strategy={"use": "fedavg", "fraction": 1e-5})
    text = inspect_experiment(Experiment.build(config))
    *_, traffic, _, notice = text.splitlines()
    assert " ".join(text.split()).startswith(
        "about 20,000,000 training images of 10 classes on 1,000,000 clients (expected, not counted)"
    )
    assert "over 100 of 1,000,000 clients" in text
    assert " to 10 clients and as much back" in traffic
    assert notice.startswith(
        "1,000,000 clients draw their images from the same 1,442: an image belongs to 13,869.6"
    )


def test_a_run_with_a_million_clients_leaves_small_files(tmp_path: Path) -> None:
    strategy = {"use": "fedavg", "fraction": 3e-6}
    config = tiny(rounds=2, partition=MILLION, strategy=strategy, loss={"use": "weighted", "prior": "global"})
    result = simulate(config, out=tmp_path / "run")
    assert [len(record["clients"]) for record in result.rounds] == [3, 3]
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "100 of 1,000,000 clients shown, drawn at random." in page
    assert "1,000,000 clients keep about 20,000,000 training images" in page
    assert "draw their images from the same 1,442" in page
    split = json.loads((tmp_path / "run/split.json").read_text(encoding="utf-8"))
    assert np.shape(split["counts"]) == (100, 10)
    assert len(page) < 500_000
    assert sum(file.stat().st_size for file in (tmp_path / "run").glob("*")) < 1_500_000


MEASURED = """
import numpy as np
from fedvision import registry
from fedvision.config import PartitionConfig
from fedvision.data.partition import split
from fedvision.data.dataset import ImageSet
from fedvision.data.partition.client_shards import ClientShards

labels = np.repeat(np.arange(10), 6000)
images = ImageSet(images=np.zeros((60_000, 1, 1, 1), np.uint8), labels=labels)
config = PartitionConfig(use="population", clients=1_000_000, args={"alpha": 0.1})
registry.build("partition", config, columns={})
made = split.make(images, config, num_classes=10, seed=0, holdout=0.1)
shards = ClientShards(images, made)
counted = sum(len(shards.train(client)) for client in range(0, 1_000_000, 1000))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(int(peak.split()[1]) / 1000, counted)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc: Linux only")
def test_a_million_clients_are_there_at_once_and_hold_nothing() -> None:
    script = [sys.executable, "-c", MEASURED]
    done = subprocess.run(script, capture_output=True, text=True, check=True, env={**os.environ})
    megabytes, counted = map(float, done.stdout.split())
    # About 70 MB, of which NumPy and the labels are most; index arrays would be 480 MB.
    assert megabytes < 300
    assert counted == pytest.approx(1000 * 60 * 0.9, rel=0.2)


def few() -> Any:
    """A data source of 40, 3, 2 and 1 training images, without test images."""
    labels = np.repeat(np.arange(4), [40, 3, 2, 1])
    images = np.zeros((46, 8, 8, 1), np.uint8)
    return Dataset(train=ImageSet(images=images, labels=labels), classes=("a", "b", "c", "d"))


def held(**tables: Any) -> ExperimentConfig:
    """Two clients that keep half of these images from training."""
    base: dict[str, Any] = {"data": {"use": f"{__name__}:few"}, "evaluation": {"holdout": 0.5}}
    return tiny(**{**base, "rounds": 1, "partition": {"use": "iid", "clients": 2}, **tables})


def test_all_counts_called_training_are_of_the_images_trained_on(tmp_path: Path) -> None:
    config = held()
    federation = Experiment.build(config)
    host_factory = Simulation(federation, RunFolder.create(tmp_path / "run", config)).hosts()
    trained = np.array([host_factory.trainer().image_counts(client).counts for client in range(2)])
    facts = read_facts(RunFolder.read(tmp_path / "run"))
    assert facts.counts.tolist() == trained.tolist()
    assert facts.totals.tolist() == trained.sum(0).tolist() == list(host_factory.client_registry().counts)
    assert trained.sum() == 22  # 11 or 12 of each client's 23
    groups = tail_groups(host_factory.client_registry().counts)
    assert [c.label for c in facts.class_facts(None) if c.group == "tail"] == list(groups["tail"])
    assert facts.split["held_out"] == 24
    text = inspect_experiment(federation)
    assert text.startswith("22 training images of 4 classes on 2 clients; 24 images kept to measure on\n")
    vacant = [federation.dataset.classes[c] for c in np.flatnonzero(trained.sum(0) == 0)]
    assert vacant
    assert f"no client trains on images of {', '.join(vacant)}; the model cannot learn it" in text


def test_inspect_shows_each_clients_own_loss_where_the_prior_is_local() -> None:
    """One client has 6 images of a and 2 of b, the other one 1 of a; c is nobody's.

    ``w_c ~ 1 / n_c`` with mean 1 over the classes a client has: 1/2 and 3/2 for one, 1 for the other.
    At even logits the loss of an image is its weight times log 3.
    """
    loss = {"use": "weighted", "scheme": "inverse"}
    shares = {"use": f"{__name__}:sevens", "clients": 2}
    config = tiny(data={"use": f"{__name__}:nine"}, partition=shares, loss=loss)
    found = _loss_by_class(Experiment.build(config))
    log = np.log(3)
    np.testing.assert_allclose(found["loss, lowest"], [log / 2, 1.5 * log, np.nan])
    np.testing.assert_allclose(found["loss, median"], [0.75 * log, 1.5 * log, np.nan])
    np.testing.assert_allclose(found["loss, highest"], [log, 1.5 * log, np.nan])
    config = tiny(data={"use": f"{__name__}:nine"}, partition=shares, loss={**loss, "prior": "global"})
    # 7 and 2 images in all: weights 2 * 2 / 9 and 2 * 7 / 9; a vacant class weighs as the rarest one.
    np.testing.assert_allclose(
        _loss_by_class(Experiment.build(config))["loss at even logits"],
        np.array([4, 14, 14]) / 9 * log,
        rtol=1e-6,
    )


def nine() -> Any:
    """A data source of 7 and 2 training images; nothing is of the third class."""
    labels = np.repeat(np.arange(2), [7, 2])
    train = ImageSet(images=np.zeros((9, 8, 8, 1), np.uint8), labels=labels)
    return Dataset(train=train, classes=("a", "b", "c"))


def sevens() -> Any:
    """A partition that gives the second of two clients the first image and the other one the rest."""
    return lambda labels, clients, rng: [np.arange(1, len(labels)), [0]]


def test_effective_numbers_are_of_different_images() -> None:
    """A million clients share 1,442 images: weights do not lose the rare classes to their multiplicity."""
    loss = {"use": "weighted", "scheme": "effective-number", "beta": 0.999, "prior": "global"}
    long_tail = {"use": "population", "clients": 1_000_000, "alpha": 1, "imbalance": 100}
    config = tiny(partition=long_tail, loss=loss)
    federation = Experiment.build(config)
    pools = np.bincount(federation.split.labels[federation.split.clients.retained], minlength=10)  # type: ignore[union-attr]
    assert federation.split.distinct.tolist() == pools.tolist()
    raw = (1 - 0.999) / (1 - 0.999 ** pools.astype(np.float64))
    weights = np.array(_loss_by_class(federation)["loss at even logits"]) / np.log(10)
    np.testing.assert_allclose(weights, raw / raw.mean(), rtol=1e-5)
    assert weights.max() / weights.min() > 50


def test_notice_on_missing_measurements_before_the_first_round(tmp_path: Path) -> None:
    stream = io.StringIO()
    config = held(evaluation={})
    result = simulate(config, out=tmp_path / "run", progress=Progress(stream))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("nothing will be measured: there are no test images and no holdout; set ")
    assert result.scores == {}
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "Nothing was measured: there were no images for it." in page
    assert "nothing will be measured" in page
