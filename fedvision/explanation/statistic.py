"""How faithful explanations are on clients' own images: sums of scores, no map and no image.

Shape letters: C classes.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from torch import nn

from fedvision import seeding
from fedvision.errors import ConfigError
from fedvision.explanation.explainer import Explainer
from fedvision.explanation.faithfulness import Faithfulness
from fedvision.explanation.scored_network import ScoredNetwork
from fedvision.training.statistics import LocalData

IMAGES = 8
"""How many of a client's images are explained at most, chosen by chance."""


def faithfulness_sums(*, model: nn.Module, data: LocalData) -> dict[str, torch.Tensor]:
    """Sums over some of a client's images, of those kept out of training where there are any.

    Args:
        model: The network.
        data: The client's images.

    Returns:
        ``images`` int64 [C], how many were explained as of each class, the one that the model predicts; and
        float64 [C] the sums of ``deletion``, ``insertion``, ``random_deletion``, ``random_insertion``.

    Raises:
        ConfigError: Features have taken the images' place, or no method fits the network.
    """
    shard = data.held_out if data.held_out is not None else data.shard
    if shard.images.dtype != np.uint8:
        raise ConfigError(
            "features are kept in the place of the images, and only images can be explained; set "
            "training.cache_features = false"
        )
    keys = [field.name for field in fields(Faithfulness)]
    sums = {key: torch.zeros(data.num_classes, dtype=torch.float64) for key in keys}
    explained = torch.zeros(data.num_classes, dtype=torch.int64)
    scored = ScoredNetwork(
        network=model,
        settings=data.settings,
        num_classes=data.num_classes,
        sharpness=data.sharpness,
        batch_size=data.batch_size,
    )
    explainer = Explainer(scored)
    rng = seeding.numpy_stream(0, "explained", len(shard))
    for position in np.sort(rng.permutation(len(shard))[:IMAGES]):
        place = np.array([position])
        beside = shard.beside(place)
        found = explainer.explain(shard.batch(place)[0][0], further=None if beside is None else beside[0])
        explained[found.label] += 1
        for key in keys:
            sums[key][found.label] += getattr(found.scores, key)
    return {"images": explained, **sums}
