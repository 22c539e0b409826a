"""A federation is built and checked before anything is written; a million clients cost no more than a few."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision import ExperimentConfig, simulate
from fedvision.federation import Federation
from tests.experiments import tiny

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
    federation = Federation.build(config)
    assert federation.notices() == ["with a single image each: client 1, client 3"]
    federation.split.totals[[2, 7]] = 0
    assert federation.notices()[0] == "no client has images of 2, 7; the model cannot learn it"


def test_a_million_clients_are_built_as_fast_and_as_small_as_ten() -> None:
    peaks, seconds = [], []
    for clients in (10, 10, 1_000_000):  # the first one imports
        config = tiny(partition={**MILLION, "clients": clients})
        tracemalloc.start()
        begun = time.process_time()
        federation = Federation.build(config)
        seconds.append(time.process_time() - begun)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(federation.split.clients) == clients
    assert peaks[2] - peaks[1] < 1_000_000
    assert seconds[2] < 2


def test_a_million_clients_are_inspected_by_a_sample() -> None:
    text = Federation.build(tiny(partition=MILLION, strategy={"use": "fedavg", "fraction": 1e-5})).inspect()
    first, *_, traffic, notice = text.splitlines()
    assert first == "about 20,000,000 training images of 10 classes on 1,000,000 clients"
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
import sys, time
import numpy as np
from fedvision import registry
from fedvision.config import PartitionConfig
from fedvision.data import split
from fedvision.data.images import ImageSet
from fedvision.data.shards import ClientShards

labels = np.repeat(np.arange(10), 6000)
images = ImageSet(images=np.zeros((60_000, 1, 1, 1), np.uint8), labels=labels)
config = PartitionConfig(use="population", clients=1_000_000, args={"alpha": 0.1})
registry.build("partition", config, columns={})
begun = time.process_time()
made = split.make(images, config, num_classes=10, seed=0)
shards = ClientShards(images, made, holdout=0.1)
seconds = time.process_time() - begun
asked = sum(len(shards.train(client)) for client in range(0, 1_000_000, 1000))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(seconds, int(peak.split()[1]) / 1000, asked)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc: Linux only")
def test_a_million_clients_are_there_at_once_and_hold_nothing() -> None:
    script = [sys.executable, "-c", MEASURED]
    done = subprocess.run(script, capture_output=True, text=True, check=True, env={**os.environ})
    seconds, megabytes, asked = map(float, done.stdout.split())
    # About 0.02 s and 70 MB, of which NumPy and the labels are most; index arrays would be 480 MB.
    assert seconds < 2
    assert megabytes < 300
    assert asked == pytest.approx(1000 * 60 * 0.9, rel=0.2)
