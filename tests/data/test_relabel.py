"""Own labels become the experiment's: renamed, merged, left out; a strange one gets its near match."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedvision.data.boxes import Placement, packed
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.relabel import LEFT_OUT, by_name, destinations, relabel
from fedvision.errors import DataError

CLASSES = ("normal", "pneumonia", "covid")


def dataset(labels: list[int], classes: tuple[str, ...], test: list[int] | None = None) -> Dataset:
    def images(labels: list[int]) -> ImageSet:
        pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
        site = np.array([f"site{i}" for i in range(len(labels))])
        return ImageSet(images=pixels, labels=np.array(labels, np.int64), columns={"site": site})

    return Dataset(train=images(labels), test=images(test) if test else None, classes=classes)


def test_labels_are_renamed_and_merged_in_the_experiments_order() -> None:
    own = dataset([0, 1, 2, 3], ("bacterial", "covid", "healthy", "viral"), test=[2])
    mapping = {"bacterial": "pneumonia", "viral": "pneumonia", "healthy": "normal"}
    moved = relabel(own, mapping, CLASSES)
    assert moved.train.labels.tolist() == [1, 2, 0, 1]
    assert moved.test is not None
    assert moved.test.labels.tolist() == [0]
    assert moved.classes == CLASSES
    assert moved.train.images is own.train.images


def test_an_empty_text_leaves_a_labels_images_out_with_their_columns() -> None:
    moved = relabel(dataset([0, 1, 0], ("normal", "unclear")), {"unclear": ""}, CLASSES)
    assert moved.train.labels.tolist() == [0, 0]
    assert moved.train.images[:, 0, 0, 0].tolist() == [0, 2]
    assert moved.train.columns["site"].tolist() == ["site0", "site2"]


def test_a_client_may_lack_classes_and_hold_empty_ones_that_nobody_knows() -> None:
    moved = relabel(dataset([1, 1], ("unused folder", "covid")), {}, CLASSES)
    assert moved.train.labels.tolist() == [2, 2]


def test_a_strange_label_is_named_with_the_near_match() -> None:
    target, wrong = destinations(["pnuemonia", "normal"], {}, CLASSES)
    assert target.tolist() == [LEFT_OUT, 0]
    assert wrong == (
        "label 'pnuemonia' is no class of the experiment; write 'pnuemonia' = its class, or 'pnuemonia' = "
        "\"\" to leave it out, into [data.label_map]; did you mean 'pneumonia'?",
    )


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        ({"normal": "norml"}, "label 'normal' (label_map: 'norml') is no class of the experiment"),
        ({"nromal": "covid"}, "label_map: this data has no label 'nromal'; did you mean 'normal'?"),
        ({"normal": ""}, "leaves every training image out"),
    ],
)
def test_a_wrong_map_is_an_error(mapping: dict[str, str], sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        relabel(dataset([0, 0], ("normal",)), mapping, CLASSES)
    assert sentence in str(caught.value)


def test_composed_and_decomposed_names_agree() -> None:
    target, wrong = destinations(["cafe\u0301", "x\u0308"], {"\u1e8d": "caf\u00e9"}, ["caf\u00e9"])
    assert target.tolist() == [0, 0]
    assert wrong == ()


def labelled(rows: list[list[int]], classes: tuple[str, ...]) -> Dataset:
    pixels = np.zeros((len(rows), 1, 1, 1), np.uint8)
    return Dataset(train=ImageSet(images=pixels, labels=np.array(rows, np.uint8)), classes=classes)


def test_label_map_with_several_labels() -> None:
    """An image has a label if it has any of those that become it; without labels it is an image as well."""
    own = labelled(
        [[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]],
        ("bacterial", "viral", "healthy", "unclear"),
    )
    mapping = {"bacterial": "pneumonia", "viral": "pneumonia", "healthy": "normal", "unclear": ""}
    moved = relabel(own, mapping, ("normal", "pneumonia"))
    assert moved.train.labels.tolist() == [[0, 1], [0, 1], [1, 1], [0, 0], [0, 0]]
    assert moved.train.labels.dtype == np.uint8
    assert moved.train.images is own.train.images
    assert moved.classes == ("normal", "pneumonia")


def test_a_label_that_data_do_not_name_is_not_taken_for_absent() -> None:
    with pytest.raises(DataError, match="does not say which images have 'normal', 'pneumonia', and all"):
        relabel(labelled([[1], [0]], ("covid",)), {}, CLASSES)
    named = labelled([[1, 0, 0], [0, 0, 0]], ("covid", "pneumonia", "normal"))
    assert relabel(named, {}, CLASSES).train.labels.tolist() == [[0, 0, 1], [0, 0, 0]]
    with pytest.raises(DataError, match="label 'covid' is no class of the experiment"):
        relabel(named, {}, CLASSES[:2])


def test_a_model_finds_classes_by_their_names_whatever_their_order() -> None:
    data = dataset([0, 2, 2, 1], ("cafe\u0301", "unused", "dog"))
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=np.array([0, 2, 2, 0])))
    labels, missing = by_name(data.train, data.classes, ("bird", "dog", "caf\u00e9"))
    assert labels.tolist() == [2, 1, 1, 2]
    assert missing == ("bird",)


def test_an_image_of_a_class_that_a_model_does_not_know_is_refused() -> None:
    data = dataset([0, 1], ("cat", "Dog"))
    with pytest.raises(DataError) as caught:
        by_name(data.train, data.classes, ("dog", "cat"))
    assert str(caught.value) == (
        "the data has images of 'Dog', which the model does not know; its classes are dog, cat: name the "
        "data's classes as the model's, or leave those images out"
    )


def boxed(*classes: int) -> Dataset:
    rows = np.array([[label, 0, 0, 1, 1, 1, 0] for label in classes], float)
    images = ImageSet(
        images=np.zeros((1, 4, 4, 1), np.uint8), labels=packed([rows], [Placement(width=4, height=4)])
    )
    return Dataset(train=images, classes=("tree", "bush", "unused"))


def test_boxes_of_a_class_that_is_left_out_are_dropped() -> None:
    moved = relabel(boxed(1, 0), {"bush": ""}, ("tree",))
    assert moved.train.labels[0, :2, 0].tolist() == [1, 0]
    merged = relabel(boxed(1, 0), {"bush": "tree"}, ("tree",))
    assert merged.train.labels[0, 0, 0] == 2
    with pytest.raises(DataError, match="label 'bush' is no class of the experiment"):
        relabel(boxed(1, 0), {}, ("tree",))
    with pytest.raises(DataError, match="this data does not say which images have 'car'"):
        relabel(boxed(0), {}, ("tree", "car"))


def test_a_model_finds_classes_of_boxes_by_their_names() -> None:
    labels, missing = by_name(boxed(1, 0).train, ("tree", "bush", "unused"), ("bush", "tree"))
    assert labels[0, 1:, 0].tolist() == [0, 1]
    assert missing == ()
    with pytest.raises(DataError, match="the data has images of 'bush', which the model does not know"):
        by_name(boxed(1).train, ("tree", "bush", "unused"), ("tree",))


def test_pixels_of_a_class_that_is_left_out_are_of_no_class() -> None:
    maps = np.array([[[0, 1], [2, 255]]], np.uint8)
    images = ImageSet(images=np.zeros((1, 2, 2, 1), np.uint8), labels=maps)
    own = Dataset(train=images, classes=("ground", "tree", "bush"))
    moved = relabel(own, {"bush": ""}, ("tree", "ground"))
    assert moved.train.labels.tolist() == [[[1, 0], [255, 255]]]
