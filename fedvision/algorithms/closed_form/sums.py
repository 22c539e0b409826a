"""What clients compute for a head in closed form: three statistics of whole numbers.

==================  =============================================================================
feature-sums        images of each class; sums of the features and of their squares
weighted-products   class sums of the rounded features q; sum of u_y q q^T, its upper triangle
head-scores         what each of several heads makes of the images that the client keeps out of
                    training
==================  =============================================================================

Shape letters: C classes, D features, G heads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from fedvision.algorithms.closed_form import rounding
from fedvision.errors import ConfigError
from fedvision.models.base import ImageModel
from fedvision.models.expansions import ExpandedLinear, Expansion
from fedvision.training.statistics import LocalData
from fedvision.types import State

LEVEL = "input."
"""What comes before the names of numbers on features that the network expands."""
MEAN, DEVIATION = f"{LEVEL}mean", f"{LEVEL}deviation"
PRODUCTS = "weighted-products"
"""The statistic that a head is solved from."""
NEEDED_BY = "[strategy] use = 'closed-form'"


def feature_sums(*, data: LocalData, tensors: State) -> dict[str, torch.Tensor]:
    """Moments of the features: ``count`` [C], and ``sum`` and ``square`` [D] in steps of 2^-24.

    Those of features that the network expands are ``input.sum`` and ``input.square``; with ``input.mean`` and
    ``input.deviation`` in the query they are of the features after the expansion.

    Raises:
        ConfigError: An image has several labels, or there are too many features.
        ValueError: A feature is not finite or too large.
    """
    before = _expansion(data) is not None and MEAN not in tensors
    count = torch.zeros(data.num_classes, dtype=torch.int64)
    total: torch.Tensor | None = None
    square: torch.Tensor | None = None
    for features, labels in _labelled(data, tensors):
        _check_number(features.shape[1])
        values, squares = (part.sum(0) for part in rounding.on_grid(features))
        total = values if total is None else total + values
        square = squares if square is None else square + squares
        count += torch.bincount(labels, minlength=data.num_classes)
    if total is None or square is None:
        raise ConfigError("this client has no training images")
    level = LEVEL if before else ""
    return {"count": count, f"{level}sum": total, f"{level}square": square}


def weighted_products(*, data: LocalData, tensors: State) -> dict[str, torch.Tensor]:
    """Sums of rounded features: ``count`` [C], ``sum`` [C, D], ``product`` [D (D + 1) / 2].

    Args:
        data: The client's images.
        tensors: ``mean`` and ``deviation`` [D], and ``weight`` int64 [C], u; ``input.mean`` and
            ``input.deviation`` where the network expands features.

    Raises:
        ConfigError: An image has several labels, or the query lacks tensors.
    """
    _check_sent(data, tensors, PRODUCTS, "mean", "deviation", "weight")
    weight, size = tensors["weight"], len(tensors["mean"])
    count = torch.zeros(data.num_classes, dtype=torch.int64)
    total = torch.zeros(data.num_classes, size, dtype=torch.int64)
    product = torch.zeros(size, size, dtype=torch.int64)
    for features, labels in _blocks(data, tensors, rounding.block_size(int(weight.max()))):
        steps = rounding.rounded(features, tensors)
        product += rounding.weighted_products(steps, weight[labels])
        total.index_add_(0, labels, steps.long())
        count += torch.bincount(labels, minlength=data.num_classes)
    rows, columns = torch.triu_indices(size, size)
    return {"count": count, "sum": total, "product": product[rows, columns]}


def head_scores(*, data: LocalData, tensors: State) -> dict[str, torch.Tensor]:
    """Counts of the images kept out of training by head, true and predicted class: ``confusion`` [G, C, C].

    Args:
        data: The client's images.
        tensors: ``mean`` and ``deviation`` [D]; ``weight`` int32 [G, C, D] and ``bias`` int64 [G, C], heads
            on rounded features in whole numbers: what is predicted does not depend on the order of sums;
            ``input.mean`` and ``input.deviation`` where the network expands features.

    Raises:
        ConfigError: No images are kept out of training, or the query lacks tensors.
    """
    _check_sent(data, tensors, "head-scores", "mean", "deviation", "weight", "bias")
    if data.held_out is None:
        raise ConfigError(
            f"{NEEDED_BY} chooses by images that clients keep out of training; set evaluation.holdout > 0, "
            "or a number in the place of 'auto'"
        )
    weight, bias = tensors["weight"].double(), tensors["bias"].double()
    heads, classes, _ = weight.shape
    confusion = torch.zeros(heads, classes * classes, dtype=torch.int64)
    for features, labels in _labelled(data.of(data.held_out), tensors):
        steps = rounding.rounded(features, tensors)
        for head in range(heads):
            predicted = (steps @ weight[head].T + bias[head]).argmax(1)
            cells = torch.bincount(labels * classes + predicted, minlength=classes * classes)
            confusion[head] += cells
    return {"confusion": confusion.reshape(heads, classes, classes)}


def _expansion(data: LocalData) -> Expansion | None:
    """Return the expansion before the network's head, if there is one."""
    head = data.model.head if isinstance(data.model, ImageModel) else None
    return head.expansion if isinstance(head, ExpandedLinear) else None


def _labelled(data: LocalData, tensors: State) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield features [B, D] and labels [B]; after the expansion where the query has its constants."""
    expansion = _expansion(data) if MEAN in tensors else None
    if expansion is not None:
        expansion = copy.deepcopy(expansion).cpu()
        expansion.mean.copy_(tensors[MEAN])
        expansion.deviation.copy_(tensors[DEVIATION])
    for features, labels in data.features():
        if labels.dim() != 1:
            raise ConfigError(f"{NEEDED_BY} needs one label an image; use another strategy for this task")
        yield features if expansion is None else expansion(features), labels


def _check_number(features: int) -> None:
    if features > rounding.MOST_FEATURES:
        raise ConfigError(
            f"{NEEDED_BY} takes {rounding.MOST_FEATURES:,} features at most, and this network has "
            f"{features:,}, of which each client would send {features * (features + 1) // 2:,} products; "
            "lower what model.expand makes, or use another network"
        )


def _blocks(data: LocalData, tensors: State, most: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield features and labels in blocks of at most so many images: a product of many is faster."""
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    for features, labels in _labelled(data, tensors):
        for part in zip(features.split(most), labels.split(most), strict=True):  # type: ignore[no-untyped-call]
            if held and sum(len(one) for _, one in held) + len(part[1]) > most:
                yield _joined(held)
                held = []
            held.append(part)
    if held:
        yield _joined(held)


def _joined(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([features for features, _ in parts]), torch.cat([labels for _, labels in parts])


def _check_sent(data: LocalData, tensors: State, use: str, *needed: str) -> None:
    if _expansion(data) is not None:
        needed = (*needed, MEAN, DEVIATION)
    if missing := [name for name in needed if name not in tensors]:
        raise ConfigError(
            f"[statistic] use = {use!r} needs {missing[0]!r} of the query: it serves [strategy] use = "
            "'closed-form' alone"
        )
