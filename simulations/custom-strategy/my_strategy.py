"""A strategy of one's own: a file beside the experiment, one method, nothing to register or install."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.mean import MODEL, WeightedTensors
from fedvision.types import ClientUpdate, State


class RootWeighted(FedAvg):
    """A mean in which a client with 100 times the images has 10 times the weight.

    It lies between FedAvg (100 times the weight) and a plain mean (the same weight): large clients still
    count for more, since their models are less noisy, but they do not drown classes that only small ones
    hold.
    """

    def contribute(self, state: State, update: ClientUpdate) -> Mapping[str, WeightedTensors]:
        """Add the client's model, weighted by the square root of its number of examples."""
        return {MODEL: WeightedTensors(state=update.state, weight=math.sqrt(update.examples))}
