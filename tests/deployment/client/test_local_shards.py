"""A machine's own images as a client's shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.local_shards import on_this_machine, own_shards
from fedvision.deployment.run_manifest import RunManifest
from fedvision.errors import DataError
from tests.experiments import tiny

EXPERIMENT = tiny(evaluation={"holdout": 0.25})


def client(folder: Path, **tables: object) -> ClientMachineConfig:
    images = np.arange(8 * 4, dtype=np.uint8).reshape(8, 2, 2)
    np.savez(folder / "own.npz", train_images=images, train_labels=np.arange(8) % 2)
    table = {
        "name": "north",
        "superlink": {"address": "localhost:1", "key": "k"},
        "data": {"use": "npz", "path": str(folder / "own.npz"), "classes": ["cat", "hound"]},
    }
    return ClientMachineConfig.from_dict(table | tables)


def facts(classes: tuple[str, ...], image: tuple[int, int, int] = (2, 2, 1)) -> RunManifest:
    return RunManifest(run="r", experiment=EXPERIMENT.to_toml(), classes=classes, image=image)


def test_own_labels_become_the_experiments_and_a_part_is_held_out(tmp_path: Path) -> None:
    client(tmp_path)
    mapped = ClientMachineConfig.from_dict(
        {
            "name": "north",
            "superlink": {"address": "localhost:1", "key": "k"},
            "data": {
                "use": "npz",
                "path": str(tmp_path / "own.npz"),
                "classes": ["cat", "hound"],
                "label_map": {"hound": "dog"},
            },
        }
    )
    shards = own_shards(mapped, facts(("dog", "cat")), EXPERIMENT)
    assert shards.train(0).counts(2).tolist() == [3, 3]
    assert shards.test(0).counts(2).tolist() == [1, 1]
    assert sorted([*shards.train(0).indices, *shards.test(0).indices]) == list(range(8))
    assert shards.images.labels.tolist() == [1, 0] * 4


LABELS = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
"""Of eight images: cat, hound, unclear."""
SEVERAL = tiny(task={"use": "multi-label"}, loss={"use": "class-balanced"}, evaluation={"holdout": 0.25})


def in_arrays(folder: Path) -> dict[str, object]:
    images = np.arange(8 * 4, dtype=np.uint8).reshape(8, 2, 2)
    np.savez(folder / "several.npz", train_images=images, train_labels=LABELS)
    return {"use": "npz", "path": str(folder / "several.npz"), "classes": ["cat", "hound", "unclear"]}


def in_files(folder: Path) -> dict[str, object]:
    """A CSV file whose column lists the labels; nobody is named that no image has."""
    rows = ["file,label"]
    for number, row in enumerate(LABELS):
        pixels = np.full((2, 2), number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        names = [name for name, has in zip(("cat", "hound", "unclear"), row, strict=True) if has]
        rows.append(f"{number}.png,{'|'.join(names)}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    source = {"use": "manifest", "path": str(folder / "list.csv"), "label_separator": "|"}
    return {**source, "size": 2, "channels": 1, "workers": 1, "cache": str(folder / "cache")}


@pytest.mark.parametrize("source", [in_arrays, in_files])
def test_own_images_of_several_labels(source: Callable[[Path], dict[str, object]], tmp_path: Path) -> None:
    """One label is renamed, one dropped: images of it alone stay, with no label, as those without any."""
    mapped = {"hound": "dog", "unclear": ""}
    own = client(tmp_path, data=source(tmp_path) | {"label_map": mapped})
    shards = own_shards(own, facts(("dog", "cat")), SEVERAL)
    number = shards.images.images[:, 0, 0, 0] // (1 if source is in_files else 4)
    labels = LABELS[number][:, [1, 0]]
    assert sorted(number) == list(range(8))
    assert shards.images.labels.tolist() == labels.tolist()
    parts = [shards.train(0), shards.test(0)]
    assert [len(part) for part in parts] == [6, 2]
    assert sorted(np.concatenate([part.indices for part in parts])) == list(range(8))
    own = parts[0].image_counts(2)
    assert own.images == 6
    assert own.counts == tuple(labels[parts[0].indices].sum(0))
    assert sum(own.counts) != own.images


def test_labels_of_another_form_than_the_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'multi-label' needs any number .* has one class an image"):
        own_shards(client(tmp_path), facts(("cat", "hound")), SEVERAL)
    labelled = client(tmp_path, data=in_arrays(tmp_path))
    with pytest.raises(DataError, match=r"'classification' needs one class an image, and .* has any number"):
        own_shards(labelled, facts(("cat", "hound", "unclear")), EXPERIMENT)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="gives images of 2 x 2 with 1 channel and the experiment has 3 x 2 with 3"
    ):
        own_shards(client(tmp_path), facts(("cat", "hound"), (3, 2, 3)), EXPERIMENT)


def test_the_owner_chooses_the_device(tmp_path: Path) -> None:
    config = tiny(training={"device": "cuda:5", "lr": 0.3})
    here = on_this_machine(client(tmp_path, device="cpu"), config)
    assert (here.training.device, here.training.lr) == ("cpu", 0.3)


def with_columns(folder: Path, cell: str) -> tuple[ClientMachineConfig, RunManifest]:
    """Return a client with two images, one with this cell, and a run whose network reads the column."""
    for name in ("ann.png", "bob.png"):
        Image.new("L", (2, 2)).save(folder / name)
    (folder / "own.csv").write_text(f"file,label,kind,age\nann.png,cat,mono,\nbob.png,dog,{cell},70\n")
    inputs = {
        "cell": {"kind": "category", "column": "kind", "categories": ["mono", "poly"]},
        "age": {"kind": "number", "mean": 50, "deviation": 10},
    }
    table = {"use": "manifest", "path": str(folder / "own.csv"), "size": 2, "channels": 1}
    config = tiny(model={"use": "fusion", "width": 4, "inputs": inputs})
    run = RunManifest(run="r", experiment=config.to_toml(), classes=("cat", "dog"), image=(2, 2, 1))
    return client(folder, data=table), run


def test_a_clients_columns_become_what_the_experiments_network_reads(tmp_path: Path) -> None:
    own, run = with_columns(tmp_path, "poly")
    shard = own_shards(own, run, run.config).train(0)
    names = list(own_shards(own, run, run.config).images.names)
    order = [names.index("ann.png"), names.index("bob.png")]
    np.testing.assert_array_equal(shard.beside(np.array(order)), [[np.nan, 0], [2, 1]])


def test_what_a_cell_holds_is_in_the_clients_own_log_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, run = with_columns(tmp_path, "hysteria")
    with pytest.raises(DataError) as failed:
        own_shards(own, run, run.config)
    assert str(failed.value).startswith("model.inputs.cell: this client has not the column")
    assert not any(text in str(failed.value) for text in ("hysteria", "bob", "kind"))
    assert failed.value.__cause__ is None
    assert "bob.png has 'hysteria' in column 'kind'" in caplog.text
