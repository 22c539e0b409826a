"""What is kept from training is trained on by nobody, and all counts are those of what is trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedvision.config import PartitionConfig
from fedvision.data.dataset import ImageSet
from fedvision.data.partition import split
from fedvision.data.partition.holdout import reserve
from fedvision.errors import DataError


def images(counts: list[int]) -> ImageSet:
    labels = np.repeat(np.arange(len(counts)), counts)
    return ImageSet(images=np.zeros((len(labels), 1, 1, 1), np.uint8), labels=labels)


def population(clients: int, **args: Any) -> PartitionConfig:
    return PartitionConfig(use="population", clients=clients, args={"alpha": 0.5, **args})


def test_reserved_images_leave_every_class_one_to_train_on() -> None:
    labels = np.repeat([0, 1, 2], [90, 9, 1])
    for seed in range(20):
        held = reserve(labels, 0.9, np.random.default_rng(seed))
        assert np.bincount(labels[~held], minlength=3).min() >= 1
        assert 88 <= held.sum() <= 90


@pytest.mark.parametrize("sizes", [{}, {"mean_images": 3, "sigma": 2}, {"mean_images": 60, "min_images": 60}])
def test_no_client_trains_on_what_another_measures_on(sizes: dict[str, Any]) -> None:
    made = split.make(images([30, 20, 10]), population(400, **sizes), num_classes=3, seed=3, holdout=0.3)
    whole = split.make(images([30, 20, 10]), population(400, **sizes), num_classes=3, seed=3)
    train = [made.clients[client] for client in range(400)]
    test = [made.test(client) for client in range(400)]
    assert np.intersect1d(np.concatenate(train), np.concatenate(test)).tolist() == []
    assert all(len(part) for part in train)
    assert all(len(np.unique(part)) == len(part) for part in [*train, *test])
    assert [len(part) for part in train] == [made.size(client) for client in range(400)]
    both = [len(a) + len(b) for a, b in zip(train, test, strict=True)]
    assert both == [whole.size(client) for client in range(400)]
    assert np.concatenate(test).size == pytest.approx(0.3 * sum(both), rel=0.25)
    assert made.held_out == 18


def test_a_populations_counts_are_of_training_images_and_of_different_ones() -> None:
    made = split.make(
        images([3000, 300, 30]), population(1_000_000, mean_images=33.3), num_classes=4, seed=0, holdout=0.2
    )
    # A million clients train on 0.8 x 33.3 images each, in the proportion 100 : 10 : 1.
    np.testing.assert_allclose(made.totals[:3], np.array([100, 10, 1]) * 1e6 * 26.64 / 111, rtol=0.01)
    assert made.distinct.tolist() == [2400, 240, 24, 0]
    assert not made.exact


def test_different_images_that_few_clients_draw() -> None:
    # Of 101 clients each has 10 of 1,000 images: 1000 (1 - 0.99^101) = 637.6 different ones.
    made = split.make(images([1000]), population(101, mean_images=10, sigma=0), num_classes=1, seed=0)
    assert (made.totals.tolist(), made.distinct.tolist(), made.exact) == ([1010], [638], False)
    drawn = np.unique(np.concatenate([made.clients[client] for client in range(101)]))
    assert len(drawn) == pytest.approx(638, rel=0.05)
    counted = split.make(images([1000]), population(100, mean_images=10, sigma=0), num_classes=1, seed=0)
    drawn = np.unique(np.concatenate([counted.clients[client] for client in range(100)]))
    assert (counted.totals.tolist(), counted.distinct.tolist()) == ([1000], [len(drawn)])


def test_a_clients_only_image_always_trains() -> None:
    # Of 200 clients with one image each none measures, whatever the holdout.
    made = split.make(
        images([150, 50]), population(200, mean_images=1, sigma=0), num_classes=2, seed=0, holdout=0.9
    )
    assert made.totals.tolist() == [150, 50]
    assert all(len(made.test(client)) == 0 for client in range(200))


def test_equal_classes_of_a_population_have_equal_counts() -> None:
    made = split.make(images([100] * 3), population(101, mean_images=10, sigma=0), num_classes=3, seed=0)
    # 1,010 images in three classes are 336.67 each: none is the rarest one.
    assert made.totals.tolist() == [337, 337, 337]


class Windows:
    """Client k has images k, k + 1, ..., which its neighbours have too."""

    def __init__(self, images: int, clients: int, each: int = 2) -> None:
        self.images, self.clients, self.each = images, clients, each

    def __len__(self) -> int:
        return self.clients

    def __getitem__(self, client: int) -> Any:
        return (client + np.arange(self.each)) % self.images


class Careless(Windows):
    """A sequence that divides its clients' images and does not mind which are kept from training."""

    def with_holdout(self, held: Any, share: float) -> list[Any]:
        return [([client], [(client + 1) % self.images]) for client in range(self.clients)]


def windows(*, careless: bool = False, each: int = 2) -> Any:
    def partition(labels: Any, clients: int, rng: np.random.Generator) -> Windows:
        return (Careless if careless else Windows)(len(labels), clients, each)

    return partition


def test_a_plugins_shared_images_are_divided_once_for_all_clients() -> None:
    table = PartitionConfig(use=f"{__name__}:windows", clients=40, args={"each": 20})
    made = split.make(images([40]), table, num_classes=1, seed=1, holdout=0.2)
    held = np.unique(np.concatenate([made.test(client) for client in range(40)]))
    assert len(held) == made.held_out == 8
    for client in range(40):
        own = (client + np.arange(20)) % 40
        assert made.clients[client].tolist() == sorted(np.setdiff1d(own, held))
        assert made.test(client).tolist() == sorted(np.intersect1d(own, held))
    assert (made.totals.tolist(), made.distinct.tolist()) == ([40 * 20 - 8 * 20], [32])


def test_a_client_that_only_has_reserved_images_is_named() -> None:
    table = PartitionConfig(use=f"{__name__}:windows", clients=40)
    with pytest.raises(DataError, match=r"gave client \d+ only images that all clients keep from training"):
        split.make(images([40]), table, num_classes=1, seed=1, holdout=0.6)


def test_halves_that_share_images_with_others_are_refused() -> None:
    table = PartitionConfig(use=f"{__name__}:windows", clients=40, args={"careless": True})
    with pytest.raises(DataError, match="with_holdout must keep to the images that it was given"):
        split.make(images([40]), table, num_classes=1, seed=1, holdout=0.5)
