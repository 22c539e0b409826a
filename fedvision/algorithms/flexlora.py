"""FlexLoRA: the mean of what adapters do, factored anew.

Bai, Chen, Qian, Yao, Li 2024, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and
Client Resources", arXiv 2402.11505. The mean of products B A is not the product of the means of B and A, so
the products are averaged, and singular values divide the mean into two factors of the adapters' rank: the
nearest change of that rank (Eckart and Young 1936). All clients have one rank here; the paper lets them
differ. The server takes the singular values of a matrix as large as each layer's weight in every round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from fedvision.algorithms.mean import MODEL, MeanStrategy, WeightedTensors
from fedvision.models.lora import A, B
from fedvision.types import ClientUpdate, State

PRODUCTS = "products"
"""The group of the products B A [m, n], by the names of their layers."""


class FlexLora(MeanStrategy):
    """FedAvg, but of adapters' products; where ``model.lora.exact`` fixes A, or there are none, FedAvg."""

    def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
        """Return the products of an update's adapters and its other tensors, weighted by examples."""
        given, weight, groups = update.state, float(update.examples), {}
        pairs = tuple(_pairs(given))
        paired = {name for _, *both in pairs for name in both}
        if rest := {name: tensor for name, tensor in given.items() if name not in paired}:
            groups[MODEL] = rest
        if products := {layer: given[b].flatten(1) @ given[a].flatten(1) for layer, a, b in pairs}:
            groups[PRODUCTS] = products
        return {name: WeightedTensors(state=group, weight=weight) for name, group in groups.items()}

    def finalize(self, state: State, means: Mapping[str, State], num_updates: int) -> State:
        """Return the means, those of products as two factors."""
        found = dict(means.get(MODEL, {}))
        for layer, a, b in _pairs(state):
            left, right = factors(means[PRODUCTS][layer], len(state[a]))
            found |= {a: right.to(state[a]).view_as(state[a]), b: left.to(state[b]).view_as(state[b])}
        return {name: found[name] for name in state}


def factors(product: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide a matrix into two factors of equal norms whose product is the nearest of a rank.

    Args:
        product: [m, n].
        rank: r, at most m and n.

    Returns:
        B [m, r] and A [r, n], float64. The largest number of each row of A is positive, which a singular
        vector leaves open.
    """
    left, values, right = torch.linalg.svd(product.double(), full_matrices=False)
    left, right, root = left[:, :rank], right[:rank], values[:rank].sqrt()
    largest = right.abs().argmax(1, keepdim=True)
    sign = torch.where(right.gather(1, largest) < 0, -1.0, 1.0)
    return left * sign.T * root, right * sign * root[:, None]


def _pairs(state: State) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each layer of which a state has both factors, and theirs."""
    for name in state:
        layer, _, part = name.rpartition(".")
        if part == A and f"{layer}.{B}" in state:
            yield layer, name, f"{layer}.{B}"
