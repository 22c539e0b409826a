"""Groups of images, as those of a patient, are on one side of every split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.api import simulate
from fedvision.config import PartitionConfig
from fedvision.data.dataset import ImageSet
from fedvision.data.decoding.file_list import grouped_order
from fedvision.data.partition import split
from fedvision.data.partition.groups import majority, shared_groups
from fedvision.data.sources.manifest import manifest
from fedvision.errors import DataError
from fedvision.experiment import Experiment
from fedvision.reporting.inspect_experiment import inspect_experiment
from fedvision.reporting.run_data import read_facts
from tests.data.pictures import save
from tests.experiments import tiny


def patients(labels: list[int], groups: list[str], hospitals: list[str] | None = None) -> ImageSet:
    columns = {"patient": np.array(groups)} | ({"hospital": np.array(hospitals)} if hospitals else {})
    images = np.zeros((len(labels), 1, 1, 1), np.uint8)
    return ImageSet(images=images, labels=np.array(labels, np.int64), columns=columns, group="patient")


def table(here: Path, rows: int, each: int, **keys: object) -> split.ImageSet | None:
    """Write ``rows`` images of patients with ``each`` images; return the test set of a validation share."""
    lines = [f"{i}.png,{i // each % 2},p{i // each}" for i in range(rows)]
    (here / "list.csv").write_text("\n".join(["file,label,patient", *lines]))
    for i in range(rows):
        save(here / f"{i}.png", i)
    arguments = {"path": str(here / "list.csv"), "size": 2, "channels": 1, "workers": 1, "group": "patient"}
    dataset = manifest(**{**arguments, **keys})  # type: ignore[arg-type]
    seen = set(dataset.train.columns["patient"].tolist())
    assert dataset.test is None or not seen & set(dataset.test.columns["patient"].tolist())
    return dataset.test


def test_majority() -> None:
    items, place = majority(np.array([0, 1, 1, 2, 0]), np.array([7, 7, 7, 3, 3]))
    assert items.tolist() == [0, 1]
    assert place.tolist() == [1, 1, 1, 0, 0]


def test_validation_takes_whole_patients_of_each_class(tmp_path: Path) -> None:
    # Ten patients a class: 2.6 of them are three.
    test = table(tmp_path, 60, 3, validation=0.26)
    assert test
    assert len(set(test.columns["patient"].tolist())) == 6
    assert np.bincount(test.labels).tolist() == [9, 9]


def test_a_share_below_any_patient_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"validation = 0\.1 is less than any group of column 'patient'"):
        table(tmp_path, 6, 3, validation=0.1)
    with pytest.raises(ValueError, match="group = 'patients': there is no such column; there are: patient"):
        table(tmp_path, 6, 3, group="patients")


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1), st.floats(0, 0.9))
def test_no_cut_by_rank_parts_a_group(rows: list[tuple[int, int]], share: float) -> None:
    labels, groups = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    order, ranks = grouped_order(labels, groups, [str(i) for i in range(len(rows))])
    assert sorted(order.tolist()) == list(range(len(rows)))
    assert np.all(np.diff(ranks) >= 0)
    cut = int(np.searchsorted(ranks, 1 - share))
    assert not set(groups[order[:cut]].tolist()) & set(groups[order[cut:]].tolist())


def test_notice_on_patients_in_training_and_test(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,label,split,patient\na.png,x,train,p1\nb.png,x,test,p1\n")
    for name in "ab":
        save(tmp_path / f"{name}.png", ord(name))
    dataset = manifest(path=str(tmp_path / "list.csv"), size=2, channels=1, group="patient")
    (notice,) = dataset.notices
    assert notice.startswith("1 groups of column 'patient' have training and test images (p1)")
    assert shared_groups(patients([0], ["a"]), patients([0], ["b"])) == ()


@pytest.mark.parametrize(
    ("use", "args"),
    [("iid", {}), ("dirichlet", {"alpha": 0.5}), ("shards", {"classes_per_client": 2}), ("quantity", {})],
)
def test_a_patient_has_one_client(use: str, args: dict[str, object]) -> None:
    groups = [f"p{i // 4}" for i in range(80)]
    train = patients([i // 4 % 2 for i in range(80)], groups)
    made = split.make(train, PartitionConfig(use=use, clients=5, args=args), num_classes=2, seed=1)
    seen = [set(np.array(groups)[part].tolist()) for part in made.clients]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 20
    assert sum(len(part) for part in made.clients) == 80


def test_wrong_groups() -> None:
    train = patients([0, 1, 0, 1], ["p1", "p1", "p2", "p2"], ["north", "north", "north", "south"])
    with pytest.raises(DataError, match="clients = 3 is more than the 2 groups of column 'patient'"):
        split.make(train, PartitionConfig(use="iid", clients=3), num_classes=2, seed=1)
    by_hospital = PartitionConfig(use="column", args={"name": "hospital"})
    message = (
        r"1 groups of column 'patient' .* two clients of column 'hospital', the first with image number 3"
    )
    with pytest.raises(DataError, match=message):
        split.make(train, by_hospital, num_classes=2, seed=1)
    with pytest.raises(DataError, match=r"lets clients share images, which data\.group = 'patient' forbids"):
        split.make(
            train,
            PartitionConfig(use="population", clients=2, args={"alpha": 1.0, "mean_images": 2.0}),
            num_classes=2,
            seed=1,
        )
    with pytest.raises(DataError, match="column 'patient' is '' for 1 of 2 images"):
        split.make(patients([0, 1], ["p", ""]), PartitionConfig(clients=1), num_classes=2, seed=1)
    with pytest.raises(DataError, match=r"data\.group = 'x': there is no such column; there are: none"):
        ImageSet(images=train.images, labels=train.labels, group="x")


def test_a_simulated_holdout_takes_whole_groups(tmp_path: Path) -> None:
    table(tmp_path, 40, 2)
    args = {"path": str(tmp_path / "list.csv"), "size": 8, "channels": 1, "group": "patient"}
    config = tiny(data={"use": "manifest", **args}, partition={"clients": 2}, evaluation={"holdout": 0.3})
    built = Experiment.build(config)
    patients = built.dataset.train.columns["patient"]
    for client in range(2):
        trained = set(patients[built.split.clients[client]].tolist())
        measured = set(patients[built.split.test(client)].tolist())
        assert trained
        assert measured
        assert not trained & measured


def test_natural_clients_stand_by_name(tmp_path: Path) -> None:
    table(tmp_path, 40, 2)
    args = {"path": str(tmp_path / "list.csv"), "size": 8, "channels": 1}
    config = tiny(data={"use": "manifest", **args}, partition={"use": "column", "name": "patient"}, rounds=1)
    built = Experiment.build(config)
    values = sorted(set(built.dataset.train.columns["patient"].tolist()))
    assert len(values) > 1
    assert list(built.split.names) == values
    for client, value in enumerate(values):
        owned = built.dataset.train.columns["patient"][built.split.clients[client]]
        assert set(owned.tolist()) == {value}
    text = inspect_experiment(built)
    result = simulate(config, out=tmp_path / "run")
    assert result.folder.split()["names"] == values
    facts = read_facts(result.folder)
    assert (facts.shown, facts.name(1)) == (values, values[1])
    page = (tmp_path / "run/report.html").read_text()
    assert all(f"{value} " in text and value in page for value in values)
