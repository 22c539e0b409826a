"""The training process keeps what it read: images are read once, whatever the rounds and runs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from safetensors.torch import load_file

from fedvision.data.image_counts import ImageCounts
from fedvision.deployment.client import local_data
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.disclosure import ShareConfig
from fedvision.deployment.client.local_data import stamp
from fedvision.deployment.client.trainer import Trainer
from fedvision.deployment.run_manifest import RunManifest
from fedvision.deployment.transport import message_format
from fedvision.errors import ConfigError, FedVisionError
from fedvision.flower import codec, masked_codec, query_codec
from fedvision.models.build import build_model
from fedvision.models.freezing import frozen_state
from fedvision.models.state import digest
from fedvision.tasks.classification import Classification
from fedvision.tasks.stats import StatsForm
from fedvision.updates.schema import TensorSpec
from tests.experiments import tiny


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows whenever the machine's images are read."""
    found: list[str] = []
    read = local_data.open_own

    def counted(client: ClientMachineConfig) -> Any:
        found.append(client.name)
        return read(client)

    monkeypatch.setattr(local_data, "open_own", counted)
    return found


def facts(run: str, **tables: Any) -> dict[str, Any]:
    config = tiny(**{"evaluation": {"holdout": 0.2}, **tables})
    return RunManifest(
        run=run, experiment=config.to_toml(), classes=("0", "1", "2"), image=(8, 8, 1)
    ).to_table()


def exactly(expected: message_format.Expected) -> dict[str, tuple[TensorSpec, ...]]:
    """Return the tensors of a message that brings what is expected and no more."""
    return {name: schema.tensors for name, schema in expected.groups.items()}


def play(trainer: Trainer, folder: Path, opened: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Train and measure for some rounds and return the answers."""
    answers = []
    for number in range(1, rounds + 1):
        for kind in ("train", "evaluate"):
            tensors = exactly(message_format.Expected.from_text(opened["expected"][kind]))
            records = {codec.CONFIG: ("config", {codec.ROUND: number})}
            layout = message_format.MessageHeader(tensors=tensors, records=records, client=0)
            (folder / "task").write_bytes(bytes(layout.size))
            answers.append(trainer.answer(kind, layout.to_text(), folder / "task", folder / "reply"))
    return answers


def frozen_facts(run: str, model: dict[str, Any], **tables: Any) -> dict[str, Any]:
    """Return the facts of a run whose network has frozen tensors, as the server began with them."""
    network = build_model(
        tiny(model=model).model,
        task=Classification(),
        num_classes=3,
        in_channels=1,
        image_size=(8, 8),
        seed=3,
    )
    return facts(run, model=model, **tables) | {"frozen": digest(frozen_state(network))}


def test_personal_and_frozen_tensors_are_neither_expected_nor_sent(trainer: Trainer, tmp_path: Path) -> None:
    model = {"use": "cnn", "width": 4, "dense": 8, "personal": ["head.*"], "frozen": ["backbone.features.*"]}
    answers = play(trainer, tmp_path, trainer.open(frozen_facts("r1", model)), 2)
    sent = message_format.MessageHeader.from_text(answers[0]["layout"]).tensors
    assert [entry.name for entry in sent[codec.ARRAYS]] == ["backbone.dense.weight", "backbone.dense.bias"]
    assert list(sent) == [codec.ARRAYS]
    (saved,) = (tmp_path / "state").rglob("round-0000002.safetensors")
    assert set(load_file(saved)) == {"personal/head.weight", "personal/head.bias"}


def test_frozen_tensors_that_began_otherwise_are_refused(trainer: Trainer) -> None:
    model = {"use": "cnn", "width": 4, "dense": 8, "frozen": ["backbone.features.*"]}
    with pytest.raises(ConfigError, match="tensors that are frozen are others here than on the server"):
        trainer.open(facts("r1", model=model) | {"frozen": "0" * 64})


def test_images_are_read_once_for_all_rounds_and_runs(
    trainer: Trainer, reads: list[str], tmp_path: Path
) -> None:
    opened = trainer.open(facts("r1"))
    (tmp_path / "own.npz").unlink()  # nothing is left to be read again
    answers = play(trainer, tmp_path, opened, 4)
    assert len(answers) == 8
    opened = trainer.open(facts("r2", training={"batch_size": 8, "lr": 0.2}))
    play(trainer, tmp_path, opened, 1)
    assert reads == ["north"]


def test_a_reply_has_the_duration_of_the_work_and_the_memory(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedvision.deployment.client import trainer as module

    opened, now = trainer.open(facts("r1")), iter([100.0, 102.5, 200.0, 200.5])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(now, 300.0))
    monkeypatch.setattr(module, "_run_app", lambda worker, kind, content, client: content)
    monkeypatch.setattr(Trainer, "_guard", lambda self, answered, *_: answered)
    answers = play(trainer, tmp_path, opened, 1)
    assert [answer["worked"] for answer in answers] == [2.5, 0.5]
    assert all(10**7 < answer["memory"]["process"] < 10**11 for answer in answers)


def measured(trainer: Trainer, folder: Path) -> tuple[RecordDict, RecordDict]:
    """Train with a measurement, then measure the same model; return what was counted both times."""
    expected = message_format.Expected.from_text(trainer.open(facts("r1"))["expected"]["train"])
    found = []
    for kind, config_values in (
        ("train", {codec.ROUND: 2, codec.MEASURE_FIRST: True}),
        ("evaluate", {codec.ROUND: 1}),
    ):
        layout = message_format.MessageHeader(
            tensors=exactly(expected),
            records={codec.CONFIG: ("config", config_values)},
            client=0,
        )
        (folder / "task").write_bytes(bytes(layout.size))
        answer = trainer.answer(kind, layout.to_text(), folder / "task", folder / "reply")
        back = message_format.MessageHeader.from_text(answer["layout"])
        found.append(message_format.unpack(back, bytearray((folder / "reply").read_bytes())))
    with_training = codec.unload(found[0])
    assert with_training is not None
    assert list(found[0]) == [codec.ARRAYS, codec.METRICS]
    return with_training, found[1]


def test_a_measurement_with_training_equals_a_separate_one(trainer: Trainer, tmp_path: Path) -> None:
    trainer.client = dataclasses.replace(trainer.client, share=ShareConfig(counts="plain"))
    with_training, alone = (codec.decode_evaluation(content) for content in measured(trainer, tmp_path))
    assert with_training.stats.tables().tolist() == alone.stats.tables().tolist()
    assert (with_training.loss_sum, with_training.examples) == (alone.loss_sum, 8)


def test_images_are_reported_beside_the_counts_of_their_labels(trainer: Trainer, tmp_path: Path) -> None:
    """Of 40 images a fifth is held out; each third has no label, and each sixth has two."""
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    labels = np.stack([np.arange(40) % 3 == 1, np.arange(40) % 6 < 3], axis=1).astype(np.uint8)
    np.savez(tmp_path / "own.npz", train_images=images, train_labels=labels)
    data = dataclasses.replace(
        trainer.client.data, args={"path": str(tmp_path / "own.npz"), "classes": ["one", "low"]}
    )
    config = tiny(task={"use": "multi-label"}, loss={"use": "class-balanced"}, evaluation={"holdout": 0.2})
    manifest = RunManifest(
        run="r1", experiment=config.to_toml(), classes=("low", "one"), image=(8, 8, 1)
    ).to_table()
    for mode in ("plain", "none"):
        share = ShareConfig(counts=mode)  # type: ignore[arg-type]
        own = Trainer(dataclasses.replace(trainer.client, data=data, share=share), tmp_path)
        assert own.look()["images"] == "40 training images of 8 x 8 x 1 with 2 labels"
        own.open(manifest)
        reported = codec.decode_client_info(own.do(codec.CLIENT_INFO, 0, RecordDict())).image_counts
        assert own._worker
        assert own._shards
        trained = labels[own._shards.train(0).indices][:, [1, 0]]
        if mode == "plain":
            assert reported == ImageCounts(images=32, counts=tuple(trained.sum(0).tolist()))
            assert reported.images != sum(reported.counts)
        else:
            assert reported == ImageCounts.none(2)


@pytest.mark.parametrize("counts", ["none", "noisy"])
def test_hidden_class_counts_are_not_reported_with_training(
    counts: str, trainer: Trainer, tmp_path: Path
) -> None:
    trainer.client = dataclasses.replace(trainer.client, share=ShareConfig(counts=counts))  # type: ignore[arg-type]
    for content in measured(trainer, tmp_path):
        assert codec.reported_examples(content) == 8
        assert not codec.decode_evaluation(content).stats.examples
        reply = masked_codec.decode_evaluation(content, StatsForm(shape_for=lambda shape: shape))
        assert masked_codec.split_readable({0: reply}, {}).withheld == [0]


def test_images_are_looked_at_before_any_run_and_read_once(
    trainer: Trainer, reads: list[str], tmp_path: Path
) -> None:
    assert trainer.look() == {"images": "40 training images of 8 x 8 x 1 in 3 classes", "notices": []}
    trainer.open(facts("r1"))
    assert reads == ["north"]
    (tmp_path / "own.npz").unlink()
    with pytest.raises(FedVisionError, match=r"own\.npz"):
        trainer.look()


def test_changed_images_are_noticed_and_reported_in_mid_run(
    trainer: Trainer, reads: list[str], tmp_path: Path
) -> None:
    def save(count: int) -> None:
        images = np.random.default_rng(1).integers(0, 255, (count, 8, 8), np.uint8)
        np.savez(tmp_path / "own.npz", train_images=images, train_labels=np.arange(count) % 3)

    def reported_images() -> int:
        trainer.do(codec.CLIENT_INFO, 0, RecordDict())
        return trainer._worker.image_counts(0).images if trainer._worker else 0

    assert trainer.open(facts("r1"))["changed"] is False, "nothing was reported yet"
    assert reported_images() == 32, "40 images, of which a fifth is held out"
    assert trainer.open(facts("r1"))["changed"] is False
    save(60)
    # The server knows of 32 images: a new process, which reads what is there now, reports more.
    again = Trainer(trainer.client, tmp_path)
    assert again.open(facts("r1"))["changed"] is True
    # Queried anew, the client reports all.
    trainer.open(facts("r1"))
    assert reported_images() == 48
    assert trainer.open(facts("r1"))["changed"] is False
    assert reads == ["north"] * 3


def test_a_task_keeps_its_run_from_removal(trainer: Trainer, tmp_path: Path) -> None:
    """Only a run that had no task for 365 days is removed, when another one is opened."""
    runs = tmp_path / "state/runs"
    trainer.open(facts("r1"))
    trainer.do(codec.CLIENT_INFO, 0, RecordDict())
    (runs / "r1/masks.json").write_text("{}")
    os.utime(runs / "r1", (0, 0))
    trainer.do(codec.CLIENT_INFO, 0, RecordDict())
    trainer.open(facts("r2"))
    assert (runs / "r1").exists()
    os.utime(runs / "r1", (0, 0))
    trainer.open(facts("r2"))
    assert not (runs / "r1").exists()
    with pytest.raises(ConfigError, match="removed after retention_days"):
        trainer.open(facts("r1"))


def test_a_stamp_changes_with_any_file_below_a_folder(tmp_path: Path) -> None:
    table = {"name": "n", "superlink": {"address": "localhost:1", "key": "k"}}
    data = {"use": "image-folder", "path": str(tmp_path / "images"), "size": 8}
    client = ClientMachineConfig.from_dict({**table, "data": data})
    assert stamp(client) is None, "there is no such folder"
    (tmp_path / "images/cat").mkdir(parents=True)
    found = [stamp(client)]
    file = tmp_path / "images/cat/0.png"
    for content in (b"", b"broken", b"mended, and longer"):
        file.write_bytes(content)
        found.append(stamp(client))
    assert stamp(client) == found[-1]
    file.rename(file.with_name("1.png"))
    found.append(stamp(client))
    assert len(set(found)) == 5
    assert stamp(ClientMachineConfig.from_dict({**table, "data": {"use": "digits"}})) is None


def train_with(algorithm: str, trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Train with a client half that the server names."""
    expected = message_format.Expected.from_text(trainer.open(facts("r1"))["expected"]["train"])
    config_values = {codec.ROUND: 1, codec.ALGORITHM: algorithm, "number.mu": 0.5}
    layout = message_format.MessageHeader(
        tensors=exactly(expected), records={codec.CONFIG: ("config", config_values)}, client=0
    )
    (folder / "task").write_bytes(bytes(layout.size))
    return trainer.answer("train", layout.to_text(), folder / "task", folder / "reply")


def test_a_server_cannot_name_code_that_the_owner_did_not_allow(trainer: Trainer, tmp_path: Path) -> None:
    assert "layout" in train_with("fedprox", trainer, tmp_path)
    with pytest.raises(
        ConfigError, match=r"\[client_algorithm\] use = 'os:abort': this client allows built-ins"
    ):
        train_with("os:abort", trainer, tmp_path)
    trainer.client = dataclasses.replace(trainer.client, plugins=("os:getcwd",))
    with pytest.raises(FedVisionError, match="'os:getcwd' of the strategy is no class of"):
        train_with("os:getcwd", trainer, tmp_path)


def statistic(use: str, trainer: Trainer, folder: Path, **more: int) -> RecordDict:
    """Query a statistic of a client's images."""
    kind = query_codec.STATISTIC
    expected = message_format.Expected.from_text(trainer.open(facts("r1"))["expected"][kind])
    config_values = {"statistic": use, "arguments": "{}", "bits": 64, codec.ROUND: 1, **more}
    layout = message_format.MessageHeader(
        tensors=exactly(expected), records={codec.CONFIG: ("config", config_values)}, client=0
    )
    (folder / "task").write_bytes(bytes(layout.size))
    answer = trainer.answer(kind, layout.to_text(), folder / "task", folder / "reply")
    back = message_format.MessageHeader.from_text(answer["layout"])
    return message_format.unpack(back, bytearray((folder / "reply").read_bytes()))


def test_a_statistic_is_shared_as_class_counts_are(trainer: Trainer, tmp_path: Path) -> None:
    for counts in ("none", "noisy"):
        trainer.client = dataclasses.replace(trainer.client, share=ShareConfig(counts=counts))
        with pytest.raises(ConfigError, match=f'share.counts is "{counts}" here: sums over its images'):
            statistic("class-counts", trainer, tmp_path)
    trainer.client = dataclasses.replace(trainer.client, share=ShareConfig(counts="plain"))
    reply = query_codec.decode_reply(statistic("class-counts", trainer, tmp_path))
    count = reply.sums.values()["count"]
    assert (count.sum(), reply.examples) == (32, 32)
    assert (count > 8).all()
    with pytest.raises(ConfigError, match=r"\[statistic\] use = 'mine:all': this client allows built-ins"):
        statistic("mine:all", trainer, tmp_path)


def test_a_statistic_beyond_class_counts_needs_the_owners_permission(
    trainer: Trainer, tmp_path: Path
) -> None:
    """Sums of features reveal what the images look like to a server that follows every other rule."""
    trainer.client = dataclasses.replace(trainer.client, share=ShareConfig(counts="plain"))
    with pytest.raises(ConfigError, match=r"'feature-moments': its sums reveal more .* share\.statistics"):
        statistic("feature-moments", trainer, tmp_path)
    allowed = ShareConfig(counts="plain", statistics=("feature-moments",))
    trainer.client = dataclasses.replace(trainer.client, share=allowed)
    assert query_codec.decode_reply(statistic("feature-moments", trainer, tmp_path)).examples == 32
    hidden = ShareConfig(counts="none", statistics=("feature-moments",))
    trainer.client = dataclasses.replace(trainer.client, share=hidden)
    with pytest.raises(ConfigError, match=r'share.counts is "none" here'):
        statistic("feature-moments", trainer, tmp_path)


def test_an_optional_statistic_is_withheld_where_the_owner_does_not_allow_it(
    trainer: Trainer, tmp_path: Path
) -> None:
    for counts, statistics in (("plain", ()), ("none", ("calibration",)), ("noisy", ("calibration",))):
        share = ShareConfig(counts=counts, statistics=statistics)  # type: ignore[arg-type]
        trainer.client = dataclasses.replace(trainer.client, share=share)
        reply = statistic("calibration", trainer, tmp_path, optional=1)
        assert not list(reply.array_records)
        assert query_codec.decode_reply(reply).withheld
    share = ShareConfig(counts="plain", statistics=("calibration",))
    trainer.client = dataclasses.replace(trainer.client, share=share)
    found = query_codec.decode_reply(statistic("calibration", trainer, tmp_path, optional=1))
    assert not found.withheld
    assert found.sums.values()["images"].sum() == found.sums.values()["scores"][0].sum() > 0


def test_a_masked_statistic_hides_its_numbers(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes out are the numbers plus the group's masks, with the number of images to check the sum by."""

    class Masks:
        group = "g"

        def hide(self, numbers: np.ndarray, question: bytes) -> np.ndarray:
            return numbers + 5

    trainer.client = dataclasses.replace(trainer.client, share=ShareConfig(counts="plain"))
    bare = query_codec.decode_reply(statistic("class-counts", trainer, tmp_path))
    shared = ShareConfig(counts="masked", certificate="x", authority="y")
    trainer.client = dataclasses.replace(trainer.client, share=shared)
    monkeypatch.setattr(Trainer, "_masks", lambda self: Masks())
    reply = query_codec.decode_reply(statistic("class-counts", trainer, tmp_path))
    assert np.array_equal(reply.sums.numbers["count"], bare.sums.numbers["count"] + 5)
    assert (reply.group, reply.masked_examples) == ("g", reply.examples + 5)
