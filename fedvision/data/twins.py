"""Equal pictures: the same image twice, under two labels, or in the training and in the test set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from fedvision.data.images import Dataset, ImageSet


class Twins(NamedTuple):
    """Pairs (image, an earlier image with the same pixels), by number in their sets."""

    repeated: tuple[tuple[int, int], ...]
    """Both in the training set, under the same label."""
    contradicting: tuple[tuple[int, int], ...]
    """Both in the training set, under different labels."""
    leaked: tuple[tuple[int, int], ...]
    """The first in the test set, the second in the training set, whatever their labels."""


def twins(dataset: Dataset) -> Twins:
    """Find equal pictures by a digest of their pixels, as decoded: 16 bytes of BLAKE2b (RFC 7693).

    A picture that was saved again without loss is found under any name and format; one that was compressed
    anew is not. Reads every pixel once.
    """
    first: dict[bytes, int] = {}
    repeated: list[tuple[int, int]] = []
    contradicting: list[tuple[int, int]] = []
    labels = dataset.train.labels
    for number, digest in enumerate(_digests(dataset.train)):
        earlier = first.setdefault(digest, number)
        if earlier != number:
            same = labels[earlier] == labels[number]
            (repeated if same else contradicting).append((number, earlier))
    tested = _digests(dataset.test) if dataset.test else iter(())
    leaked = [(number, first[digest]) for number, digest in enumerate(tested) if digest in first]
    return Twins(tuple(repeated), tuple(contradicting), tuple(leaked))


def _digests(images: ImageSet) -> Iterator[bytes]:
    for image in images.images:
        yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()
