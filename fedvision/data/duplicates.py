"""Equal pictures: the same image twice, under two labels, or in the training and in the test set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.targets import equal

_MOST = 10_000_000_000
"""Bytes of pixels that a run reads through for this: some ten seconds."""


class Duplicates(NamedTuple):
    """Pairs (image, an earlier image with the same pixels), by number in their sets."""

    repeated: tuple[tuple[int, int], ...]
    """Both in the training set, under the same label."""
    contradicting: tuple[tuple[int, int], ...]
    """Both in the training set, under different labels."""
    leaked: tuple[tuple[int, int], ...]
    """The first in the test set, the second in the training set, whatever their labels."""


def find_duplicates(dataset: Dataset) -> Duplicates:
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
            same = equal(labels[[earlier]], labels[[number]])[0]
            (repeated if same else contradicting).append((number, earlier))
    tested = _digests(dataset.test) if dataset.test else iter(())
    leaked = [(number, first[digest]) for number, digest in enumerate(tested) if digest in first]
    return Duplicates(tuple(repeated), tuple(contradicting), tuple(leaked))


def twin_notices(dataset: Dataset) -> tuple[str, ...]:
    """Return notices on equal pictures; of very large sets, that they were not looked for."""
    parts = [dataset.train, *([dataset.test] if dataset.test else [])]
    size = sum(part.images.nbytes for part in parts)
    if size > _MOST:
        return (f"equal images were not looked for in {size / 1e9:.0f} GB; fedvision doctor does",)
    found, train, test, notices = find_duplicates(dataset), dataset.train, dataset.test, []
    if found.leaked and test:
        one, two = map(list, zip(*found.leaked, strict=True))
        other = int((~equal(test.labels[one], train.labels[two])).sum())
        labels = f", {other:,} of them under another label," if other else ""
        notices.append(
            f"{len(found.leaked):,} test images{labels} are training images too, such as "
            f"{_pair(test, train, found.leaked[0])}: the model has seen what it is measured on; remove them "
            "from one"
        )
    if found.contradicting:
        notices.append(
            f"{len(found.contradicting):,} training images are there under two labels, such as "
            f"{_pair(train, train, found.contradicting[0])}; keep the right one"
        )
    if found.repeated:
        notices.append(
            f"{len(found.repeated):,} training images are there twice and count twice, such as "
            f"{_pair(train, train, found.repeated[0])}"
        )
    return tuple(notices)


def image_name(images: ImageSet, number: int) -> str:
    """Return the name of an image's file, or its number where it has none."""
    return images.names[number] if images.names else f"image {number}"


def _pair(first: ImageSet, second: ImageSet, pair: tuple[int, int]) -> str:
    return f"{image_name(first, pair[0])} = {image_name(second, pair[1])}"


def _digests(images: ImageSet) -> Iterator[bytes]:
    for image in images.images:
        yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()
