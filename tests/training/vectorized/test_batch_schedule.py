"""The padded plan of K clients: every image once, in its client's order, with the weights of its batch."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvision import seeding
from fedvision.config import TransformConfig
from fedvision.training.loop import LoopSettings, positions
from fedvision.training.vectorized.batch_schedule import Batches, BatchSchedule, longest_first
from fedvision.training.vectorized.device_cache import DeviceDatasetCache
from fedvision.types import TrainRequest
from tests.training.client_cases import make_shards, settings


def plan_of(sizes: tuple[int, ...], chosen: LoopSettings) -> tuple[BatchSchedule, list[Batches]]:
    shards = make_shards(sizes)
    requests = [TrainRequest(round=1, client=k, state={}) for k in range(len(sizes))]
    pairs = zip(shards, requests, strict=True)
    batches = [list(positions(shard, request, chosen, False)) for shard, request in pairs]
    order = longest_first(batches)
    rows = [[shards[i] for i in order], [requests[i] for i in order], [batches[i] for i in order]]
    return BatchSchedule.make(*rows, chosen), [batches[i] for i in order]  # type: ignore[arg-type]


def test_the_longest_stand_first() -> None:
    lengths = [[8, 8], [3], [8, 8, 1], [8], [8, 7]]
    batches = [[np.arange(n) for n in own] for own in lengths]
    assert longest_first(batches) == [2, 0, 4, 3, 1]


@hypothesis.settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6), epochs=st.integers(1, 3))
def test_every_image_has_its_slot_and_every_batch_weighs_one(sizes: list[int], epochs: int) -> None:
    chosen = settings(epochs=epochs, batch_size=4)
    plan, batches = plan_of(tuple(sizes), chosen)
    shards = make_shards(tuple(sizes))
    order = sorted(range(len(sizes)), key=lambda k: -sizes[k])
    assert plan.active == tuple(sorted(plan.active, reverse=True))
    for k, own in enumerate(batches):
        assert (plan.steps[k], plan.examples[k]) == (len(own), epochs * len(shards[order[k]]))
        for s, batch in enumerate(own):
            at = plan.at[s, k, : len(batch)]
            images, labels = shards[order[k]].batch(batch)
            assert torch.equal(plan.images[at], torch.from_numpy(images))
            assert torch.equal(plan.labels[at], torch.from_numpy(labels))
            torch.testing.assert_close(plan.weights[s, k].sum(), torch.tensor(1.0))
            assert int((plan.weights[s, k] > 0).sum()) == len(batch)
            # What pads a batch is one of its own images, so that nothing in it is of another kind.
            assert set(plan.at[s, k, len(batch) :].tolist()) <= {int(at[0])}
    for s, (active, width) in enumerate(zip(plan.active, plan.widths, strict=True)):
        assert active == sum(len(own) > s for own in batches)
        assert width == max(len(own[s]) for own in batches if len(own) > s)


def test_an_image_that_is_seen_again_is_held_once() -> None:
    plan, _ = plan_of((5, 9), settings(epochs=4, batch_size=4))
    assert len(plan.images) == 14
    short, _ = plan_of((5, 9), settings(steps=1, batch_size=2))
    assert len(short.images) == 4


def test_shared_images_on_the_device() -> None:
    """Clients of one base share its set on the device and others send their images."""
    chosen, shards = settings(batch_size=4), make_shards((5, 9))
    requests = [TrainRequest(round=1, client=k, state={}) for k in range(2)]
    batches = [list(positions(s, t, chosen, False)) for s, t in zip(shards, requests, strict=True)]
    device_cache = DeviceDatasetCache(chosen.device, 1 << 20)
    plan = BatchSchedule.make(shards, requests, batches, chosen, device_cache)
    assert plan.resident
    assert len(plan.images) == len(shards[0].images)
    apart = [shards[0], replace(shards[1], images=shards[1].images.copy())]
    assert device_cache.find(apart[1]) is not None
    sent = BatchSchedule.make(apart, requests, batches, chosen, device_cache)
    assert not sent.resident
    for k, own in enumerate(batches):
        for s, batch in enumerate(own):
            wanted = torch.from_numpy(shards[k].batch(batch)[0])
            for made in (plan, sent):
                assert torch.equal(made.images[made.at[s, k, : len(batch)]], wanted)


def test_draws_are_those_of_the_serial_loop() -> None:
    chosen = settings(TransformConfig(flip=True, crop=2, rotation=5.0, cutout=2), batch_size=4)
    plan, batches = plan_of((6, 9), chosen)
    for k, client in enumerate((1, 0)):
        generator = seeding.torch_stream(chosen.seed, "augment", 1, client)
        for s, batch in enumerate(batches[k]):
            wanted = chosen.transform.draw(len(batch), (8, 8), generator)
            assert list(wanted) == ["flip", "crop", "rotation", "cutout"]
            for name, values in wanted.items():
                assert torch.equal(plan.drawn[name][..., s, k, : len(batch)], values)
