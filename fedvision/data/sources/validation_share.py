"""A share of arrays' training images that is measured on in the place of the test images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.decoding.file_list import Indices, grouped_order, set_aside_notice, stratified_order
from fedvision.data.targets import strata


def with_validation(dataset: Dataset, share: float) -> Dataset:
    """Return a data set that is measured on some of its training images; the same one if the share is 0.

    The images are chosen by their place in the set, stratified by class, and are no training images then; the
    test images are left out, so that settings can be chosen without a look at them. Where images have a group
    (a patient), whole groups are chosen. Both parts are copies in memory.

    Args:
        dataset: Training images, test images or none, classes.
        share: Of each class, at least 0 and below 1.

    Raises:
        ValueError: The share leaves no image to measure on, or none to train on.
    """
    if not share:
        return dataset
    train = dataset.train
    places, targets = [str(place) for place in range(len(train))], strata(train.labels)
    if train.group:
        order, ranks = grouped_order(targets, train.columns[train.group], places)
    else:
        order, ranks = stratified_order(targets, places)
    cut = int(np.searchsorted(ranks, 1 - share))
    kept, measured = np.sort(order[:cut]), np.sort(order[cut:])
    if not len(measured):
        what = f"any group of column {train.group!r}" if train.group else "one image of any class"
        raise ValueError(f"validation = {share} is less than {what}; raise it")
    if not len(kept):
        raise ValueError(f"validation = {share} leaves nothing to train on; lower it, or add images")
    notices = set_aside_notice(len(dataset.test or ()), len(measured))
    return replace(
        dataset,
        train=_chosen(train, kept),
        test=_chosen(train, measured),
        notices=(*dataset.notices, *notices),
    )


def _chosen(images: ImageSet, places: Indices) -> ImageSet:
    return replace(
        images,
        images=images.images[places],
        labels=images.labels[places],
        columns={name: values[places] for name, values in images.columns.items()},
        names=[images.names[place] for place in places.tolist()] if len(images.names) else (),
        further=None if images.further is None else images.further[places],
    )
