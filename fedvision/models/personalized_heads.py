"""Heads with a part of each client's own, which adds nothing where a client has none.

Such a head is the linear one of the whole federation (``head.weight``, ``head.bias``) with a second linear
layer (``head.personal.*``) that ``model.personal`` keeps on the clients. The second one begins at zero, where
the head predicts as the federation's alone: so a method that trains the first by itself leaves the server a
whole model, although each client predicts with a part of its own.

=================  ====================================================================================
``personalized``   W x + b + P x + d, P and d the client's (FedRoD; Chen and Chao 2022, arXiv 2107.00778)
``realigned``      the rows of W by the norms of the client's own head, else of equal norm (FedLoGe; Xiao et
                   al. 2024, arXiv 2401.08977), beside a fixed sparse ETF that trains the backbone
=================  ====================================================================================

Shape letters: B batch, C classes, D features.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models.base import ImageModel
from fedvision.models.etf import simplex_etf
from fedvision.models.init import glorot
from fedvision.ranges import check_range

PERSONAL = "head.personal.*"
"""The pattern of a client's own part, for ``model.personal``."""
_PREFIX = PERSONAL.removesuffix("*")


class PersonalizedHead(nn.Linear):
    """A linear head and a client's own linear layer, whose logits are added.

    Args:
        in_features: D.
        num_classes: C.
    """

    def __init__(self, *, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        glorot(self)
        self.personal = nn.Linear(in_features, num_classes)
        for parameter in self.personal.parameters():
            nn.init.zeros_(parameter)

    def generic(self, features: torch.Tensor) -> torch.Tensor:
        """Return the federation's logits [B, C] of features [B, D]."""
        return F.linear(features, self.weight, self.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the client's logits [B, C] of features [B, D]."""
        own: torch.Tensor = self.personal(input)
        return self.generic(input) + own


class RealignedHead(PersonalizedHead):
    """A linear head whose rows w_c get other norms where it predicts, and a fixed ETF for the backbone.

    With the client's own head ``phi_c x + d_c``, and the mean norm m of all rows::

        z_c = m w_c x / ||w_c|| + b_c                     where phi is 0, as on the server
        z_c = (1 + ||phi_c||) w_c x + b_c + d_c           on a client with a head of its own

    Args:
        in_features: D, at least C.
        num_classes: C.
        scale: Of the ETF's logits, > 0.
        sparse: Share of the ETF's numbers that are 0, 0 <= sparse < 1.
        seed: From which the ETF is drawn, >= 0; left out, the experiment's.

    Raises:
        ValueError: An argument is out of range, or there are fewer features than classes.
    """

    etf: torch.Tensor

    def __init__(
        self, *, in_features: int, num_classes: int, scale: float = 1.0, sparse: float = 0.6, seed: int = 0
    ) -> None:
        super().__init__(in_features=in_features, num_classes=num_classes)
        check_range(above=0, scale=scale)
        self.scale = scale
        found = simplex_etf(num_classes, in_features, sparse=sparse, seed=seed)
        self.register_buffer("etf", found, persistent=False)
        with torch.no_grad():
            self.weight.copy_(found)  # a drawn row would keep its noise, which equal norms make larger

    def fixed(self, features: torch.Tensor) -> torch.Tensor:
        """Return the ETF's logits [B, C] of features [B, D], by which the backbone is trained."""
        return self.scale * F.linear(features, self.etf)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, C] that are predicted with."""
        own = torch.linalg.vector_norm(self.personal.weight, dim=1)
        norms = torch.linalg.vector_norm(self.weight, dim=1)
        # A row of zeros stays one, with no division by its norm.
        equal = norms.mean() / torch.where(norms > 0, norms, 1.0)
        factors = torch.where((own > 0).any(), 1.0 + own, equal)
        return F.linear(input, self.weight) * factors + self.bias + self.personal.bias


def neutral_names(model: nn.Module) -> frozenset[str]:
    """Return the tensors that add nothing to a network's predictions where they are as they began."""
    if not (isinstance(model, ImageModel) and isinstance(model.head, PersonalizedHead)):
        return frozenset()
    return frozenset(name for name in model.state_dict() if name.startswith(_PREFIX))
