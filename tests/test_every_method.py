"""Every strategy with every loss and every sampler, on clients that lack classes: all numbers stay finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedvision import simulate
from fedvision.errors import ConfigError
from tests import in_memory
from tests.experiments import tiny
from tests.in_memory import Federation, federation
from tests.methods import LOSSES, OWN_LOSS, PRIORS, SAMPLERS, STRATEGIES, TRAINING, tables

COUNTS = [(3, 0, 1, 0), (0, 4, 0, 0), (1, 0, 0, 0), (2, 1, 0, 0), (0, 0, 2, 0)]
"""Clients of two classes, of one, of a single image; nobody has an image of the last class."""
NOT_HERE = {
    "zero-shot": "its head is made of class embeddings, of which there are none without names",
    "fedbn": "batch norm cannot be trained on the single image that a client has",
}
"""Strategies that cannot run on these images, and why."""
SETTINGS = settings(max_examples=12)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on images like these."""
    folder = tmp_path_factory.mktemp("teacher")
    simulate(
        tiny(
            rounds=1,
            data={"use": f"{__name__}:images"},
            partition={"use": "iid", "clients": 2},
            model={"use": f"{in_memory.__name__}:network"},
        ),
        out=folder / "run",
    )
    return folder / "run"


def images() -> Any:
    """Return images of the same classes and size as those of the federations here."""
    return federation([(2, 2, 2, 2)]).dataset


def members(use: str, counts: Sequence[Sequence[int]], teacher: Path, **config: Any) -> Federation | None:
    """Return a federation with a strategy; None where the experiment is refused for its loss or sampler.

    A method that is a loss or a sampler of its own may refuse others, in a sentence that names their key.
    """
    own = tables(use, {"use": f"{in_memory.__name__}:network"}, teacher=teacher)
    try:
        return federation(counts, **own, **config)
    except ConfigError as error:
        text = str(error)
        of_both = any(key in text for key in ("loss.use", "[loss]", "training.sampler"))
        if not (of_both and config and "\n" not in text):
            raise
        return None


def assert_finite(found: Federation, rounds: int) -> None:
    """Play rounds; losses, gradients, what is sent and the model are finite."""
    before = found.state
    for round in range(1, rounds + 1):
        played = found.play(round)
        for update in played.updates:
            assert math.isfinite(update.loss)
            sent = [update.state, *update.tensors.values()]
            assert all(tensor.isfinite().all() for group in sent for tensor in group.values())
        assert all(gradient.isfinite().all() for gradient in played.gradients)
        assert all(tensor.isfinite().all() for tensor in played.state.values())
        assert {name: tensor.shape for name, tensor in played.state.items()} == {
            name: tensor.shape for name, tensor in before.items()
        }
    assert any(not torch.equal(found.state[name], before[name]) for name in before), "nobody learned anything"


def pairs() -> list[Any]:
    """Return a sampler for each loss, and the other samplers as what is slow."""
    return [
        pytest.param(loss, sampler, marks=() if first == 0 else pytest.mark.slow)
        for place, loss in enumerate(LOSSES)
        for first, sampler in enumerate(
            [*SAMPLERS[place % len(SAMPLERS) :], *SAMPLERS[: place % len(SAMPLERS)]]
        )
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "sampler"), pairs())
@pytest.mark.parametrize("use", [use for use in TRAINING if use not in NOT_HERE])
def test_every_loss_and_sampler_stays_finite_without_classes(
    use: str, loss: str, sampler: str, teacher: Path
) -> None:
    prior = PRIORS[(SAMPLERS.index(sampler) + LOSSES.index(loss)) % len(PRIORS)]
    config = {"loss": {"use": loss, "prior": prior}, "training": {**TRAINED, "sampler": sampler}}
    if found := members(use, COUNTS, teacher, **config):
        assert_finite(found, 2)


TRAINED = {"lr": 0.1, "batch_size": 3, "device": "cpu"}
_CLIENT = st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any)


@pytest.mark.slow
@pytest.mark.parametrize("use", sorted(set(STRATEGIES) - NOT_HERE.keys()))
@SETTINGS
@given(
    counts=st.lists(_CLIENT, min_size=5, max_size=5),
    loss=st.sampled_from(LOSSES),
    prior=st.sampled_from(PRIORS),
    sampler=st.sampled_from(SAMPLERS),
)
def test_any_counts_stay_finite(
    use: str, counts: list[list[int]], loss: str, prior: str, sampler: str, teacher: Path
) -> None:
    config: dict[str, Any] = {}
    if use in OWN_LOSS:
        loss = "cross-entropy"
    if use in TRAINING:
        config = {"loss": {"use": loss, "prior": prior}, "training": {**TRAINED, "sampler": sampler}}
    # The fourth class is the teacher's, and nobody's here.
    found = members(use, [(*row, 0) for row in counts], teacher, **config)
    assume(found is not None)
    assert found is not None
    assert_finite(found, 1)


def test_strategies_that_are_left_out_are_there() -> None:
    assert set(STRATEGIES) >= NOT_HERE.keys()
