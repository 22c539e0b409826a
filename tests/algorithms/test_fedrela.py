"""FedReLa: scores and rates by hand, labels that are changed once and kept, and FedAvg without."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedvision import simulate
from fedvision.algorithms.fedrela import FedReLa, FedReLaClient, rates_of, reallocate, standardised
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.training.client_algorithm import unstackable_reason
from fedvision.types import State, TrainRequest
from tests.experiments import digits_of_several_labels, several_labels, tiny


def test_scores_by_hand() -> None:
    """Predictions 0.2 and 0.4 of one label have mean 0.3 and deviation 0.1; one alone has the score 0."""
    predicted = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]], dtype=torch.float64)
    found = standardised(predicted, torch.tensor([0, 0, 1]))
    wanted = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted)


def test_rates_by_hand() -> None:
    """A third of three images is one: the threshold of a class is its second largest score."""
    z = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]], dtype=torch.float64)
    labels, counts = torch.tensor([0, 0, 1]), torch.tensor([2, 1])
    found = rates_of(z, labels, counts, 1 / 3)
    assert found[1, 1].item() == pytest.approx(math.tanh(3.0 - 2.0))
    assert found[0, 1].item() < 0, "below the threshold"
    assert found[2].tolist() == [0.0, 0.0], "a rare label stays"
    assert found[:, 0].tolist() == [0.0, 0.0, 0.0], "nothing gets a more frequent label"
    assert not rates_of(z, labels, torch.tensor([2, 2]), 1 / 3).any(), "equal counts: nothing is rarer"
    assert bool((rates_of(z, labels, counts, 0.0) <= 0).all())


def test_an_image_gets_the_label_of_the_largest_rate() -> None:
    """Image 0 of the frequent class stands out in both rarer ones, most in class 2, and rates are near 1."""
    predicted = torch.full((40, 3), 0.1, dtype=torch.float64)
    predicted[:, 0] = 0.8
    predicted[0] = torch.tensor([0.1, 0.4, 0.5])
    labels = torch.zeros(40, dtype=torch.int64)
    counts, source = torch.tensor([40, 0, 0]), torch.Generator().manual_seed(0)
    found = reallocate(predicted, labels, counts, None, 0.05, source)
    assert found[0].item() in (1, 2)
    assert not found[1:].any()
    known = torch.tensor([40, 5, 0])
    assert reallocate(predicted, labels, counts, known, 0.05, source)[0].item() == 1, "nobody has class 2"


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(0, 2**16),
    st.sampled_from([0, 0.1, 0.9]),
)
def test_labels_only_become_rarer_and_known_ones(labels: list[int], seed: int, share: float) -> None:
    own, source = torch.tensor(labels), torch.Generator().manual_seed(seed)
    counts = torch.bincount(own, minlength=4)
    known = counts + torch.tensor([0, 0, 1, 0])
    predicted = torch.rand((len(own), 4), generator=source, dtype=torch.float64).softmax(dim=1)
    found = reallocate(predicted, own, counts, known, share, source)
    changed = found != own
    assert bool((counts[found[changed]] < counts[own[changed]]).all())
    assert bool((known[found] > 0).all())
    assert share > 0 or not changed.any()
    assert bool(torch.isfinite(rates_of(standardised(predicted, own), own, counts, share)).all())


class Fixed(nn.Module):
    """A network whose logits are the images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _half(memory: State, *, round: int = 3, images: int = 4, **changes: Any) -> FedReLaClient:
    own = FedReLa(**({"share": 0.5, "warmup": 2} | changes))
    request = TrainRequest(
        round=round, client=1, state={}, client_config=own.configure(round, {}, 1), own_counts=(images, 0)
    )
    half = FedReLaClient()
    half.begin(Fixed(), {}, request, memory)
    half.generator = torch.Generator().manual_seed(5)
    return half


def _batches() -> Any:
    x = torch.tensor([[9.0, 0.0], [9.0, 0.1], [9.0, 0.2], [0.0, 9.0]])
    return iter([(x[:3], torch.zeros(3).long()), (x[3:], torch.zeros(1).long())])


def _surveyed(half: FedReLaClient, batches: Any) -> torch.Tensor | None:
    half.survey(Fixed(), batches)
    return half.labels


def test_labels_are_changed_after_the_warm_up_and_kept() -> None:
    assert _surveyed(_half({}, round=2), _batches()) is None
    assert _surveyed(_half({}, share=0.0), _batches()) is None
    half = _half({})
    new = _surveyed(half, _batches())
    assert new is not None
    assert new[:2].tolist() == [0, 0]
    groups, memory = half.finish(1, 0.1)
    assert groups == {}
    assert torch.equal(memory["labels"], new)
    kept = {"labels": torch.tensor([1, 0, 1, 0])}
    again = _half(kept, round=7)
    assert _surveyed(again, iter(())) is kept["labels"]
    assert again.finish(1, 0.1)[1].keys() == {"labels"}
    other = _surveyed(_half({"labels": torch.tensor([1, 1, 1])}), _batches())
    assert other is not None
    assert len(other) == 4, "the client's images are others than when it relabelled"


def test_a_request_without_counts_or_numbers_is_refused() -> None:
    sent = FedReLa().configure(1, {}, 0)
    with pytest.raises(ClientError, match="no class counts"):
        FedReLaClient().begin(Fixed(), {}, TrainRequest(round=1, client=0, state={}, client_config=sent), {})
    with pytest.raises(ClientError, match="no number 'share'"):
        FedReLaClient().begin(Fixed(), {}, TrainRequest(round=1, client=0, state={}, own_counts=(1,)), {})


@pytest.mark.slow
def test_without_a_share_it_is_fedavg_to_the_bit(tmp_path: Path) -> None:
    plain = simulate(tiny(), out=tmp_path / "fedavg")
    off = simulate(tiny(strategy={"use": "fedrela", "share": 0.0}), out=tmp_path / "off")
    late = simulate(tiny(strategy={"use": "fedrela", "share": 0.3, "warmup": 2}), out=tmp_path / "late")
    assert all(torch.equal(tensor, off.state[name]) for name, tensor in plain.state.items())
    assert any(not torch.equal(tensor, late.state[name]) for name, tensor in plain.state.items())
    server = [record["server"] for record in late.rounds]
    assert server[:2] == [record["server"] for record in plain.rounds[:2]]
    assert server[2] != plain.rounds[2]["server"]


def test_what_does_not_fit_is_refused_before_the_run(tmp_path: Path) -> None:
    several = several_labels(digits_of_several_labels(tmp_path))
    with pytest.raises(ConfigError, match="exchanges the label of an image"):
        Experiment.build(tiny(strategy={"use": "fedrela", "warmup": 1}, **several))
    with pytest.raises(ConfigError, match=r"strategy\.warmup = 3 leaves no round of 3"):
        Experiment.build(tiny(strategy={"use": "fedrela", "warmup": 3}))
    assert "goes through a client's images" in (unstackable_reason(FedReLaClient) or "")
