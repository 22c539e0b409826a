"""A fixed head: a simplex equiangular tight frame (ETF), to which trained heads and features tend.

Its rows have norm 1 and any two of them the cosine -1 / (C - 1), the smallest that C directions can all have
(neural collapse; Papyan, Han, Donoho 2020, arXiv 2008.08186)::

    M = sqrt(C / (C - 1)) (I - 1 1^T / C) U^T        U [E, C] with orthonormal columns, drawn from a seed

FedETF (Li, Shang, He, Lin, Wu 2023, "No Fear of Classifier Biases: Neural Collapse Inspired Federated
Learning with Synthetic and Fixed Classifier", ICCV 2023, arXiv 2303.10058) has all clients train their
features towards this head, which no client's classes can bend: logits are ``beta M mu`` of features ``mu = P
x / ||P x||`` with a learned layer P and a learned temperature beta. Its balanced feature loss is ``[loss] use
= "balanced-softmax"`` with ``prior = "local"``, and with an exponent gamma of the counts ``"logit-adjusted"``
with ``tau`` = gamma.

What differs from the authors' code (github.com/ZexiLee/ICCV-2023-FedETF): a class without images counts as
one of one image, where there its logarithm is minus infinity; beta is learned by its logarithm, so that it
stays positive; U's sign is settled, so that the seed gives the same head on every machine; and the local
fine-tuning of head and layer P, the method's second stage for personal models, is not done.

With ``sparse`` > 0, numbers drawn from the seed are 0 and the rows get norm 1 again, as in the static sparse
ETF of FedLoGe (arXiv 2401.08977). Its authors then spread the angles by 10,000 steps of Adam; here they are
as the zeros leave them.

Nothing of the frame is trained, sent or in a model's file: all machines draw it from the seed.

Shape letters: B batch, C classes, D features, E numbers of a row.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from fedvision import seeding
from fedvision.models.expansions import short
from fedvision.models.init import glorot
from fedvision.ranges import check_range


class EtfHead(nn.Module):
    """Logits beta M mu of features mu = P x / ||P x|| and the rows M of a fixed simplex ETF.

    Args:
        in_features: D.
        num_classes: C.
        scale: beta at first, > 0; training changes it.
        project: Whether features pass the learned linear layer P first, which they must where E is not D.
        size: E, at least C, >= 0; 0 takes D, and C where that is more.
        sparse: Share of the frame's numbers that are 0, 0 <= sparse < 1.
        seed: From which the frame is drawn, >= 0; left out, the experiment's.

    Raises:
        ValueError: An argument is out of range, or the rows are shorter than there are classes.
    """

    etf: torch.Tensor

    def __init__(
        self,
        *,
        in_features: int,
        num_classes: int,
        scale: float = 10.0,
        project: bool = True,
        size: int = 0,
        sparse: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range(above=0, scale=scale)
        check_range(at_least=0, size=size)
        size = size or max(in_features, num_classes)
        if size != in_features and not project:
            raise ValueError(
                f"the frame's rows have {size} numbers and the backbone makes {in_features} features; set "
                "project = true to learn a projection"
            )
        self.project = glorot(nn.Linear(in_features, size)) if project else nn.Identity()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        found = simplex_etf(num_classes, size, sparse=sparse, seed=seed)
        self.register_buffer("etf", found, persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C] of features [B, D]."""
        directions = F.normalize(self.project(features), dim=-1)
        return self.log_scale.exp() * F.linear(directions, self.etf)


def simplex_etf(classes: int, size: int, *, sparse: float, seed: int) -> torch.Tensor:
    """Return the rows of a simplex ETF, float32 [C, E] of norm 1.

    Args:
        classes: C, at least 2.
        size: E, at least C.
        sparse: Share of the numbers that are 0, 0 <= sparse < 1; drawn from the seed, and in no row all.
        seed: Of the draw, >= 0.

    Raises:
        ValueError: ``sparse`` or the seed is out of range, there is one class, or E < C.
    """
    check_range(at_least=0, below=1, sparse=sparse)
    check_range(at_least=0, seed=seed)
    if not 2 <= classes <= size:
        raise ValueError(
            f"a simplex ETF of {classes} classes needs 2 classes or more and rows of at least as many "
            f"numbers, not {size}; take a network with more features, or another head"
        )
    drawn = seeding.torch_stream(seed, "etf")
    normal = torch.randn(size, classes, generator=drawn, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(normal)
    # Of the decomposition each column's sign is free; with a positive diagonal there is one.
    basis = basis * triangle.diagonal().sign()
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    rows = math.sqrt(classes / (classes - 1)) * centred @ basis.T
    zeros = min(int(sparse * rows.numel()), rows.numel() - classes)
    if zeros:
        rank = torch.rand(rows.shape, generator=drawn, dtype=torch.float64)
        rank[torch.arange(classes), rows.abs().argmax(1)] = 2.0  # the largest of a row stays, with norm > 0
        rows.view(-1)[rank.view(-1).argsort()[:zeros]] = 0.0
    # Libraries differ in the last bits of a decomposition; with 16 bits of each number they agree.
    return short(F.normalize(rows, dim=1).float())
