"""The examination of a whole machine: real images, a real server, and one thing wrong at a time."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedvision.config import ExperimentConfig, LossConfig
from fedvision.data.dataset import Dataset
from fedvision.deployment.certificates import validity
from fedvision.deployment.client import doctor, image_checks, step_profile
from fedvision.deployment.client.check_report import CheckReport
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.connectivity import ProbeResult, key_owner
from fedvision.deployment.client.disclosure import ShareConfig
from fedvision.deployment.client.doctor import run_check
from fedvision.types import PluginSpec
from tests.deployment.server.processes import Running, superlink

EXPERIMENT = """
[data]
use = "npz"
classes = ["cat", "dog", "owl"]
[model]
use = "cnn"
width = 4
dense = 8
[training]
batch_size = 4
"""


@pytest.fixture(scope="module")
def server(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with superlink(pki, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve training and four test images of cats and dogs, no two alike."""
    rng = np.random.default_rng(0)
    for part, each in (("train", 6), ("test", 2)):
        for kind in ("cat", "dog"):
            folder = tmp_path / "images" / part / kind
            folder.mkdir(parents=True)
            for i in range(each):
                Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


def client(
    pki: Path, images: Path, port: int, *overrides: str, key: Path | None = None
) -> ClientMachineConfig:
    own = pki / "clients/north"
    path = images.parent / "client.toml"
    path.write_text(
        f'name = "north"\ncache = "cache"\n[superlink]\naddress = "localhost:{port}"\n'
        f'root_certificate = "{own / "ca.crt"}"\nkey = "{key or own / "client.key"}"\n'
        '[data]\nuse = "image-folder"\npath = "images"\nsize = 9\nmax_unreadable = 0.5\n'
    )
    return ClientMachineConfig.load(path, overrides)


def experiment(old: str = "", new: str = "") -> ExperimentConfig:
    assert old in EXPERIMENT
    return ExperimentConfig.from_toml(EXPERIMENT.replace(old, new))


def lines(found: CheckReport, *levels: str) -> list[str]:
    return [f"{topic}: {text}" for level, topic, text in found.lines if level in levels]


def test_a_machine_that_is_ready_fails_nothing_and_fits_a_page(
    pki: Path, images: Path, server: Running
) -> None:
    found = run_check(client(pki, images, server.public), experiment())
    sentence = "size: the experiment does not say what size its images have; these are 9 x 9 x 3"
    assert lines(found, "WARN", "FAIL") == [sentence]
    assert len(found.lines) < 26
    text = found.text()
    assert "OK    images       12 training and 4 test images of 9 x 9 x 3" in text
    assert "OK    classes      cat        6  ##############################" in text
    assert "this client has no image of owl" in text
    assert "4 images take" in text
    assert "(365 days)" in text or "(364 days)" in text
    secret = (pki / "clients/north/client.key").read_text().splitlines()[1]
    assert secret not in text
    # The cache is where the client's file configures it.
    assert (images.parent / "cache").is_dir()


def test_missing_experiment_names_what_was_not_checked(pki: Path, images: Path, server: Running) -> None:
    found = run_check(client(pki, images, server.public))
    assert lines(found, "WARN", "FAIL") == [
        "experiment: none named: labels, plug-ins and memory are not checked"
    ]


def test_a_server_that_does_not_know_the_key_is_noticed(
    pki: Path, strangers: Path, images: Path, server: Running
) -> None:
    stranger = strangers / "clients/stranger/client.key"
    found = run_check(client(pki, images, server.public, key=stranger))
    named, unknown = lines(found, "FAIL")
    assert named.startswith("key: superlink.key is the key of client stranger")
    assert unknown.startswith("key: The server does not know this client's key")


def test_a_server_that_is_away_leaves_the_other_checks(pki: Path, images: Path) -> None:
    found = run_check(client(pki, images, 1), experiment())
    assert lines(found, "FAIL") == [
        "server: localhost:1: nothing listens there; is the server running, and the port right?"
    ]
    assert any(line.startswith("step: ") for line in lines(found, "OK"))


def test_equal_broken_and_leaked_pictures_are_named(pki: Path, images: Path) -> None:
    shutil.copy(images / "train/cat/0.png", images / "train/cat/copy.png")
    shutil.copy(images / "train/cat/1.png", images / "train/dog/cat.png")
    shutil.copy(images / "train/dog/2.png", images / "test/dog/seen.png")
    (images / "train/dog/broken.png").write_bytes(b"no image")
    found = run_check(client(pki, images, 1))
    assert lines(found, "WARN")[:2] == [
        "images: 1 of 20 image files cannot be read and are left out: train/dog/broken.png (no known image "
        "format)",
        "twins: pictures that are there twice and count twice: 1 (train/cat/copy.png = train/cat/0.png)",
    ]
    assert lines(found, "FAIL")[1:] == [
        "twins: pictures that are there under two labels; keep the right one: 1 (train/dog/cat.png = "
        "train/cat/1.png)",
        "twins: test images that are training images too; remove them from one: 1 (test/dog/seen.png = "
        "train/dog/2.png)",
    ]


def test_label_unknown_to_the_experiment(pki: Path, images: Path) -> None:
    """A label that the experiment does not know is named until it is mapped."""
    for part in ("train", "test"):
        (images / part / "dog").rename(images / part / "dgo")
    found = run_check(client(pki, images, 1), experiment())
    assert any("label 'dgo' is no class" in line and "'dog'?" in line for line in lines(found, "FAIL"))
    assert not any(line.startswith("step") for line in lines(found, "OK", "FAIL"))
    mapped = run_check(client(pki, images, 1, "data.label_map.dgo=dog"), experiment())
    assert len(lines(mapped, "FAIL")) == 1
    assert any(line.startswith("step") for line in lines(mapped, "OK"))


def test_the_step_is_taken_with_the_experiments_classes(
    pki: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Dataset] = []

    def cost(experiment: ExperimentConfig, dataset: Dataset, device: str) -> step_profile.StepCost:
        seen.append(dataset)
        return step_profile.StepCost(1, 2, 0.1, 3, torch.device(device))

    monkeypatch.setattr(step_profile, "step_cost", cost)
    run_check(client(pki, images, 1, "device=cpu", 'data.label_map.dog=""'), experiment())
    assert [(data.classes, len(data.train)) for data in seen] == [(("cat", "dog", "owl"), 6)]


@pytest.fixture
def several(images: Path) -> Path:
    """The cats and dogs with labels of their own; four have none, and two are one picture."""
    rng = np.random.default_rng(0)
    labels = np.array([[1, 0], [1, 1], [1, 0], [0, 0], [0, 0], [0, 0], [1, 0], [0, 0]], np.uint8)
    pictures = rng.integers(0, 256, (8, 9, 9, 3), np.uint8)
    pictures[6] = pictures[1]
    np.savez(images.parent / "several.npz", train_images=pictures, train_labels=labels)
    return images


def several_client(pki: Path, several: Path) -> ClientMachineConfig:
    config = client(pki, several, 1)
    data = dataclasses.replace(
        config.data,
        use="npz",
        args={"path": str(several.parent / "several.npz"), "classes": ["cat", "dgo"]},
        label_map={"dgo": "dog"},
    )
    return dataclasses.replace(config, data=data, device="cpu")


def test_images_of_several_labels_are_examined_by_label(pki: Path, several: Path) -> None:
    trains = experiment('["cat", "dog", "owl"]', '["cat", "dog"]')
    trains = dataclasses.replace(
        trains, task=PluginSpec(use="multi-label"), loss=LossConfig(use="class-balanced")
    )
    found = run_check(several_client(pki, several), trains)
    told = lines(found, "OK")
    assert "classes: cat        4  ##############################" in told
    assert "classes: dgo        1  ########" in told
    average = "an image has 0.62 labels on average, 2 at most; 4 training images without any"
    assert f"classes: {average}" in told
    assert "task: images have any number of labels, as task 'multi-label' needs it" in told
    assert "labels: every label is one of the experiment's 2 classes, or left out" in told
    assert any(line.startswith("step: 4 images take") for line in told)
    assert [line for line in lines(found, "FAIL") if not line.startswith("server")] == [
        "twins: pictures that are there with different labels; keep the right one: 1 (image 6 = image 1)"
    ]


def test_labels_of_another_form_or_that_the_data_do_not_name_are_bad(pki: Path, several: Path) -> None:
    found = run_check(several_client(pki, several), experiment())
    bad = [line for line in lines(found, "FAIL") if not line.startswith(("server", "twins"))]
    assert bad[0].startswith("task: the experiment's task 'classification' needs one class an image, and")
    assert bad[1].startswith("labels: this data does not say which images have 'owl', and all would count")
    assert len(bad) == 2
    assert not any(line.startswith("step") for line in lines(found, "OK", "FAIL"))


def test_code_that_the_owner_does_not_allow_is_never_run(pki: Path, images: Path) -> None:
    found = run_check(client(pki, images, 1), experiment('"cnn"', '"os:system"'))
    assert any(line.startswith("plug-ins: [model] use = 'os:system'") for line in lines(found, "FAIL"))
    assert not any(line.startswith("step") for line in lines(found, "OK", "FAIL"))
    found = run_check(client(pki, images, 1), experiment("[model]", '[task]\nuse = "os:abort"\n[model]'))
    assert any(line.startswith("plug-ins: [task] use = 'os:abort'") for line in lines(found, "FAIL"))


def test_an_experiment_without_classes_cannot_be_compared(pki: Path, images: Path) -> None:
    found = run_check(client(pki, images, 1), experiment('classes = ["cat", "dog", "owl"]', ""))
    assert any("lists no data.classes" in line for line in lines(found, "WARN"))


@pytest.mark.parametrize(("height", "level"), [(9, "OK"), (8, "FAIL")])
def test_images_of_another_size_than_the_experiments_are_bad(
    pki: Path, images: Path, height: int, level: str
) -> None:
    sizes = f'"owl"]\nheight = {height}\nwidth = 9'
    found = run_check(client(pki, images, 1), experiment('"owl"]', sizes))
    assert [line for line, topic, _ in found.lines if topic == "size"] == [level]


@pytest.mark.parametrize(
    ("counts", "prior", "level"),
    [
        ("none", "global", "FAIL"),
        ("none", "mixed", "FAIL"),
        ("none", "local", "OK"),
        ("plain", "global", "OK"),
        ("noisy", "global", "OK"),
    ],
)
def test_a_loss_that_needs_everyones_counts_needs_this_clients(
    pki: Path, images: Path, counts: str, prior: str, level: str
) -> None:
    trains = experiment("[training]", f'[loss]\nprior = "{prior}"\n[training]')
    found = run_check(client(pki, images, 1, f"share.counts={counts}"), trains)
    assert [line for line, topic, _ in found.lines if topic == "sharing"] == [level]


def test_images_that_are_not_there_are_one_bad_line(pki: Path, images: Path) -> None:
    shutil.rmtree(images)
    images.parent.mkdir(exist_ok=True)
    found = run_check(client(pki, images, 1), experiment())
    assert sum(line.startswith("images: ") for line in lines(found, "FAIL")) == 1
    assert not any(line.startswith(("twins", "classes", "step")) for line in lines(found, "OK", "FAIL"))


def test_a_memory_limit_below_the_step_is_bad(pki: Path, images: Path) -> None:
    found = run_check(client(pki, images, 1, "memory_limit=0.001"), experiment())
    assert any("but only 0 B are free and allowed" in line for line in lines(found, "FAIL"))


@pytest.mark.parametrize(
    ("peak", "most", "level"),
    [
        (None, 5, "WARN"),
        (79, 100, "OK"),
        (81, 100, "WARN"),
        (100, 100, "WARN"),
        (101, 100, "FAIL"),
        (1, None, "OK"),
    ],
)
def test_memory_is_good_doubtful_or_bad(peak: int | None, most: int | None, level: str) -> None:
    assert image_checks.memory_line(peak, most)[0] == level


@pytest.mark.parametrize(
    ("ahead", "level"),
    [
        (0.0, "OK"),
        (2.0, "OK"),
        (4.0, "WARN"),
        (6.0, "FAIL"),
        (-100.0, "OK"),
        (-200.0, "WARN"),
        (-301.0, "FAIL"),
        (None, "WARN"),
    ],
)
def test_a_clock_may_be_behind_longer_than_ahead(ahead: float | None, level: str) -> None:
    assert [found for found, _ in doctor.clock(ahead)] == [level]


def test_permissions_of_key_and_folder(pki: Path, images: Path, tmp_path: Path) -> None:
    """A key that others can read and a folder that cannot be written are noticed."""
    key = tmp_path / "own.key"
    shutil.copy(pki / "clients/north/client.key", key)
    config = client(pki, images, 1, key=key)
    for mode in (0o644, 0o640, 0o604):
        os.chmod(key, mode)
        assert [level for level, _ in doctor.files(config)] == ["OK", "WARN"]
    os.chmod(key, 0o600)
    assert [level for level, _ in doctor.files(config)] == ["OK"]
    (tmp_path / "file").touch()
    blocked = client(pki, images, 1, f"state={tmp_path / 'file' / 'state'}")
    assert [(level, text[:5]) for level, text in doctor.folders(blocked)][1] == ("FAIL", "state")


def test_a_full_disk_is_doubtful(pki: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**12, 10**12, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert [level for level, _ in doctor.folders(client(pki, images, 1))] == ["WARN", "WARN"]


@pytest.mark.parametrize(
    ("use", "expected", "level"),
    [
        ("fashion-mnist", "28 x 28 x 1", "FAIL"),
        ("digits", "8 x 8 x 1", "FAIL"),
        ("cifar10", "32 x 32 x 3", "FAIL"),
        ('image-folder"\nsize = 9\npath = "there', "9 x 9 x 3", "OK"),
    ],
)
def test_the_size_of_a_named_source_is_known(
    pki: Path, images: Path, use: str, expected: str, level: str
) -> None:
    config, opened = client(pki, images, 1), CheckReport("")
    dataset = image_checks.open_own(config)
    trains = ExperimentConfig.from_toml(f'[data]\nuse = "{use}"')
    opened.run_check("size", image_checks.size(dataset, trains))
    ((found, _, text),) = opened.lines
    assert found == level
    assert expected in text


def test_a_key_that_belongs_to_another_client_is_named(pki: Path, images: Path, tmp_path: Path) -> None:
    sentence = "key: superlink.key is the key of client south, and this file is that of north: "
    config = client(pki, images, 1, key=pki / "clients/south/client.key")
    assert [line[: len(sentence)] for line in lines(run_check(config), "FAIL")][:1] == [sentence]
    # The certificate beside it shows it as well, and of a key alone nothing is known.
    for names in (("client.key", "client.crt"), ("client.key",)):
        alone = tmp_path / "-".join(names)
        alone.mkdir()
        for name in names:
            shutil.copy(pki / "clients/south" / name, alone / name)
        assert key_owner(str(alone / "client.key")) == ("south" if len(names) > 1 else None)
    # Files beside another key have no part in it.
    shutil.copy(pki / "clients/north/client.key", tmp_path / "client.key-client.crt/client.key")
    assert key_owner(str(tmp_path / "client.key-client.crt/client.key")) is None
    assert list(doctor.owner(client(pki, images, 1))) == []


def test_certificates_are_told_with_their_end_and_plain_text_is_doubtful(pki: Path, images: Path) -> None:
    config = client(pki, images, 1)
    plain = ProbeResult(seconds=0.1, ahead=None, valid_until=None)
    assert list(doctor.certificates(config, plain)) == [
        ("WARN", "plain text: everyone on the way can read and change models")
    ]
    own = pki / "clients/north/client.crt"
    end = validity(own)[1]
    mutual = dataclasses.replace(config.superlink, client_certificate=str(own), client_key="tls.key")
    soon = plain._replace(valid_until=datetime.now(UTC) + timedelta(days=3, hours=12))
    (server_line, own_line) = doctor.certificates(dataclasses.replace(config, superlink=mutual), soon)
    assert server_line[0] == "WARN"
    assert server_line[1].endswith("(4 days)") or server_line[1].endswith("(3 days)")
    assert own_line[0] == "OK"
    assert own_line[1].startswith(f"this client's is valid until {end:%Y-%m-%d} (")


def test_a_client_that_masks_its_counts_proves_itself_beforehand(
    pki: Path, images: Path, strangers: Path
) -> None:
    config = client(pki, images, 1)
    own = pki / "clients/north/client.crt"
    masked = ShareConfig(counts="masked", certificate=str(own))
    told = lines(run_check(dataclasses.replace(config, share=masked), experiment()), "OK")
    assert "sharing: class counts are reported in sums over 3 or more clients that mask them" in told
    other = ShareConfig(counts="masked", certificate=str(own), authority=str(strangers / "ca.crt"))
    bad = lines(run_check(dataclasses.replace(config, share=other), experiment()), "FAIL")
    assert any(
        line.startswith("sharing: ") and "not of this federation's authority" in line for line in bad
    ), bad
