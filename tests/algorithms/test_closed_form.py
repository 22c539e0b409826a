"""Heads in closed form: by hand, as scikit-learn has them, and the same for any division of the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge, RidgeClassifier
from torch import nn

from fedvision.aggregation.fixed_point import FixedPointSum, to_fixed_point
from fedvision.algorithms.base import Answer, ServerContext
from fedvision.algorithms.closed_form.heads import FeatureSums, in_whole_numbers, lda, ridge
from fedvision.algorithms.closed_form.strategy import CANDIDATES, ClosedForm, _macro_recall, _within_an_error
from fedvision.config import TransformConfig
from fedvision.data.shards import Shard
from fedvision.data.transforms import prepare
from fedvision.errors import ConfigError, RunError
from fedvision.models.base import ImageModel
from fedvision.models.meta import model_with
from fedvision.tasks.classification import Classification
from fedvision.training.forward import ForwardSettings
from fedvision.training.statistics import LocalData, compute_statistic
from fedvision.types import Query, State


def sums_of(steps: NDArray[np.int64], labels: NDArray[np.int64], weight: NDArray[np.int64]) -> FeatureSums:
    """Add up rounded features [N, D] the plain way."""
    classes, size = len(weight), steps.shape[1]
    by_class = np.zeros((classes, size), np.int64)
    np.add.at(by_class, labels, steps)
    product = np.einsum("n,ni,nj->ij", weight[labels], steps, steps)
    return FeatureSums(
        count=np.bincount(labels, minlength=classes),
        sum=by_class,
        product=product[np.triu_indices(size)],
        weight=weight,
    )


def drawn(counts: Sequence[int], size: int = 6, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return rounded features of overlapping classes, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = rng.normal(0, 100, (len(counts), size))
    return np.rint(centres[labels] + rng.normal(0, 128, (len(labels), size))).astype(np.int64), labels


def test_ridge_by_hand() -> None:
    """Two classes, three features, of which the third is always 0: x = 1 and 3 of class 0, -2 of class 1.

    Weights 1 and 2, scaled to the mean 1: 3/4, 3/2; lambda = 3 * 0.5. The weighted mean of the first feature
    is (3/4 (1 + 3) - 3/2 * 2) / 3 = 0, so G = 3/4 (1 + 9) + 3/2 * 4 = 13.5, B = [3, -3], V = B / 15, and
    b = [1/2, 1/2], the shares of the weight.
    """
    steps = np.array([[128, 0, 0], [384, 0, 0], [-256, 0, 0]])
    found = ridge(sums_of(steps, np.array([0, 0, 1]), np.array([1, 2])), 0.5)
    torch.testing.assert_close(found.weight, torch.tensor([[0.2, 0, 0], [-0.2, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(found.bias, torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_lda_by_hand() -> None:
    """First features 1 and 3 of one class, -3 and -1 of the other: means 2 and -2, S = diag(4 / 2, 0, 0).

    The mean variance is 2/3; shrunk by 1/2, S = diag(4/3, 1/3, 1/3). So W = [1.5, -1.5] on the first feature,
    and b = -2 * 1.5 / 2 = -1.5 for both.
    """
    steps = 128 * np.array([[1, 0, 0], [3, 0, 0], [-3, 0, 0], [-1, 0, 0]])
    found = lda(sums_of(steps, np.array([0, 0, 1, 1]), np.array([1, 1])), 0.5)
    torch.testing.assert_close(found.weight, torch.tensor([[1.5, 0, 0], [-1.5, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(found.bias, torch.tensor([-1.5, -1.5], dtype=torch.float64))


@pytest.mark.parametrize("weight", [(1, 1, 1), (8, 20, 160)])
def test_ridge_is_scikit_learns_with_sample_weights(weight: tuple[int, ...]) -> None:
    steps, labels = drawn([60, 25, 4])
    whole = np.array(weight)
    found = ridge(sums_of(steps, labels, whole), 0.2)
    own = whole[labels] * len(labels) / whole[labels].sum()
    x, penalty = steps / 128, 0.2 * len(labels)
    wanted = Ridge(alpha=penalty).fit(x, np.eye(3)[labels], sample_weight=own)
    np.testing.assert_allclose(found.weight.numpy(), wanted.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.bias.numpy(), wanted.intercept_, rtol=1e-9, atol=1e-12)
    classifier = RidgeClassifier(alpha=penalty).fit(x, labels, sample_weight=own)
    predicted = (x @ found.weight.numpy().T + found.bias.numpy()).argmax(1)
    assert np.array_equal(predicted, classifier.predict(x))
    assert np.mean(predicted == labels) > 0.6


def test_lda_is_scikit_learns_where_classes_are_of_one_size() -> None:
    """Its covariance divides by n, and this one by n - 1: all its logits are larger by the same factor."""
    steps, labels = drawn([30, 30, 30])
    found = lda(sums_of(steps, labels, np.array([8, 8, 8])), 0.3)
    x = steps / 128
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=[1 / 3] * 3).fit(x, labels)
    np.testing.assert_allclose(found.weight.numpy() * 30 / 29, other.coef_, rtol=1e-9)
    np.testing.assert_allclose(found.bias.numpy() * 30 / 29, other.intercept_ - np.log(1 / 3), rtol=1e-9)


def test_a_class_that_nobody_has_is_never_predicted() -> None:
    steps, labels = drawn([20, 0, 30])
    far = torch.from_numpy(np.random.default_rng(1).normal(0, 1000, (500, 6)))
    for head in (
        ridge(sums_of(steps, labels, np.array([8, 12, 8])), 0.3),
        lda(sums_of(steps, labels, np.array([8, 12, 8])), 0.3),
    ):
        logits = far @ head.weight.T + head.bias
        assert torch.isfinite(logits).all()
        assert not (logits.argmax(1) == 1).any()
        assert set(logits.argmax(1).tolist()) == {0, 2}


def test_one_image_is_enough_for_a_finite_head() -> None:
    sums = sums_of(np.array([[5, 0, -3]]), np.array([1]), np.array([8, 8]))
    for head in (ridge(sums, 0.3), lda(sums, 0.3)):
        assert torch.isfinite(head.weight).all()
        assert torch.isfinite(head.bias).all()


def test_macro_recall_is_over_the_classes_that_occur() -> None:
    """1 of 2 and 3 of 4 are right; nobody kept an image of the class in the middle."""
    confusion = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 3]])
    assert _macro_recall(confusion)[0] == pytest.approx((1 / 2 + 3 / 4) / 2)


# Clients and server together, without messages.

SIDE, CLASSES, FEATURES = 4, 3, 5


def model(head: nn.Module | None = None) -> ImageModel:
    generator = torch.Generator().manual_seed(3)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, FEATURES), nn.ReLU())
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, generator=generator)
    return ImageModel(backbone, head or nn.Linear(FEATURES, CLASSES)).eval()


def local_data(labels: Sequence[int] | NDArray[Any], seed: int = 0, held_out: int | None = None) -> LocalData:
    rng = np.random.default_rng(seed)
    found = np.asarray(labels)
    base = rng.integers(0, 128, (len(found), SIDE, SIDE, 1))
    images = (base + 40 * found.reshape(len(found), -1)[:, 0, None, None, None]).astype(np.uint8)
    shard = Shard(images=images, labels=found, indices=np.arange(len(found)))
    settings = ForwardSettings(
        task=Classification(), transform=prepare(TransformConfig(), 1), device=torch.device("cpu")
    )
    kept = None if held_out is None else shard.take(np.arange(held_out))
    return LocalData(shard=shard, settings=settings, num_classes=CLASSES, held_out=kept)


def ask(query: Query, network: nn.Module, parts: Sequence[LocalData]) -> Answer:
    total = FixedPointSum(query.bits)
    for part in parts:
        total.add(to_fixed_point(compute_statistic(query, network, part)))
    return total.total.values()


def solved(
    strategy: ClosedForm,
    parts: Sequence[LocalData],
    network: ImageModel | None = None,
    facts: dict[str, Any] | None = None,
) -> State:
    network = network or model()
    answers: list[Answer] = []
    while (query := strategy.query(1, 1, answers)) is not None:
        answers.append(ask(query, network, parts))
    return refined(strategy, answers, network, facts)


def refined(
    strategy: ClosedForm, answers: Sequence[Answer], network: ImageModel, facts: dict[str, Any] | None = None
) -> State:
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    context = ServerContext(
        round=1,
        rounds=1,
        answers=answers,
        class_counts=None,
        make_model=lambda state: model_with(network, state),
        generator=torch.Generator(),
        facts={} if facts is None else facts,
    )
    return strategy.refine(state, context)


def accuracy(state: State, data: LocalData) -> float:
    network = model_with(model(), state).eval()
    right = [(network(x).argmax(1) == labels).double().mean() for x, labels in data.batches()]
    return float(torch.stack(right).mean())


@pytest.mark.slow
@pytest.mark.parametrize("args", [{}, {"balance": 0.0}, {"head": "lda"}, {"head": "lda", "balance": 0.5}])
def test_the_head_has_the_same_bits_for_any_division(args: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    whole = local_data(rng.choice(CLASSES, 300, p=[0.7, 0.25, 0.05]))
    wanted = solved(ClosedForm(**args), [whole])
    assert accuracy(wanted, whole) > 0.6
    for clients in (2, 7, 300):
        owner = rng.integers(0, clients, 300)
        parts = [whole.of(whole.shard.take(np.nonzero(owner == one)[0])) for one in range(clients)]
        found = solved(ClosedForm(**args), [part for part in parts if len(part)])
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_only_the_head_changes_and_it_fits_the_features_as_they_are() -> None:
    """Ridge on unrounded, standardised features gives nearly the same logits."""
    whole = local_data(np.random.default_rng(6).integers(0, CLASSES, 400))
    network = model()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = solved(ClosedForm(balance=0.0, regularization=0.1), [whole], network)
    assert found.keys() == before.keys()
    for name, tensor in before.items():
        assert name.startswith("head.") or torch.equal(found[name], tensor)
        assert found[name].dtype == torch.float32
    with torch.no_grad():
        x = torch.cat([network.backbone(images) for images, _ in whole.batches()]).double()
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    wanted = Ridge(alpha=0.1 * 400).fit(standard.numpy(), np.eye(CLASSES)[whole.shard.labels])
    logits = x.float() @ found["head.weight"].T + found["head.bias"]
    np.testing.assert_allclose(logits.numpy(), wanted.predict(standard.numpy()), atol=5e-3)
    scaled = solved(ClosedForm(balance=0.0, regularization=0.1, scale=8.0), [whole], network)
    for name in ("head.weight", "head.bias"):
        assert torch.equal(scaled[name], 8 * found[name])


def test_balance_helps_the_rare_class() -> None:
    labels = np.repeat(np.arange(CLASSES), [400, 100, 8])
    rare = local_data(np.full(200, 2), seed=9)
    recalls = [accuracy(solved(ClosedForm(balance=t), [local_data(labels)]), rare) for t in (0.0, 1.0)]
    assert recalls[0] < recalls[1] - 0.2


@pytest.mark.parametrize("head", ["ridge", "lda"])
def test_auto_takes_the_largest_candidate_that_is_as_good_as_the_best(head: str) -> None:
    key = {"ridge": "regularization", "lda": "shrinkage"}[head]
    whole = local_data(np.random.default_rng(7).choice(CLASSES, 240, p=[0.6, 0.3, 0.1]), held_out=120)
    strategy = ClosedForm(head=head, **{key: "auto"})  # type: ignore[arg-type]
    facts: dict[str, Any] = {}
    found = solved(strategy, [whole], facts=facts)
    kept = whole.of(whole.held_out)  # type: ignore[arg-type]
    recalls, errors = [], []
    for value in CANDIDATES[head]:
        state = solved(ClosedForm(head=head, **{key: value}), [whole])  # type: ignore[arg-type]
        network = model_with(model(), state).eval()
        with torch.no_grad():
            predicted = torch.cat([network(x).argmax(1) for x, _ in kept.batches()]).numpy()
        truth = kept.shard.labels[kept.shard.indices]
        right = [predicted[truth == one] == one for one in range(CLASSES)]
        recalls.append(np.mean([np.mean(one) for one in right]))
        shares = [(one.sum() + 1) / (len(one) + 2) for one in right]
        errors.append(np.sqrt(sum(s * (1 - s) / len(one) for s, one in zip(shares, right, strict=True))) / 3)
    noted = list(facts["macro recall"].values())
    assert noted == pytest.approx(recalls, abs=0.02)
    limit = max(noted) - errors[int(np.argmax(noted))]
    good = [value for value, recall in zip(CANDIDATES[head], noted, strict=True) if recall >= limit]
    assert strategy.chosen == facts[key] == max(good)
    assert len(good) > 1
    by_hand = solved(ClosedForm(head=head, **{key: strategy.chosen}), [whole])  # type: ignore[arg-type]
    assert all(torch.equal(found[name], by_hand[name]) for name in found)


def test_a_candidate_counts_as_good_within_a_standard_error() -> None:
    """8 of 10 and 4 of 4: Laplace's shares are 3/4 and 5/6; the error is 0.1156."""
    best = np.array([[8, 2, 0], [0, 4, 0], [0, 0, 0]])
    recall, error = _macro_recall(best)
    assert recall == pytest.approx(0.9)
    assert error == pytest.approx(math.sqrt(3 / 160 + 5 / 144) / 2)
    candidates = (0.1, 0.3, 1.0, 3.0)
    for last, wanted in ((0.79, 3.0), (0.78, 1.0)):
        found = [(0.85, 0.5), (0.9, error), (0.8, 0.0), (last, 0.5)]
        assert _within_an_error(candidates, found) == wanted


def test_heads_in_whole_numbers_predict_what_they_do() -> None:
    steps, labels = drawn([40, 30, 20])
    heads = [ridge(sums_of(steps, labels, np.array([8, 11, 16])), value) for value in (0.01, 1.0)]
    found = in_whole_numbers(heads)
    assert (found["weight"].dtype, found["bias"].dtype) == (torch.int32, torch.int64)
    most = found["weight"].long().abs().max() * 1023 * 6 + found["bias"].abs().max()
    assert int(most) < 2**53
    x = torch.from_numpy(steps).double()
    for head, weight, bias in zip(heads, found["weight"], found["bias"], strict=True):
        exact = (x / 128 @ head.weight.T + head.bias).argmax(1)
        assert torch.equal((x @ weight.double().T + bias).argmax(1), exact)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"head": "svm"}, "head must be 'ridge' or 'lda', not 'svm'"),
        ({"balance": 1.5}, "balance must be"),
        ({"regularization": 0.0}, "regularization must be > 0"),
        ({"scale": 0.0}, "scale must be > 0"),
        ({"regularization": "cv"}, "regularization must be a number or 'auto', not 'cv'"),
        ({"head": "lda", "shrinkage": 1.5}, "shrinkage must be"),
        ({"shrinkage": 0.5}, "shrinkage is of head = 'lda', and head is 'ridge'; leave it out"),
        ({"head": "lda", "regularization": "auto"}, "regularization is of head = 'ridge'"),
    ],
)
def test_arguments_out_of_range(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClosedForm(**args)


def test_what_has_no_head_in_closed_form_is_refused() -> None:
    data = local_data([0, 1, 2, 1])
    with pytest.raises(
        ConfigError, match="writes a linear head with a bias, and this network's is a Sequential"
    ):
        solved(ClosedForm(), [data], model(nn.Sequential(nn.Linear(FEATURES, CLASSES))))
    with pytest.raises(ConfigError, match="is a Linear without one; use another network"):
        solved(ClosedForm(), [data], model(nn.Linear(FEATURES, CLASSES, bias=False)))
    maps = ImageModel(nn.Identity(), nn.Linear(FEATURES, CLASSES))
    with pytest.raises(ConfigError, match=r"the backbone makes \[1, 4, 4\] of it"):
        compute_statistic(Query(use="feature-sums"), maps, data)
    several = replace(data, shard=replace(data.shard, labels=np.eye(4, CLASSES, dtype=np.uint8)))
    with pytest.raises(ConfigError, match="needs one label an image"):
        compute_statistic(Query(use="feature-sums"), model(), several)
    with pytest.raises(ConfigError, match="needs 'mean' of the query"):
        compute_statistic(Query(use="weighted-products"), model(), data)


def test_auto_needs_images_out_of_training() -> None:
    with pytest.raises(ConfigError, match=r"set evaluation\.holdout > 0"):
        solved(ClosedForm(regularization="auto"), [local_data([0, 1, 2, 1])])
    with pytest.raises(RunError, match="no client that answered keeps images out of training"):
        solved(ClosedForm(regularization="auto"), [local_data([0, 1, 2, 1], held_out=0)])


def test_products_of_other_images_than_were_counted_are_refused() -> None:
    strategy, network = ClosedForm(), model()
    few, many = local_data([0, 1, 2]), local_data([0, 1, 2, 2], seed=1)
    first = ask(Query(use="feature-sums"), network, [few])
    query = strategy.query(1, 1, [first])
    assert query is not None
    answers = [first, ask(query, network, [many])]
    with pytest.raises(RunError, match="products rest on other images than their counts"):
        refined(strategy, answers, network)
