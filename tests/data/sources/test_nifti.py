"""NIfTI volumes as slices with masks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedvision import registry
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset
from fedvision.data.sources import volume_slices
from fedvision.errors import DataError, PluginError

SHAPE = (6, 8, 5)
AFFINE = np.diag([0.5, 2.0, 3.0, 1.0])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVISION_CACHE", str(tmp_path / "cache"))


def read(path: Path, **keys: Any) -> Dataset:
    table = {"use": "nifti", "path": str(path), "size": 8, "window": [0, 255], **keys}
    found: Dataset = registry.build("data", ExperimentConfig.from_dict({"data": table}).data)
    return found


def volume(seed: int = 0, classes: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, SHAPE).astype(np.uint8)


def save(file: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        labels = volume(number)
        save(tmp_path / f"imagesTr/p{number}_0000.nii.gz", 60 * labels)
        save(tmp_path / f"labelsTr/p{number}.nii.gz", labels)
    return tmp_path


@pytest.mark.parametrize(
    ("axis", "place", "spacing"),
    [("sagittal", 0, "3 x 2 x 0.5"), ("coronal", 1, "3 x 0.5 x 2"), ("axial", 2, "2 x 0.5 x 3")],
)
def test_volumes_become_slices(folder: Path, axis: str, place: int, spacing: str) -> None:
    found = read(folder, axis=axis)
    assert len(found.train) == 3 * SHAPE[place]
    assert found.train.group == "volume"
    assert found.train.columns["volume"].tolist()[:: SHAPE[place]] == ["p0", "p1", "p2"]
    assert found.train.columns["spacing"].tolist()[0] == spacing
    masks = found.train.labels
    plane = np.rot90(volume(0).take(2, place))  # the last axis that is left points up
    top, left = ((8 - side) // 2 for side in plane.shape)
    shown = read(folder, axis=axis, size=8).train
    if max(plane.shape) == 8:
        inner = shown.labels[2][top : top + plane.shape[0], left : left + plane.shape[1]]
        assert np.array_equal(inner, plane)
        own = shown.images[2, ..., 0][top : top + plane.shape[0], left : left + plane.shape[1]]
        assert np.array_equal(own, 60 * plane)
        assert (np.delete(masks[2], np.s_[left : left + plane.shape[1]], 1) == 255).all()
    assert found.train.images.shape[1:] == (8, 8, 1)


def test_another_orientation_is_turned(folder: Path) -> None:
    plain = read(folder)
    turned = np.diag([-0.5, 2.0, 3.0, 1.0])
    for number in range(3):
        labels = volume(number)[::-1]
        save(folder / f"imagesTr/p{number}_0000.nii.gz", 60 * labels, turned)
        save(folder / f"labelsTr/p{number}.nii.gz", labels, turned)
    again = read(folder)
    assert np.array_equal(plain.train.labels, again.train.labels)
    assert np.array_equal(plain.train.images, again.train.images)


def test_no_split_parts_a_volume(folder: Path) -> None:
    found = read(folder, validation=0.34)
    assert found.test is not None
    here, there = (set(part.columns["volume"].tolist()) for part in (found.train, found.test))
    assert here.isdisjoint(there)
    assert len(here | there) == 3
    parted = read(folder, validation=0.34, group="")
    assert parted.test is not None
    assert set(parted.test.columns["volume"].tolist()) & set(parted.train.columns["volume"].tolist())


def test_regions_take_a_few_values_and_all_others_are_background(folder: Path) -> None:
    found = read(folder, regions={"core": [3], "rim": [1, 2]}, fit="stretch")
    assert found.classes == ("background", "core", "rim")
    plain = read(folder, fit="stretch").train.labels
    assert np.array_equal(found.train.labels, np.array([0, 2, 2, 1], np.uint8)[plain])
    whole = read(folder, every=2, empty=False, regions={"nowhere": [9], "core": [3]})
    assert set(whole.train.columns["slice"].tolist()) <= {0, 2, 4}
    for wrong, problem in (
        ({"a": [1], "b": [1]}, "1 is in 'a' and in 'b'"),
        ({"background": [1]}, "is all that is in no region"),
        ({"a": 1}, "table of lists"),
    ):
        with pytest.raises(PluginError, match=problem):
            read(folder, regions=wrong)


def test_classes_are_those_of_the_decathlons_file(folder: Path) -> None:
    names = ["ground", "one", "two", "three"]
    for labels in ({str(k): name for k, name in enumerate(names)}, {name: k for k, name in enumerate(names)}):
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
        assert read(folder).classes == tuple(names)
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match=r"dataset\.json: its labels cannot be read"):
        read(folder)


def test_shades_come_from_the_window_or_from_percentiles(folder: Path) -> None:
    half = read(folder, window=[0, 90]).train.images
    assert set(np.unique(half)) == {0, 170, 255}
    whole = read(folder, window=[], percentiles=[0, 100]).train.images
    assert set(np.unique(whole)) == {0, 85, 170, 255}
    flat = np.full(SHAPE, 7, np.uint8)
    for number in range(3):
        save(folder / f"imagesTr/p{number}_0000.nii.gz", flat)
    assert not read(folder, window=[]).train.images.any()


def test_what_is_no_pair_of_volumes_is_refused_by_name(folder: Path) -> None:
    labels, image = folder / "labelsTr/p1.nii.gz", folder / "imagesTr/p1_0000.nii.gz"
    save(labels, volume()[:5])
    with pytest.raises(DataError, match=r"p1\.nii\.gz: it lies on another grid \(5 x 8 x 5\) than p1_0000"):
        read(folder)
    save(labels, volume(), np.diag([1.0, 2.0, 3.0, 1.0]))
    with pytest.raises(DataError, match="another grid"):
        read(folder)
    save(labels, volume().astype(np.float32) + 0.5)
    with pytest.raises(DataError, match="holds other numbers than whole ones"):
        read(folder)
    save(labels, volume())
    with pytest.raises(DataError, match=r"p0\.nii\.gz: the value \d is no class: 2 are named"):
        read(folder, classes=["a", "b"])
    image.write_bytes(b"no volume")
    with pytest.raises(DataError, match=r"p1_0000\.nii\.gz: this volume cannot be read"):
        read(folder)
    image.unlink()
    labels.unlink()
    save(folder / "imagesTr/p9.nii", volume())
    with pytest.raises(DataError, match=r"there is no label volume p9\.nii\.gz for .*p9\.nii"):
        read(folder)
    with pytest.raises(DataError, match=r"there is no such folder; name it with data\.masks"):
        read(folder, masks="nowhere")


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_type_in_which_volumes_are_stored_changes_nothing(
    folder: Path, kind: type[np.generic], scaled: bool
) -> None:
    expected = read(folder).train
    for number in range(3):
        labels = volume(number)
        for file, values in (("labelsTr/p{}.nii.gz", labels), ("imagesTr/p{}_0000.nii.gz", 60 * labels)):
            stored = (values.astype(np.float64) + 3) / 0.5 if scaled else values
            made = nibabel.Nifti1Image(stored.astype(kind), AFFINE)
            if scaled:
                made.header.set_slope_inter(0.5, -3)
            nibabel.save(made, folder / file.format(number))
    found = read(folder).train
    assert np.array_equal(found.images, expected.images)
    assert np.array_equal(found.labels, expected.labels)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (np.nan, "holds other numbers than whole ones"),
        (np.inf, "holds other numbers than whole ones"),
        (-1.0, "holds other numbers than whole ones"),
        (1j, "cannot be read: its values are of the type complex64"),
    ],
)
def test_labels_that_are_no_whole_numbers(folder: Path, wrong: complex, sentence: str) -> None:
    values = volume().astype(np.complex64 if isinstance(wrong, complex) else np.float32)
    values[0, 0, 0] = wrong
    save(folder / "labelsTr/p2.nii.gz", values)
    with pytest.raises(DataError, match=rf"p2\.nii\.gz: .*{sentence}"):
        read(folder)


def test_a_second_start_reads_no_volume(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read(folder, empty=False)

    def load(file: Path, channel: int) -> Any:
        raise AssertionError(f"{file} is read")

    monkeypatch.setattr(volume_slices, "_load", load)
    moved = tmp_path_factory.mktemp("moved")
    for place in ("imagesTr", "labelsTr"):
        (folder / place).rename(moved / place)
    second = read(moved, empty=False)
    assert np.array_equal(first.train.images, second.train.images)
    assert np.array_equal(first.train.labels, second.train.labels)
    assert first.train.names == second.train.names
    for name, values in first.train.columns.items():
        assert np.array_equal(values, second.train.columns[name])
    assert first.classes == second.classes


def test_names_are_the_files_and_not_those_that_were_read_first(folder: Path) -> None:
    read(folder)
    for place in ("imagesTr/p0_0000", "labelsTr/p0"):
        (folder / f"{place}.nii.gz").rename(folder / f"{place.replace('p0', 'a')}.nii.gz")
    assert set(read(folder).train.columns["volume"].tolist()) == {"a", "p1", "p2"}


@pytest.mark.parametrize(
    "keys",
    [
        {"axis": "coronal"},
        {"every": 2},
        {"empty": False, "regions": {"a": [3]}},
        {"window": [0, 100]},
        {"window": [], "percentiles": [0, 50]},
        {"regions": {"a": [1]}},
        {"ignore": 3},
        {"fit": "stretch"},
    ],
)
def test_volumes_cut_otherwise_are_not_found_in_the_cache(
    folder: Path, keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(folder)
    found = read(folder, **keys).train
    monkeypatch.setenv("FEDVISION_CACHE", str(tmp_path / "another"))
    alone = read(folder, **keys).train
    assert np.array_equal(found.images, alone.images)
    assert np.array_equal(found.labels, alone.labels)
    assert found.names == alone.names


def test_changed_labels_are_read_again_and_wrong_ones_leave_nothing(folder: Path, tmp_path: Path) -> None:
    before = read(folder).train.labels
    save(folder / "labelsTr/p1.nii.gz", volume(7))
    after = read(folder).train.labels
    assert np.array_equal(before[: SHAPE[2]], after[: SHAPE[2]])
    assert not np.array_equal(before, after)
    entries = len(list((tmp_path / "cache").iterdir()))
    save(folder / "labelsTr/p2.nii.gz", volume().astype(np.float32) + 0.5)
    with pytest.raises(DataError, match="holds other numbers than whole ones"):
        read(folder)
    assert len(list((tmp_path / "cache").iterdir())) == entries


def test_no_slice_that_shows_anything(folder: Path) -> None:
    for number in range(3):
        save(folder / f"labelsTr/p{number}.nii.gz", np.zeros(SHAPE, np.uint8))
    for _ in range(2):
        with pytest.raises(DataError, match=r"imagesTr: no slice is left; set data\.empty = true"):
            read(folder, empty=False)


def test_one_channel_of_several(folder: Path) -> None:
    for number in range(3):
        labels = volume(number)
        save(folder / f"imagesTr/p{number}_0000.nii.gz", np.stack([0 * labels, 60 * labels], -1))
    assert read(folder, channel=1).train.images.any()
    assert not read(folder, channel=0).train.images.any()
    with pytest.raises(DataError, match="no volume of three axes"):
        read(folder, channel=2)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"axis": "z"}, "axis must be one of sagittal, coronal, axial"),
        ({"window": [3, 3]}, r"window must be \[low, high\] with low < high"),
        ({"percentiles": [1, 101]}, r"percentiles\[1\] must be >= 0 and <= 100"),
        ({"every": 0}, "every must be >= 1"),
        ({"test_images": "x"}, "belong together"),
    ],
)
def test_keys_out_of_range(folder: Path, keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(PluginError, match=problem):
        read(folder, **keys)


def test_without_the_package_there_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(PluginError, match=r"needs the package nibabel.* pip install 'fedvision\[medical\]'"):
        read(folder)
