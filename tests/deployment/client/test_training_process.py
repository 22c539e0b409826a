"""The process that trains, for real: it answers, it dies, it is ended at its limits, it is replaced."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.training_process import ProcessDied, TaskFailed, TrainingProcess
from fedvision.deployment.run_manifest import PROTOCOL, RunManifest
from fedvision.deployment.transport import message_format
from fedvision.errors import ConfigError
from fedvision.flower import codec
from tests.deployment.client.test_trainer import exactly
from tests.experiments import tiny

LOSS = """
import os, time
from fedvision.losses.weighting import cross_entropy
held = []
def sleep(counts):
    return lambda logits, labels: time.sleep(60)
def die(counts):
    return lambda logits, labels: os._exit(9)
def grow(counts):
    def loss(logits, labels):
        while True:
            held.append(bytearray(b"x") * (50 << 20)); time.sleep(0.01)
    return loss
def fine(counts):
    print("plug-ins may print")
    return cross_entropy(counts)
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingProcess]:
    folder = tmp_path_factory.mktemp("client")
    (folder / "mine.py").write_text(LOSS)
    rng = np.random.default_rng(0)
    np.savez(
        folder / "own.npz",
        train_images=rng.integers(0, 255, (40, 8, 8), np.uint8),
        train_labels=np.arange(40) % 3,
    )
    client = ClientMachineConfig.from_dict(
        {
            "name": "north",
            "superlink": {"address": "localhost:1", "key": "k"},
            "data": {"use": "npz", "path": str(folder / "own.npz")},
            "plugins": ["mine"],
            "share": {"counts": "plain"},
            "threads": 1,
            "state": str(folder / "state"),
            "memory_limit": 2.0,
        }
    )
    made = TrainingProcess(client, folder)
    yield made
    made.stop()


def facts(loss: str = "mine:fine", classes: tuple[str, ...] = ("0", "1", "2")) -> dict[str, Any]:
    config = tiny(loss={"use": loss}, evaluation={"holdout": 0.0})
    return RunManifest(run="r1", experiment=config.to_toml(), classes=classes, image=(8, 8, 1)).to_table()


def client_registry(process: TrainingProcess, tmp_path: Path) -> tuple[int, ...]:
    layout = message_format.describe(RecordDict(), client=4).to_text()
    files = {"task": str(tmp_path / "task"), "reply": str(tmp_path / "reply")}
    answer = process.call({"answer": codec.CLIENT_INFO, "layout": layout, **files})
    content = message_format.unpack(message_format.MessageHeader.from_text(answer["layout"]), bytearray())
    entry = codec.decode_client_info(content)
    assert entry.client == 4
    return entry.image_counts.counts


def task(process: TrainingProcess, tmp_path: Path, loss: str) -> dict[str, Any]:
    """Open a run and train one round of it."""
    opened = process.call({"open": facts(loss)}, limited=False)
    expected = message_format.Expected.from_text(opened["expected"]["train"])
    layout = message_format.MessageHeader(
        tensors=exactly(expected), records={"config": ("config", {codec.ROUND: 1})}, client=0
    )
    (tmp_path / "task").write_bytes(bytes(layout.size))
    files = {"task": str(tmp_path / "task"), "reply": str(tmp_path / "reply")}
    return process.call({"answer": "train", "layout": layout.to_text(), **files})


@pytest.mark.slow
def test_training_reports_measures(process: TrainingProcess, tmp_path: Path) -> None:
    answer = task(process, tmp_path, "mine:fine")
    layout = message_format.MessageHeader.from_text(answer["layout"])
    assert (tmp_path / "reply").stat().st_size == layout.size
    content = message_format.unpack(layout, bytearray((tmp_path / "reply").read_bytes()))
    assert content.metric_records[codec.METRICS][codec.EXAMPLES] == 40
    assert client_registry(process, tmp_path) == (14, 13, 13)


@pytest.mark.slow
def test_images_or_the_reason_for_none(
    process: TrainingProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("fedvision.deployment").propagate = True
    with caplog.at_level(logging.INFO, "fedvision.deployment"):
        process.look()
    assert caplog.messages[-1] == "north has 40 training images of 8 x 8 x 1 in 3 classes"
    client = replace(process._client, data=replace(process._client.data, args={"path": str(tmp_path / "no")}))
    broken = TrainingProcess(client, tmp_path)
    try:
        with pytest.raises(ConfigError, match=r"north: the images of \[data\] cannot be used: .*no"):
            broken.look()
    finally:
        broken.stop()


@pytest.mark.slow
def test_it_is_replaced_when_it_dies(process: TrainingProcess, tmp_path: Path) -> None:
    with pytest.raises(ProcessDied, match=r"the training process died \(exit code 9\)"):
        task(process, tmp_path, "mine:die")
    assert task(process, tmp_path, "mine:fine")["layout"]


@pytest.mark.long
def test_one_that_was_killed_between_two_tasks_is_replaced(process: TrainingProcess, tmp_path: Path) -> None:
    process.start()
    before = process.generation
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    process.start()
    assert process.generation == before + 1
    assert task(process, tmp_path, "mine:fine")["layout"]


@pytest.mark.long
def test_it_is_ended_at_its_limits(process: TrainingProcess, tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match=r"GB of memory; this client's memory_limit is 2"):
        task(process, tmp_path, "mine:grow")
    process._client = replace(process._client, time_limit=0.5)
    with pytest.raises(TaskFailed, match=r"longer than this client's time_limit of 0.5 s"):
        task(process, tmp_path, "mine:sleep")
    process._client = replace(process._client, time_limit=0.0)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (facts(loss="os:system"), "this client allows built-ins, mine; if you trust its code"),
        (facts(classes=("0", "1")), "label '2' is no class of the experiment"),
        (facts() | {"digest": ""}, "is not the one that the server sent"),
        (facts() | {"protocol": PROTOCOL + 1}, f"the server speaks protocol {PROTOCOL + 1}"),
    ],
)
def test_what_it_may_not_or_cannot_do_is_a_sentence(
    process: TrainingProcess, table: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(TaskFailed) as refused:
        process.call({"open": table}, limited=False)
    assert sentence in str(refused.value)
