"""CCVR: moments by hand and against NumPy, the draws' distribution, and a head that is mended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvision.algorithms.base import ServerContext
from fedvision.algorithms.ccvr import CCVR, draw_features, feature_moments, gaussian
from fedvision.config import TransformConfig
from fedvision.data.shards import Shard
from fedvision.data.transforms import prepare
from fedvision.errors import ConfigError, RunError
from fedvision.models.base import ImageModel
from fedvision.models.meta import model_with
from fedvision.tasks.classification import Classification
from fedvision.training.forward import ForwardSettings
from fedvision.training.statistics import LocalData
from fedvision.types import State

CLASSES, SIDE = 3, 2


def _settings() -> ForwardSettings:
    return ForwardSettings(
        task=Classification(), transform=prepare(TransformConfig(), 1), device=torch.device("cpu")
    )


def _data(labels: list[int], seed: int = 0, batch_size: int = 2) -> LocalData:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(labels), SIDE, SIDE, 1), np.uint8)
    shard = Shard(images=images, labels=np.array(labels), indices=np.arange(len(labels)))
    return LocalData(shard=shard, settings=_settings(), num_classes=CLASSES, batch_size=batch_size)


def _model() -> ImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return ImageModel(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES)).eval()


def _moments_of(*, model: nn.Module, data: LocalData) -> dict[str, torch.Tensor]:
    return feature_moments(model=model, data=replace(data, model=model))


def _features(data: LocalData) -> tuple[np.ndarray, np.ndarray]:
    batches = list(data.batches())
    return torch.cat([x.flatten(1) for x, _ in batches]).double().numpy(), data.shard.labels


def test_moments_pool_to_numpys_means_and_covariances() -> None:
    """Two clients' sums together give the moments of all their features: the paper's pooled ones."""
    parts = [_data([0, 0, 1, 0, 1, 1, 1]), _data([1, 0, 0, 1, 1], seed=1)]
    found = [_moments_of(model=_model(), data=part) for part in parts]
    pooled = {name: found[0][name].double() + found[1][name].double() for name in found[0]}
    features, labels = (np.concatenate(both) for both in zip(*map(_features, parts), strict=True))
    for label in (0, 1):
        mean, covariance = gaussian(pooled, label)
        own = features[labels == label]
        np.testing.assert_allclose(mean.numpy(), own.mean(0), rtol=1e-12)
        np.testing.assert_allclose(covariance.numpy(), np.cov(own.T), rtol=1e-9, atol=1e-12)
    assert pooled["count"].tolist() == [5.0, 7.0, 0.0]


def test_the_size_of_a_batch_does_not_change_moments() -> None:
    one, all_at_once = (
        _moments_of(model=_model(), data=_data([0, 1, 2, 2, 1, 0], batch_size=b)) for b in (1, 6)
    )
    for name in one:
        torch.testing.assert_close(one[name], all_at_once[name], rtol=1e-12, atol=1e-12)


def test_moments_need_a_backbone_that_is_not_too_wide() -> None:
    with pytest.raises(ConfigError, match="use = 'ccvr' needs a network of backbone and head"):
        _moments_of(model=nn.Flatten(), data=_data([0, 1]))
    several = _data([0, 1])
    several = replace(several, shard=replace(several.shard, labels=np.eye(2, CLASSES, dtype=np.uint8)))
    with pytest.raises(ConfigError, match="needs one label an image"):
        _moments_of(model=_model(), data=several)
    wide = ImageModel(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 4000)), nn.Linear(4000, CLASSES))
    with pytest.raises(ConfigError, match="use a network with fewer features"):
        _moments_of(model=wide, data=_data([0, 1]))


def _moments(mean: torch.Tensor, covariance: torch.Tensor, count: float) -> State:
    outer = (count - 1) * covariance + count * torch.outer(mean, mean)
    return {"count": torch.tensor([count]), "sum": (count * mean)[None], "outer": outer[None]}


def test_drawn_features_have_the_classs_mean_and_covariance() -> None:
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    moments = _moments(mean, root @ root.T, 50.0)
    features, labels = draw_features(moments, 40_000, torch.Generator().manual_seed(1))
    assert labels.tolist() == [0] * 40_000
    torch.testing.assert_close(features.double().mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(features.double().T), root @ root.T, rtol=0, atol=0.03)


def test_drawn_features_follow_the_last_bit_of_the_moments() -> None:
    """Equal eigenvalues and eigenvectors of either sign: neither may decide what is drawn."""
    covariance = torch.diag(torch.tensor([1.0, 1.0, 0.5, 0.0], dtype=torch.float64))
    tilt = 1e-12 * torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = [
        draw_features(
            _moments(torch.ones(4, dtype=torch.float64), one, 50.0), 100, torch.Generator().manual_seed(1)
        )[0]
        for one in (covariance, covariance + tilt + tilt.T)
    ]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=1e-4)


def test_a_class_of_one_image_is_its_mean_and_one_of_none_is_not_drawn() -> None:
    moments = {
        "count": torch.tensor([1.0, 0.0]),
        "sum": torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64),
        "outer": torch.zeros(2, 2, 2, dtype=torch.float64),
    }
    features, labels = draw_features(moments, 5, torch.Generator().manual_seed(1))
    assert labels.tolist() == [0] * 5
    assert torch.equal(features, torch.tensor([[3.0, 4.0]]).expand(5, 2))


def _context(model: nn.Module, **changes: Any) -> ServerContext:
    """Classes at the corners of a square's half, far apart: a head can separate them exactly."""
    centres = 4 * torch.eye(CLASSES, SIDE * SIDE, dtype=torch.float64)
    parts = [_moments(centre, 0.01 * torch.eye(4, dtype=torch.float64), 20.0) for centre in centres]
    statistic = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    context = ServerContext(
        round=2,
        rounds=2,
        answers=(statistic,),
        class_counts=None,
        make_model=lambda state: model_with(model, state),
        generator=torch.Generator().manual_seed(5),
    )
    return replace(context, **changes)


def test_refine_trains_the_head_and_nothing_else() -> None:
    model = ImageModel(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), nn.Linear(4, CLASSES))
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    refined = CCVR(steps=200, lr=0.1).refine(state, _context(model))
    assert refined.keys() == state.keys()
    assert all(torch.equal(refined[name], before[name]) for name in state if name.startswith("backbone"))
    assert all(torch.equal(state[name], before[name]) for name in state), "the given state was changed"
    weight, bias = refined["head.weight"], refined["head.bias"]
    assert (4 * weight.T[:CLASSES] + bias).argmax(1).tolist() == list(range(CLASSES))
    again = CCVR(steps=200, lr=0.1).refine(state, _context(model))
    assert all(torch.equal(refined[name], again[name]) for name in refined)


def test_without_moments_the_model_stays() -> None:
    model = _model()
    state = dict(model.state_dict())
    assert CCVR().refine(state, _context(model, answers=())) is state


def test_a_head_that_stays_on_the_clients_is_refused() -> None:
    model = _model()
    with pytest.raises(RunError, match=r"'head\.weight' stays on the clients"):
        CCVR().refine({}, _context(model))


def test_moments_are_queried_after_the_last_round_and_at_an_interval() -> None:
    queried = [round for round in range(1, 8) if CCVR().query(round, 7, ())]
    assert queried == [7]
    queried = [round for round in range(1, 8) if CCVR(every=3).query(round, 7, ())]
    assert queried == [3, 6, 7]
    query = CCVR().query(7, 7, ())
    assert query is not None
    assert query.use == "feature-moments"
    assert CCVR().query(7, 7, ({"count": np.ones(2)},)) is None, "one answer is all it needs"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"samples": 0}, "samples must be >= 1"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"every": -1}, "every must be"),
    ],
)
def test_arguments_out_of_range(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CCVR(**args)
