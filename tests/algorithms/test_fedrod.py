"""FedRoD: both losses by hand, the generic predictor as FedAvg's, and who measures what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from fedvision import registry, simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedrod import FedRoD, FedRoDClient
from fedvision.data.partition.client_shards import ClientShards
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.losses.calibrated import balanced_softmax
from fedvision.losses.logits import sharpened
from fedvision.models.base import ImageModel
from fedvision.models.personalized_heads import PersonalizedHead
from fedvision.models.state import load_state
from fedvision.reporting.run_data import read_facts
from fedvision.trained_model import load
from fedvision.training.blended_loss import BlendedLoss
from fedvision.types import PluginSpec, TrainRequest
from tests.experiments import tiny

MODEL: dict[str, Any] = {"use": "cnn", "width": 4, "dense": 16, "head": "personalized"}
PERSONAL = {"personal": ["head.personal.*"]}
FEDROD: dict[str, Any] = {
    "strategy": {"use": "fedrod"},
    "model": MODEL | PERSONAL,
    "loss": {"use": "balanced-softmax"},
}

LOSSES = [name for name, loss in registry.BUILTINS["loss"].items() if "classification" in loss.tasks]


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _model() -> ImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
        model = ImageModel(backbone, PersonalizedHead(in_features=5, num_classes=4))
        for parameter in model.head.personal.parameters():
            nn.init.normal_(parameter)
        return model


def _begun(model: nn.Module) -> FedRoDClient:
    algorithm = FedRoDClient()
    state = {name: tensor for name, tensor in model.state_dict().items() if "personal" not in name}
    request = TrainRequest(round=1, client=3, state=state, own_counts=(1, 1, 0, 0))
    algorithm.begin(model, dict(model.named_parameters()), request, {})
    return algorithm


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, generator=generator), torch.randint(4, (6,), generator=generator)


def test_the_loss_is_the_generic_ones_and_the_plain_one_of_both_heads_together() -> None:
    model = _model()
    x, labels = _batch()
    task_loss = balanced_softmax(torch.tensor([8, 4, 2, 0]))
    f = model.backbone(x)
    generic = f @ model.head.weight.T + model.head.bias
    own = f @ model.head.personal.weight.T + model.head.personal.bias
    prior = torch.tensor([8.0, 4.0, 2.0, 1.0]).log()
    expected = _cross_entropy(generic + prior, labels) + _cross_entropy(generic + own, labels)
    torch.testing.assert_close(_begun(model).loss(model, x, labels, task_loss), expected)


def test_each_loss_trains_its_own_part_alone() -> None:
    x, labels = _batch()
    model, other = _model(), _model()
    _begun(model).loss(model, x, labels, _cross_entropy).mean().backward()
    _cross_entropy(other.head.generic(other.backbone(x)), labels).mean().backward()
    for name in ("backbone.0.weight", "backbone.0.bias", "head.weight", "head.bias"):
        assert torch.equal(model.get_parameter(name).grad, other.get_parameter(name).grad)
    fixed = other.backbone(x).detach()
    both = other.head.generic(fixed).detach() + other.head.personal(fixed)
    other.zero_grad()
    _cross_entropy(both, labels).mean().backward()
    torch.testing.assert_close(model.head.personal.weight.grad, other.head.personal.weight.grad)


def test_the_own_heads_loss_has_the_scale_and_the_blend_of_the_tasks() -> None:
    def half(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 0.0 * logits.sum(1)

    model = _model()
    x, labels = _batch()
    blended = BlendedLoss(sharpened(half, 3.0), labels.flip(0), 0.75)
    f = model.backbone(x)
    z = 3.0 * (model.head.generic(f) + model.head.personal(f))
    expected = 0.75 * _cross_entropy(z, labels) + 0.25 * _cross_entropy(z, labels.flip(0))
    torch.testing.assert_close(_begun(model).loss(model, x, labels, blended), expected)


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


def test_the_generic_predictor_is_fedavgs_to_the_bit() -> None:
    """FedAvg of the same network whose own parts stay at zero."""
    loss = {"use": "balanced-softmax"}
    own = simulate(tiny(rounds=3, **FEDROD)).state
    other = simulate(tiny(rounds=3, loss=loss, model=MODEL | {"frozen": ["head.personal.*"]})).state
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in other)


def test_the_server_measures_the_generic_and_clients_their_own_predictor(tmp_path: Path) -> None:
    config = tiny(rounds=3, evaluation={"holdout": 0.3}, **FEDROD)
    result = simulate(config, out=tmp_path / "run")
    experiment = Experiment.build(config)
    last, shards = result.rounds[-1], ClientShards(experiment.dataset.train, experiment.split)
    assert load(tmp_path / "run").evaluate(experiment.dataset).scores["accuracy"] == pytest.approx(
        last["server"]["scores"]["accuracy"]
    )
    right, tested = 0, 0
    for client in range(5):
        (newest,) = sorted((tmp_path / f"run/clients/000000/{client:09d}").glob("round-*3.safetensors"))
        own = {name.removeprefix("personal/"): tensor for name, tensor in load_file(newest).items()}
        assert own.keys() == {"head.personal.weight", "head.personal.bias"}
        assert own["head.personal.weight"].abs().max() > 1e-3
        model, shard = Experiment.build(config).model.eval(), shards.test(client)
        load_state(model, {**result.state, **own})
        x = (torch.from_numpy(shard.images[shard.indices]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        right += int((model(x).argmax(1).numpy() == shard.labels[shard.indices]).sum())
        tested += len(shard)
    assert last["local"]["scores"]["accuracy"] == pytest.approx(right / tested)
    saved = load_file(tmp_path / "run/model.safetensors")
    assert not saved["head.personal.weight"].any()
    facts = read_facts(result.folder)
    views = {view: facts.measurement(view) for view in ("server", "local")}
    assert {view: found.personal for view, found in views.items() if found} == {
        "server": False,
        "local": True,
    }


@pytest.mark.slow
def test_own_heads_help_clients_of_few_classes() -> None:
    """Of two classes a client, the own predictor knows which."""
    split = {"use": "shards", "clients": 5, "classes_per_client": 2}
    tables: dict[str, Any] = {"rounds": 3, "partition": split, "evaluation": {"holdout": 0.3}}
    own = simulate(tiny(**tables, **FEDROD)).rounds[-1]["local"]["scores"]["accuracy"]
    none = simulate(tiny(**tables, loss=FEDROD["loss"])).rounds[-1]["local"]["scores"]["accuracy"]
    assert own > none + 0.2


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (MODEL | PERSONAL | {"head": "realigned"}, r"needs a head .* set model\.head = 'personalized'"),
        ({"use": "cnn", "width": 4}, r"is a Linear; set model\.head = 'personalized' and model\.personal"),
        (MODEL, r"train and keep 'head\.personal\.weight'; set model\.personal = \['head\.personal\.\*'\]"),
        (MODEL | {"frozen": ["head.personal.*"]}, r"train and keep 'head\.personal\.weight'"),
        (MODEL | {"personal": ["head.*"]}, r"averages the head .* 'head\.weight' is not shared"),
        ({"use": "tests.algorithms.test_moon:plain"}, "needs a network of backbone and head"),
    ],
)
def test_networks_that_do_not_fit_are_refused(model: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment.build(tiny(**FEDROD | {"model": model}))


def test_several_labels_are_refused() -> None:
    model = _model()
    with pytest.raises(ClientError, match=r"client 3, training: FedRoD has .* it needs one label an image"):
        _begun(model).loss(model, torch.randn(2, 3), torch.zeros(2, 4), _cross_entropy)


def test_a_notice_names_the_papers_loss() -> None:
    def told(loss: dict[str, str]) -> bool:
        notices = Experiment.build(tiny(**FEDROD | {"loss": loss})).notices()
        return any("balanced-softmax" in notice for notice in notices)

    assert told({"use": "cross-entropy"})
    assert not told({"use": "logit-adjusted"})


def test_where_both_parts_are_trained_as_one_the_server_has_no_model() -> None:
    """With FedAvg the loss is that of the sum, as in FedPer."""
    for use, personal in (("fedavg", ("head.personal.weight", "head.personal.bias")), ("fedrod", ())):
        config = tiny(**FEDROD | {"strategy": {"use": use}})
        assert Experiment.build(config).personal == personal


def test_the_server_is_fedavgs() -> None:
    assert FedRoD.combine is FedAvg.combine
    assert FedRoD().configure(1, {}, 0) == FedAvg().configure(1, {}, 0)
