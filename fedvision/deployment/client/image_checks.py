"""What an examination says of a client's images: read, equal, rare, unknown, and what a step costs.

Where an image may have several labels, a label's images are its positives, and images without any are fine.
Of boxes the boxes are counted, of classes of pixels the images that show them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedvision import formatting, memory
from fedvision.config import ExperimentConfig
from fedvision.data.box_facts import box_facts
from fedvision.data.boxes import class_table
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.duplicates import find_duplicates, image_name
from fedvision.data.own_classes import holds_boxes, images_with, in_words
from fedvision.data.relabel import destinations, images_of, unnamed
from fedvision.data.sources.inputs import with_inputs
from fedvision.data.sources.known_sizes import image_size
from fedvision.data.targets import one_class, several
from fedvision.deployment.client.check_report import Level, Lines
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.local_data import (
    check_form,
    known_classes,
    open_own,
    under_classes,
)
from fedvision.errors import DataError
from fedvision.formatting import plural
from fedvision.tasks.base import build_task

_NAMED = 3
_BAR = 30
_CLASSES = 25
_TIGHT = 0.8


def opens(config: ClientMachineConfig, opened: list[Dataset]) -> Lines:
    """Open the images, put them into ``opened``, and yield how many there are and what cannot be read."""
    dataset = open_own(config)
    opened.append(dataset)
    tests = f" and {len(dataset.test):,} test" if dataset.test else ""
    yield "OK", f"{len(dataset.train):,} training{tests} images of {_sides(dataset.train.images.shape[1:])}"
    for notice in dataset.notices:
        yield "WARN", notice


def equal_pictures(dataset: Dataset) -> Lines:
    """Say which pictures are there twice, under two labels, or in training and test images."""
    found, train = find_duplicates(dataset), dataset.train
    test = dataset.test or train
    kinds: tuple[tuple[Level, tuple[tuple[int, int], ...], ImageSet, str], ...] = (
        ("WARN", found.repeated, train, "pictures that are there twice and count twice"),
        ("FAIL", found.contradicting, train, f"pictures that are there {_twice(train)}; keep the right one"),
        ("FAIL", found.leaked, test, "test images that are training images too; remove them from one"),
    )
    for level, pairs, first, what in kinds:
        if pairs:
            shown = [f"{image_name(first, one)} = {image_name(train, other)}" for one, other in pairs]
            yield level, f"{what}: {len(pairs):,} ({formatting.listed(shown, _NAMED)})"
    if not any(found):
        yield "OK", "no picture is there twice"


def _twice(images: ImageSet) -> str:
    return "under two labels" if one_class(images.labels) else "with different labels"


def histogram(dataset: Dataset) -> Lines:
    """Draw training images a class, positives a label, or boxes a class, the most frequent first."""
    counts, of = _amounts(dataset.train, len(dataset.classes)), _counted(dataset.train)
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    width = max((len(dataset.classes[c]) for c in order), default=0)
    for c in order[:_CLASSES]:
        bar = "#" * max(1, round(_BAR * counts[c] / counts.max()))
        yield "OK", f"{dataset.classes[c]:<{width}} {counts[c]:>8,}  {bar}"
    if rest := order[_CLASSES:]:
        # An image of several of these labels is in several of their numbers.
        fewer = f"labels with up to {counts[rest].max():,} images each"
        whole = f"classes with {counts[rest].sum():,} {of}"
        yield "OK", f"and {len(rest)} rarer {fewer if several(dataset.train.labels) else whole}"
    if vacant := [name for name, count in zip(dataset.classes, counts, strict=True) if not count]:
        yield "WARN", f"no training image of {formatting.listed(vacant, _NAMED)}"
    if holds_boxes(dataset.train.labels):
        for sentence in box_facts(dataset.train.labels):
            yield "OK", sentence
    if several(dataset.train.labels):
        yield "OK", _labels_an_image(dataset.train)


def _amounts(images: ImageSet, num_classes: int) -> NDArray[np.int64]:
    if holds_boxes(images.labels):
        return class_table(images.labels, num_classes).sum(axis=0)  # type: ignore[no-any-return]
    return images_with(images.labels, num_classes)


def _counted(images: ImageSet) -> str:
    return "boxes" if holds_boxes(images.labels) else "images"


def _labels_an_image(images: ImageSet) -> str:
    each = images.labels.sum(axis=1, dtype=np.int64)
    without = plural(int((each == 0).sum()), "training image")
    return f"an image has {each.mean():.2f} labels on average, {each.max()} at most; {without} without any"


def form(config: ClientMachineConfig, dataset: Dataset, experiment: ExperimentConfig) -> Lines:
    """Return whether images have one class, several labels or else, as the experiment's task needs it."""
    task = build_task(experiment.task)
    check_form(dataset, config, task)
    yield "OK", f"images have {in_words(dataset.train.labels)}, as task {task.name!r} needs it"


def size(dataset: Dataset, experiment: ExperimentConfig) -> Lines:
    """Compare the images' size with the experiment's, where it says one."""
    own, wanted = tuple(dataset.train.images.shape[1:]), image_size(experiment.data.use, experiment.data.args)
    if wanted is None:
        yield "WARN", f"the experiment does not say what size its images have; these are {_sides(own)}"
    elif own != wanted:
        yield (
            "FAIL",
            f"images are {_sides(own)} and the experiment's {_sides(wanted)}; set size and channels of the "
            "data source in the client's file",
        )
    else:
        yield "OK", f"images are {_sides(own)}, as the experiment's"


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} x {shape[2]}"


def labels(config: ClientMachineConfig, dataset: Dataset, experiment: ExperimentConfig) -> Lines:
    """Compare the labels that images have with the experiment's classes."""
    classes = known_classes(experiment)
    if classes is None:
        yield "WARN", "the experiment lists no data.classes to compare with; ask for one that does"
        return
    own = [name for name, images in zip(dataset.classes, images_of(dataset), strict=True) if images]
    target, wrong = destinations(own, config.data.label_map, classes)
    if not one_class(dataset.train.labels):
        wrong = (*wrong, *unnamed(dataset.classes, config.data.label_map, classes))
    for sentence in wrong:
        yield "FAIL", sentence
    if not wrong:
        yield "OK", f"every label is one of the experiment's {len(classes)} classes, or left out"
        if missing := [name for label, name in enumerate(classes) if label not in target]:
            yield "OK", f"this client has no image of {formatting.listed(missing, _NAMED)}"


def step(config: ClientMachineConfig, dataset: Dataset, experiment: ExperimentConfig) -> Lines:
    """Train for a step and yield its time, its memory, and how much there is."""
    import torch

    from fedvision.deployment.client.step_profile import step_cost

    own = with_inputs(under_classes(dataset, config, known_classes(experiment)), experiment.model.inputs)
    if config.threads:
        torch.set_num_threads(config.threads)
    before, batch = memory.resident(), experiment.training.batch_size
    try:
        cost = step_cost(experiment, own, config.device)
    except torch.cuda.OutOfMemoryError as error:
        raise DataError(
            f"a step of {batch} images does not fit into the GPU's memory; ask for a smaller "
            "training.batch_size or model"
        ) from error
    sent = f"a round sends {formatting.size(cost.model)} each way"
    yield "OK", f"{batch} images take {cost.seconds:.2f} s on {cost.device}; {sent}"
    limits = [cost.free] if cost.free is not None else []
    if config.memory_limit and cost.device.type == "cpu" and before is not None:
        limits.append(int(config.memory_limit * 1e9) - before)
    yield memory_line(cost.peak, min(limits, default=None))


def memory_line(peak: int | None, most: int | None) -> tuple[Level, str]:
    """Return a line on a step's peak and on the memory there is, both in bytes."""
    if peak is None:
        return "WARN", "this system does not report how much memory a step takes"
    taken = f"a step takes {formatting.size(peak)} of memory"
    if most is None:
        return "OK", taken
    if peak > most:
        left = formatting.size(max(most, 0))
        return "FAIL", f"{taken}, but only {left} are free and allowed (memory_limit)"
    level: Level = "WARN" if peak > _TIGHT * most else "OK"
    return level, f"{taken}; {formatting.size(most)} are free and allowed"
