"""From class counts to numbers per class that stay finite where a class is vacant.

A count is a number of images. It may come with noise (a private sum), so it is rounded to whole images and a
negative one is 0. A class with no image is *vacant*: it has no label to learn from, yet every loss must stay
finite for it, in value and in gradient, and for a label that occurs against its count.

Every factory of this package takes counts [C], or counts [K, C] of K clients at once; its loss then takes
logits [K, B, C] and labels [K, B]. No code branches on a count's value, so a factory may also be called
inside ``torch.func.vmap``. The legend of shape letters stands in ``fedvision.types``.
"""

from __future__ import annotations

import torch

from fedvision.devices import widest_float
from fedvision.ranges import check_range


def images(counts: torch.Tensor) -> torch.Tensor:
    """Return counts [..., C] as whole numbers of images, >= 0, in the widest floats of their device.

    Raises:
        ValueError: The counts have no dimension of classes.
    """
    if counts.dim() == 0:
        raise ValueError("counts must be [C], one number per class, not a single number")
    return counts.detach().to(widest_float(counts.device)).round().clamp(min=0)


def occupied(counts: torch.Tensor) -> torch.Tensor:
    """Return counts [..., C] in which a vacant class has as many images as the rarest of the others.

    What grows as a class gets rarer (a weight, a margin) then never exceeds what a class with images has.
    Where all classes are vacant each counts as one image.
    """
    n = images(counts)
    rarest = torch.where(n > 0, n, torch.inf).amin(-1, keepdim=True)
    return torch.where(n > 0, n, torch.where(rarest.isinf(), 1.0, rarest))


def at_least(counts: torch.Tensor, floor: float) -> torch.Tensor:
    """Return counts [..., C] in which a class with fewer than ``floor`` images has ``floor`` of them.

    Raises:
        ValueError: ``floor`` is not a finite number > 0.
    """
    check_range(above=0, floor=floor)  # It keeps a vacant class's logarithm finite.
    return images(counts).clamp(min=floor)


def mixed(federation: torch.Tensor, own: torch.Tensor, share: float) -> torch.Tensor:
    """Return counts whose prior is ``(1 - share) p + share p_k``, int64 [C].

    p and p_k are the federation's and a client's shares of classes. FedYoYo (Yan et al. 2025, arXiv
    2503.06916) takes the logarithm of this mixture as its logit adjustment. Losses get counts and not shares,
    so it is multiplied by ``(1 - share) N + share N_k`` images and rounded to whole ones: share = 0 gives the
    federation's counts and share = 1 the client's. Where either has no image at all the other one stands
    alone.

    Args:
        federation: Images per class [C] of all clients, N together.
        own: Images per class [C] of the client, N_k together.
        share: 0 <= share <= 1.

    Raises:
        ValueError: The share is out of range.
    """
    check_range(at_least=0, at_most=1, local_share=share)
    n, n_k = images(federation), images(own)
    total, total_k = n.sum(), n_k.sum()
    if not total or not total_k:
        return (n + n_k).to(torch.int64)
    prior = (1 - share) * n / total + share * n_k / total_k
    return (((1 - share) * total + share * total_k) * prior).round().to(torch.int64)
