"""Fed-GraB: the controller and the gradients by hand, which classes are rare, and what a client remembers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from fedvision import simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedgrab import Balancer, FedGraB, FedGraBClient, gain, rare_classes
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.models.base import ImageModel
from fedvision.training.blended_loss import BlendedLoss
from fedvision.types import ClientConfig, State, TrainRequest
from tests.experiments import tiny

GAINS = {"tail": 1.0, "kp": 10.0, "ki": 0.01, "kd": 0.1}


def _unused(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the method has a loss of its own")


def _model() -> ImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageModel(nn.Identity(), nn.Linear(3, 4))


def _begun(model: nn.Module, memory: State | None = None, **numbers: float) -> FedGraBClient:
    algorithm = FedGraBClient()
    request = TrainRequest(
        round=1,
        client=3,
        state={name: tensor.clone() for name, tensor in model.state_dict().items()},
        client_config=ClientConfig(numbers=GAINS | numbers),
    )
    algorithm.begin(model, dict(model.named_parameters()), request, memory or {})
    return algorithm


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, generator=generator), torch.randint(4, (6,), generator=generator)


def test_the_controller_by_hand() -> None:
    """Differences 2, then 5, then 5 of a class; the other one is not rare."""
    balancer = Balancer(10.0, 0.01, 0.1, torch.tensor([True, False]), {})
    assert balancer.weights().tolist() == [1.0, 1.0]
    out = 0.0
    errors = [0.0, 0.0, 2.0, 5.0, 5.0]
    for before, last, error in zip(errors, errors[1:], errors[2:], strict=False):
        new = torch.tensor([error - last, error - last])
        balancer.see(torch.zeros(2), new)
        out += 10.0 * (error - last) + 0.01 * error + 0.1 * (error - 2 * last + before)
        expected = (10 / 9) / (1 / 9 + math.exp(-0.05 * out))
        assert balancer.weights().tolist() == pytest.approx([expected, 1.0], rel=1e-5)


def test_the_output_is_kept_within_its_range() -> None:
    largest = (10 / 9) / (1 / 9 + math.exp(-5.0))
    balancer = Balancer(10.0, 0.01, 0.1, torch.tensor([True, True]), {})
    balancer.see(torch.tensor([0.0, 1e6]), torch.tensor([1e6, 0.0]))
    found = balancer.weights()
    assert found.tolist() == pytest.approx([largest, (10 / 9) / (1 / 9 + math.exp(5.0))], rel=1e-5)
    balancer.see(torch.tensor([5.0, 0.0]), torch.zeros(2))
    # From its limit it moves at once.
    assert float(balancer.weights()[0]) < largest


def test_the_weight_is_one_at_rest_and_rises() -> None:
    found = gain(torch.tensor([-100.0, -1.0, 0.0, 1.0, 100.0]))
    assert float(found[2]) == pytest.approx(1.0)
    assert (found.diff() > 0).all()


def test_the_classes_with_the_shortest_rows_are_rare() -> None:
    weight = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [6.0, 8.0]])
    assert rare_classes(weight, 0.5).tolist() == [False, True, True, False]
    assert rare_classes(weight, 0.3).tolist() == [False, True, True, False]
    assert rare_classes(weight, 0.25).tolist() == [False, True, False, False]
    assert rare_classes(weight, 0.0).tolist() == [False] * 4
    assert rare_classes(weight, 1.0).tolist() == [True] * 4
    assert rare_classes(torch.ones(10, 2), 0.3).sum() == 3


def test_the_loss_is_the_binary_one_with_positive_terms_weighted() -> None:
    model = _model()
    memory = {"negative": torch.tensor([1.0, 0.0, 3.0, 0.0]), "positive": torch.zeros(4)}
    algorithm = _begun(model, memory)
    x, labels = _batch()
    found = algorithm.loss(model, x, labels, _unused)
    error = torch.tensor([1.0, 0.0, 3.0, 0.0])
    weights = gain((10.0 + 0.01 + 0.1) * error)
    z, t = model(x), F.one_hot(labels, 4).float()
    terms = F.binary_cross_entropy_with_logits(z, t, reduction="none") * (1 + t * (weights - 1))
    torch.testing.assert_close(found, terms.sum(1))
    found.mean().backward()
    expected = (1 + t * (weights - 1)) * (z.sigmoid() - t) / 6
    torch.testing.assert_close(model.head.bias.grad, expected.sum(0).detach())
    kept = algorithm.finish(1, 0.1)[1]
    torch.testing.assert_close(kept["positive"], (expected.abs() * t).sum(0).detach())
    torch.testing.assert_close(kept["negative"], error + (expected.abs() * (1 - t)).sum(0).detach())


def test_mixup_blends_the_targets() -> None:
    model = _model()
    x, labels = _batch()
    blended = BlendedLoss(_unused, labels.flip(0), 0.75)
    found = _begun(model, tail=0.0).loss(model, x, labels, blended)
    own, other = (_begun(model, tail=0.0).loss(model, x, y, _unused) for y in (labels, labels.flip(0)))
    torch.testing.assert_close(found, 0.75 * own + 0.25 * other)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.sampled_from([1.0, 1e4, -1e4]))
def test_absent_classes_and_extreme_logits_stay_finite(classes: list[int], size: float) -> None:
    model = _model()
    algorithm = _begun(model)
    x = size * torch.ones(len(classes), 3)
    for _ in range(3):
        losses = algorithm.loss(model, x, torch.tensor(classes), _unused)
        losses.mean().backward()
        assert torch.isfinite(losses).all()
        assert torch.isfinite(model.head.weight.grad).all()
    assert all(torch.isfinite(tensor).all() for tensor in algorithm.finish(3, 0.1)[1].values())


def test_a_client_goes_on_with_what_it_got_and_keeps_it_when_the_model_is_lost() -> None:
    model = _model()
    x, labels = _batch()
    first = _begun(model)
    first.loss(model, x, labels, _unused)
    memory = first.finish(1, 0.1)[1]
    assert {tensor.shape for tensor in memory.values()} == {torch.Size([4])}
    again = _begun(model, memory)
    again.loss(model, x, labels, _unused)
    assert (again.finish(1, 0.1)[1]["negative"] > memory["negative"]).all()
    lost = _begun(model, memory)
    lost.loss(model, x, labels, _unused)
    with torch.no_grad():
        model.head.bias[0] = math.nan
    assert lost.finish(1, 0.1)[1] is memory


def test_nothing_balanced_is_fedavg_of_the_binary_loss_to_the_bit(tmp_path: Path) -> None:
    own = simulate(tiny(rounds=2, strategy={"use": "fedgrab", "tail": 0.0})).state
    other = simulate(tiny(rounds=2, loss={"use": f"{__name__}:binary"})).state
    assert all(torch.equal(own[name], other[name]) for name in other)


def binary(counts: torch.Tensor) -> Any:
    """Return the plain binary loss of each class, summed over classes."""

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        t = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        return (-t * F.logsigmoid(logits) - (1 - t) * F.logsigmoid(-logits)).sum(1)

    return loss


def test_rare_classes_get_larger_weights_in_a_run(tmp_path: Path) -> None:
    simulate(tiny(strategy={"use": "fedgrab"}), out=tmp_path / "run")
    for client in range(5):
        files = sorted((tmp_path / f"run/clients/000000/{client:09d}").glob("round-*.safetensors"))
        kept = load_file(files[-1])
        behind = kept["algorithm/negative"] - kept["algorithm/positive"]
        out = kept["algorithm/out"]
        assert float(torch.corrcoef(torch.stack([behind, out]))[0, 1]) > 0.9
        assert float(out.max()) > 1.0


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        (
            {"loss": {"use": "focal"}},
            r"has a loss of its own, .*\[loss\] use = 'focal' .* leave \[loss\] out",
        ),
        ({"model": {"use": "cnn", "width": 4, "dense": 16, "head": "etf"}}, "linear head, .* EtfHead; use"),
        (
            {"model": {"use": "cnn", "width": 4, "personal": ["head.*"]}},
            r"'head\.weight' is not shared; leave it out",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment.build(tiny(strategy={"use": "fedgrab"}, **tables))


def test_numbers_are_needed_and_several_labels_refused() -> None:
    model = _model()
    with pytest.raises(ClientError, match="client 3, training: Fed-GraB got no number 'tail'"):
        FedGraBClient().begin(model, {}, TrainRequest(round=1, client=3, state={}), {})
    with pytest.raises(ClientError, match="Fed-GraB needs one label an image"):
        _begun(model).loss(model, torch.randn(2, 3), torch.zeros(2, 4), _unused)


def test_the_server_is_fedavgs_and_sends_four_numbers() -> None:
    assert FedGraB.combine is FedAvg.combine
    sent = FedGraB(tail=0.5, kp=1.0, ki=0.2, kd=0.3).configure(1, {}, 0)
    assert dict(sent.numbers) == {"tail": 0.5, "kp": 1.0, "ki": 0.2, "kd": 0.3}
