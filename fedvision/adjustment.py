"""Post-hoc correction: a finished run's head made to favour rare classes more, without training.

Two ways, from the model and its class counts alone, so no client has to do anything:

- Logit adjustment (Menon, Jayasumana, Rawat, Jain, Veit, Kumar 2021, "Long-Tail Learning via Logit
  Adjustment", arXiv 2007.07314, section 4.1): from the logits of class c, tau log p_c is subtracted, p_c its
  share of the federation's training images. With tau = 1, and probabilities that are right for images as
  frequent as in training, the prediction aims at the balanced accuracy.
- Equal norms (Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis 2020, "Decoupling Representation and
  Classifier for Long-Tailed Recognition", arXiv 1910.09217, tau-normalisation with tau = 1): the rows of the
  head, which are longer for frequent classes, get one length. As in the paper the bias is left out. Here the
  length is the mean of the rows' own, so that logits keep their size, which changes no prediction.

Where a network predicts softmax(s z) of logits z, because its loss has a scale s or its temperature was
calibrated, the bias changes by tau log p_c / s. A class without images counts as one of one image, as in the
package's losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision import derived_model
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError, RunFolderError
from fedvision.files import json_page
from fedvision.formatting import listed
from fedvision.ranges import check_range
from fedvision.runs.model_description import ModelDescription
from fedvision.trained_model import TrainedModel

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fedvision.types import State

NOTE = "adjustment.json"
"""What was done, and to which run's model."""
_CORRECTING = ("weighted", "ldam", "balanced-softmax", "logit-adjusted")
"""Losses that correct for class frequencies where they get the federation's counts."""


@dataclass(frozen=True, kw_only=True)
class Adjusted:
    """An adjusted model in its folder."""

    folder: Path
    """Holds ``model.json`` and ``model.safetensors``, as a run folder does, and ``adjustment.json``."""
    notices: tuple[str, ...]
    """What a person should know of it."""


def adjust(run: Path, out: Path, *, tau: float = 1.0, norms: bool = False) -> Adjusted:
    """Write a run's model with a head that is corrected for class frequencies.

    Args:
        run: The run folder, which stays as it is.
        out: The new folder.
        tau: Strength of the logit adjustment, >= 0; 0 leaves it out.
        norms: Whether the head's rows are brought to equal norm, before that.

    Raises:
        ConfigError: Nothing is to be done, ``tau`` is out of range, or the network has no linear head with a
            row and a bias for each class.
        RunFolderError: The run has no model of its own, its class counts are unknown, or the folder is there.
    """
    try:
        check_range(at_least=0, tau=tau)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    if not tau and not norms:
        raise ConfigError("--tau 0 changes nothing; name a larger one, or add --norms")
    trained = derived_model.take(run, out)
    description = trained.description
    counts = description.class_counts
    if tau and counts is None:
        raise RunFolderError(
            f"{run}: its clients reported no class counts, so --tau has no frequencies to go by; use --norms "
            "with --tau 0, or let clients share them (share.counts) in the next run"
        )
    head, scale = _linear_head(trained, tau=tau), description.probability_scale
    state = _adjusted(trained.network, head, counts or (), tau / scale, norms)
    note = {"run": str(run.absolute()), "tau": tau, "norms": norms, "sha256": description.sha256}
    derived_model.write(run, out, description, state, {NOTE: json_page(note)})
    return Adjusted(folder=out, notices=(*trained.notices, *_notices(run, description, tau)))


def balanced_bias(counts: tuple[int, ...], tau: float) -> torch.Tensor:
    """Return what logit adjustment adds to the logits: ``-tau log p_c``, float64 [C].

    Args:
        counts: Training images of each class [C]; none counts as one.
        tau: Strength.
    """
    import torch

    images = torch.tensor(counts, dtype=torch.float64).clamp(min=1)
    return -tau * (images / images.sum()).log()


def equal_norms(weight: torch.Tensor) -> torch.Tensor:
    """Return rows [C, D] of the mean of their norms; a row of zeros stays."""
    import torch

    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    return torch.where(norms > 0, weight * (norms.mean() / norms), weight)


def _linear_head(trained: TrainedModel, *, tau: float) -> nn.Linear:
    """Return a network's head.

    Raises:
        ConfigError: It is not linear with a row for each class, or has no bias where one is needed.
    """
    from torch import nn

    from fedvision.models.base import halves

    network, classes = halves(trained.network, "fedvision adjust"), len(trained.description.classes)
    head, where = network.head, f"{trained.path}: adjust corrects a linear head"
    if trained.description.task.use != "classification":
        raise ConfigError(
            f"{where} of one label an image, not of [task] use = {trained.description.task.use!r}"
        )
    if not isinstance(head, nn.Linear) or head.out_features != classes:
        raise ConfigError(f"{where} with a row for each class, and this one's is a {type(head).__name__}")
    if tau and head.bias is None:
        raise ConfigError(f"{where} by its bias, and this one has none; use --norms with --tau 0")
    return head


def _adjusted(network: nn.Module, head: nn.Linear, counts: tuple[int, ...], tau: float, norms: bool) -> State:
    """Return all tensors of a network, those of its head corrected."""
    import torch

    from fedvision.models.state import get_state

    state = get_state(network, tuple(network.state_dict()))
    with torch.no_grad():
        if norms:
            state["head.weight"] = equal_norms(head.weight.double()).to(head.weight.dtype)
        if head.bias is not None:
            bias = torch.zeros_like(head.bias, dtype=torch.float64) if norms else head.bias.double()
            shift = balanced_bias(counts, tau) if tau else torch.zeros_like(bias)
            state["head.bias"] = (bias + shift).to(head.bias.dtype)
    return state


def _notices(run: Path, description: ModelDescription, tau: float) -> list[str]:
    """Return what a person should know: classes without images, and a loss that corrects already."""
    found: list[str] = []
    if not tau:
        return found
    counted = zip(description.classes, description.class_counts or (), strict=True)
    vacant = [name for name, images in counted if images < 1]
    if vacant:
        found.append(f"no client has images of {listed(vacant)}, which count as one image each")
    path = run / "config.toml"
    loss = ExperimentConfig.load(path).loss if path.is_file() else None
    if loss is not None and loss.prior == "global" and loss.use in _CORRECTING:
        found.append(
            f"the run's loss, {loss.use!r} with loss.prior = 'global', corrects for class frequencies "
            "already; --tau corrects a second time, so measure both models"
        )
    return found
