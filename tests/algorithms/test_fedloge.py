"""FedLoGe: the three losses by hand, what each trains, and the finished predictor's equal norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedvision import registry, simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedloge import FedLoGe, FedLoGeClient
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.losses.calibrated import balanced_softmax
from fedvision.models.base import ImageModel
from fedvision.models.personalized_heads import RealignedHead
from fedvision.models.state import load_state
from fedvision.trained_model import load
from fedvision.types import PluginSpec, TrainRequest
from tests.experiments import tiny

MODEL: dict[str, Any] = {"use": "cnn", "width": 4, "dense": 16, "head": "realigned"}
FEDLOGE: dict[str, Any] = {
    "strategy": {"use": "fedloge"},
    "model": MODEL | {"personal": ["head.personal.*"]},
}

LOSSES = [name for name, loss in registry.BUILTINS["loss"].items() if "classification" in loss.tasks]


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _model() -> ImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
        model = ImageModel(backbone, RealignedHead(in_features=5, num_classes=4, scale=2.0))
        for parameter in (*model.head.personal.parameters(), model.head.weight):
            nn.init.normal_(parameter)
        return model


def _begun(model: nn.Module) -> FedLoGeClient:
    algorithm = FedLoGeClient()
    state = {name: tensor for name, tensor in model.state_dict().items() if "personal" not in name}
    algorithm.begin(model, dict(model.named_parameters()), TrainRequest(round=1, client=3, state=state), {})
    return algorithm


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, generator=generator), torch.randint(4, (6,), generator=generator)


def test_the_loss_is_the_sum_of_three() -> None:
    model = _model()
    x, labels = _batch()
    f, head = model.backbone(x), model.head
    prior = torch.tensor([8.0, 4.0, 2.0, 1.0]).log()
    expected = (
        _cross_entropy(2.0 * f @ head.etf.T + prior, labels)
        + _cross_entropy(f @ head.weight.T + head.bias, labels)
        + _cross_entropy(f @ head.personal.weight.T + head.personal.bias, labels)
    )
    found = _begun(model).loss(model, x, labels, balanced_softmax(torch.tensor([8, 4, 2, 0])))
    torch.testing.assert_close(found, expected)


def test_the_frame_alone_trains_the_backbone_and_each_head_itself() -> None:
    x, labels = _batch()
    model, other = _model(), _model()
    _begun(model).loss(model, x, labels, _cross_entropy).mean().backward()
    _cross_entropy(other.head.fixed(other.backbone(x)), labels).mean().backward()
    assert torch.equal(model.backbone[0].weight.grad, other.backbone[0].weight.grad)
    still = other.backbone(x).detach()
    for part, logits in (("head", other.head.generic(still)), ("head.personal", other.head.personal(still))):
        _cross_entropy(logits, labels).mean().backward()
        mine, his = (one.get_parameter(f"{part}.weight").grad for one in (model, other))
        torch.testing.assert_close(mine, his)


@pytest.mark.slow
@pytest.mark.parametrize("use", LOSSES)
@given(counts=st.lists(st.integers(0, 50), min_size=4, max_size=4))
def test_any_loss_stays_finite_without_images_of_a_class(use: str, counts: list[int]) -> None:
    model = _model()
    x, labels = _batch()
    loss = registry.build("loss", PluginSpec(use=use), counts=torch.tensor(counts), round=1, rounds=2)
    losses = _begun(model).loss(model, x, labels, loss)
    losses.mean().backward()
    assert torch.isfinite(losses).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_head_and_a_frame_that_nobody_trains_leave_fedavg_to_the_bit() -> None:
    """The backbone is what FedAvg makes of a network that ends in the frame."""
    own = simulate(tiny(rounds=2, **FEDLOGE)).state
    plain = {"use": f"{__name__}:ending_in_the_frame"}
    other = simulate(tiny(rounds=2, model=plain)).state
    shared = {name for name in own if name.startswith("backbone.")}
    assert shared == {name for name in other if name.startswith("backbone.")}
    assert all(torch.equal(own[name], other[name]) for name in shared)


def ending_in_the_frame(*, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Return the network of ``MODEL`` whose logits are the frame's, with the experiment's seed."""
    from fedvision.models.cnn import cnn

    model = cnn(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=4, dense=16)
    head = RealignedHead(in_features=16, num_classes=num_classes, seed=3)
    fixed = nn.Linear(16, num_classes, bias=False)
    fixed.weight = nn.Parameter(head.etf.clone(), requires_grad=False)
    return ImageModel(model.backbone, fixed)


def test_the_finished_model_predicts_with_equal_norms(tmp_path: Path) -> None:
    config = tiny(rounds=3, evaluation={"holdout": 0.2}, **FEDLOGE)
    result = simulate(config, out=tmp_path / "run")
    experiment = Experiment.build(config)
    model = experiment.model.eval()
    load_state(model, result.state)
    norms = result.state["head.weight"].norm(dim=1)
    assert float(norms.max() / norms.min()) > 1.001
    test = experiment.dataset.test
    assert test is not None
    x = (torch.from_numpy(test.images.copy()).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    rows = result.state["head.weight"] / norms.unsqueeze(1) * norms.mean()
    with torch.no_grad():
        expected = (model.backbone(x) @ rows.T + result.state["head.bias"]).argmax(1).numpy()
    assert result.scores["accuracy"] == pytest.approx(float((expected == test.labels).mean()))
    loaded = load(tmp_path / "run").evaluate(experiment.dataset)
    assert loaded.scores["accuracy"] == pytest.approx(result.scores["accuracy"])


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (MODEL | {"head": "personalized", "personal": ["head.personal.*"]}, r"set model\.head = 'realigned'"),
        (MODEL, r"set model\.personal = \['head\.personal\.\*'\]"),
        ({"use": "tests.algorithms.test_moon:plain"}, "needs a network of backbone and head"),
    ],
)
def test_networks_that_do_not_fit_are_refused(model: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment.build(tiny(**FEDLOGE | {"model": model}))


def test_a_closed_form_does_not_write_a_head_that_realigns_its_rows() -> None:
    with pytest.raises(ConfigError, match=r"writes a linear head with a bias, .* RealignedHead; use another"):
        Experiment.build(tiny(rounds=1, strategy={"use": "closed-form"}, model=MODEL))


def test_several_labels_are_refused() -> None:
    model = _model()
    with pytest.raises(ClientError, match=r"client 3, training: FedLoGe has .* it needs one label an image"):
        _begun(model).loss(model, torch.randn(2, 3), torch.zeros(2, 4), _cross_entropy)


def test_the_server_is_fedavgs() -> None:
    assert FedLoGe.combine is FedAvg.combine
