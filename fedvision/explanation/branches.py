"""Each branch's share of a fusion's decision, by ablation.

A branch is ablated where the join gets, in the place of what it made of the image, what it makes of an empty
one: 0 after normalisation, the mean colour. Zeros or means over other images in its place would be features
that no image has, or depend on which images were chosen; this depends on the image alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fedvision.explanation.scored_network import ScoredNetwork
from fedvision.inputs import Batch, images_of, with_images
from fedvision.models.fusion import FusionBackbone

BRANCHES = ("extractor", "transformer")
"""In the order of the join's arguments."""


@torch.no_grad()
def drops(scored: ScoredNetwork, fusion: FusionBackbone, batch: Batch, label: int) -> dict[str, float]:
    """Return by how many nats a class's log-odds fall where one branch is ablated, by the branch's name.

    Args:
        scored: The network, in evaluation mode.
        fusion: The part of it that joins.
        batch: One image, with what is read beside it.
        label: The class.
    """
    seen: list[tuple[Any, ...]] = []
    handle = fusion.join.register_forward_pre_hook(lambda join, args: seen.append(args))
    try:
        scored.logits(with_images(batch, torch.zeros_like(images_of(batch))))
    finally:
        handle.remove()
    (whole,) = scored.log_odds(batch, label)
    found = {}
    for place, name in enumerate(BRANCHES):
        calls = iter(seen)  # two, where features are averaged with those of the mirror image

        def swap(join: Any, args: tuple[Any, ...], place: int = place, calls: Any = calls) -> tuple[Any, ...]:
            return (*args[:place], next(calls)[place], *args[place + 1 :])

        handle = fusion.join.register_forward_pre_hook(swap)
        try:
            found[name] = whole - scored.log_odds(batch, label)[0]
        finally:
            handle.remove()
    return found


@contextmanager
def only(fusion: FusionBackbone, name: str) -> Iterator[None]:
    """Let gradients go through one branch alone inside the block, as a Transformer may read the extractor."""
    place = BRANCHES.index(name)

    def detach(join: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(one if number == place else one.detach() for number, one in enumerate(args))

    handle = fusion.join.register_forward_pre_hook(detach)
    try:
        yield
    finally:
        handle.remove()


def shares(drops: Mapping[str, float]) -> dict[str, float | None]:
    """Return each branch's part of what all drops add up to, rises counted as 0; None where nothing falls."""
    total = sum(max(0.0, one) for one in drops.values())
    return {name: max(0.0, one) / total if total > 0 else None for name, one in drops.items()}
