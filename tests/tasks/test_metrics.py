"""Metrics: equal to scikit-learn on pooled predictions, and NaN where no image contributes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import gmean
from sklearn import metrics as reference

from fedvision import registry
from fedvision.tasks import metrics
from fedvision.tasks.classification import Classification
from fedvision.tasks.confusion import ConfusionCounts

# Rows true: class 0 has 4 images, class 1 has 2, class 2 none, class 3 has 4 and is never predicted.
HAND = np.array([[3, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 2, 1, 0]])


@st.composite
def predictions(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Draw labels [N], predictions [N] and C; classes are often absent."""
    classes = draw(st.integers(2, 6))
    one = st.integers(0, classes - 1)
    pairs = draw(st.lists(st.tuples(one, one), min_size=1, max_size=40))
    labels, predicted = np.array(pairs, dtype=np.int64).T
    return labels, predicted, classes


def _reference(score: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call scikit-learn, which warns where a class is absent or a figure undefined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return score(*args, **kwargs)


@pytest.mark.slow
@settings(max_examples=60)
@given(predictions())
def test_figures_equal_scikit_learns(drawn: tuple[NDArray[np.int64], NDArray[np.int64], int]) -> None:
    labels, predicted, classes = drawn
    counts = ConfusionCounts.from_predictions(labels, predicted, classes)
    names = range(classes)
    assert (counts.matrix() == reference.confusion_matrix(labels, predicted, labels=names)).all()
    same: dict[str, tuple[Any, Any]] = {
        "accuracy": (metrics.accuracy(counts), reference.accuracy_score(labels, predicted)),
        "balanced": (
            metrics.balanced_accuracy(counts),
            _reference(reference.balanced_accuracy_score, labels, predicted),
        ),
        "macro F1": (
            metrics.macro_f1(counts),
            reference.f1_score(labels, predicted, average="macro", zero_division=0),
        ),
        "kappa": (metrics.kappa(counts), _reference(reference.cohen_kappa_score, labels, predicted)),
        "recall": (
            metrics.recall(counts),
            reference.recall_score(labels, predicted, labels=names, average=None, zero_division=np.nan),
        ),
        "F1": (
            metrics.f1(counts),
            reference.f1_score(labels, predicted, labels=names, average=None, zero_division=np.nan),
        ),
    }
    for name, (ours, theirs) in same.items():
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.slow
@settings(max_examples=100)
@given(predictions())
def test_precision_equals_scikit_learns_where_a_class_occurs(
    drawn: tuple[NDArray[np.int64], NDArray[np.int64], int],
) -> None:
    labels, predicted, classes = drawn
    ours = metrics.precision(ConfusionCounts.from_predictions(labels, predicted, classes))
    theirs = reference.precision_score(
        labels, predicted, labels=range(classes), average=None, zero_division=0
    )
    occurs = np.isin(range(classes), [*labels, *predicted])
    np.testing.assert_allclose(ours[occurs], theirs[occurs], rtol=0, atol=1e-9)
    assert np.isnan(ours[~occurs]).all()


@settings(max_examples=50)
@given(predictions())
def test_geometric_mean_equals_scipys(drawn: tuple[NDArray[np.int64], NDArray[np.int64], int]) -> None:
    counts = ConfusionCounts.from_predictions(*drawn)
    with np.errstate(divide="ignore"):
        expected = gmean(metrics.recall(counts), nan_policy="omit")
    assert metrics.geometric_mean(counts) == pytest.approx(float(expected), abs=1e-12)


def test_geometric_mean_of_many_small_recalls_does_not_vanish() -> None:
    confusion = np.full((400, 400), 1)
    assert metrics.geometric_mean(confusion) == pytest.approx(1 / 400)


def test_classes_without_images_by_hand() -> None:
    np.testing.assert_allclose(metrics.recall(HAND), [0.75, 0.5, math.nan, 0])
    np.testing.assert_allclose(metrics.precision(HAND), [0.6, 0.25, 0, 0])
    np.testing.assert_allclose(metrics.f1(HAND), [6 / 9, 2 / 6, 0, 0])
    assert metrics.accuracy(HAND) == 0.4
    assert metrics.balanced_accuracy(HAND) == pytest.approx(1.25 / 3)
    assert metrics.macro_f1(HAND) == pytest.approx(1 / 4)
    assert metrics.geometric_mean(HAND) == 0


def test_no_images_give_nan() -> None:
    nothing = np.zeros((3, 3), np.int64)
    figures = metrics.scores(nothing, [3, 2, 1], {"g": metrics.geometric_mean, "k": metrics.kappa})
    assert all(math.isnan(value) for value in figures.values())
    for per_class in (metrics.recall, metrics.precision, metrics.f1):
        assert np.isnan(per_class(nothing)).all()


def test_kappa_of_one_class_alone_is_undefined() -> None:
    assert math.isnan(metrics.kappa(np.array([[5, 0], [0, 0]])))


def test_kappa_of_very_many_images_does_not_overflow() -> None:
    counts = np.array([[3, 1], [1, 3]], np.int64)
    assert metrics.kappa(counts * 10**12) == pytest.approx(metrics.kappa(counts))


@pytest.mark.parametrize("counts", [np.zeros((2, 3), np.int64), np.zeros(4, np.int64)])
def test_counts_that_are_not_square(counts: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match=r"must be \[C, C\], not"):
        metrics.scores(counts)


@pytest.mark.parametrize(
    "metric", [metrics.accuracy, metrics.recall, metrics.precision, metrics.f1, metrics.kappa]
)
def test_negative_counts(metric: Callable[[NDArray[np.int64]], object]) -> None:
    with pytest.raises(ValueError, match="must be >= 0, not -1"):
        metric(np.array([[1, 0], [-1, 2]]))


@pytest.mark.parametrize(
    ("classes", "sizes"),
    [(2, (1, 0, 1)), (3, (1, 1, 1)), (10, (3, 4, 3)), (100, (30, 40, 30))],
)
def test_sizes_of_the_groups(classes: int, sizes: tuple[int, int, int]) -> None:
    groups = metrics.tail_groups(np.arange(classes))
    assert tuple(len(groups[name]) for name in ("head", "medium", "tail")) == sizes


def test_groups_fall_by_count() -> None:
    groups = metrics.tail_groups([5, 9, 5, 1, 9, 5, 0, 7, 5, 1])
    assert groups == {"head": (1, 4, 7), "medium": (0, 2, 5, 8), "tail": (3, 9, 6)}


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ([7], {}),
        ([4, 4, 4, 4], {}),
        # Places 0 to 4 have their middle in the head (2 < 3), places 5 to 9 in the tail.
        ([9, 1] * 5, {"head": (0, 2, 4, 6, 8), "medium": (), "tail": (1, 3, 5, 7, 9)}),
        # Nine equal classes lie around place 4 of 10: none of them is more frequent than the others.
        ([1] + [9] * 9, {"head": (), "medium": tuple(range(1, 10)), "tail": (0,)}),
        ([1] * 9 + [9], {"head": (9,), "medium": tuple(range(9)), "tail": ()}),
        ([5, 5, 1], {"head": (0, 1), "medium": (), "tail": (2,)}),
        ([5, 1, 1], {"head": (0,), "medium": (), "tail": (1, 2)}),
    ],
)
def test_classes_with_equal_counts_share_a_group(
    counts: list[int], groups: dict[str, tuple[int, ...]]
) -> None:
    assert metrics.tail_groups(counts) == groups


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_groups_hold_every_class_once_and_no_tail_class_beats_a_head_class(counts: list[int]) -> None:
    groups = metrics.tail_groups(counts)
    if len(set(counts)) == 1:
        assert groups == {}
        return
    group = {counts[c]: name for name, classes in groups.items() for c in classes}
    assert all(group[counts[c]] == name for name, classes in groups.items() for c in classes)
    assert sorted(sum(groups.values(), ())) == list(range(len(counts)))
    ordered = [counts[c] for name in ("head", "medium", "tail") for c in groups[name]]
    assert ordered == sorted(counts, reverse=True)


def test_groups_of_no_classes() -> None:
    with pytest.raises(ValueError, match="at least one class"):
        metrics.tail_groups([])


def test_group_recall_leaves_out_classes_without_images() -> None:
    found = metrics.group_recall(HAND, {"head": (0, 2), "tail": (1, 3), "medium": (2,), "none": ()})
    assert (found["head"], found["tail"]) == (0.75, 0.25)
    assert math.isnan(found["medium"])
    assert math.isnan(found["none"])


def test_scores_have_their_keys_in_order() -> None:
    extra = {"kappa": registry.resolve("metric", "kappa").call}
    figures = metrics.scores(HAND, np.array([1, 2, 3, 4]), extra)
    assert list(figures) == ["accuracy", "balanced_accuracy", "macro_f1", "head", "medium", "tail", "kappa"]
    assert all(type(value) is float for value in figures.values())
    assert (figures["head"], figures["tail"]) == (0, 0.75)
    without = ["accuracy", "balanced_accuracy", "macro_f1"]
    assert list(metrics.scores(HAND)) == without
    assert list(metrics.scores(HAND, [5, 5, 5, 5])) == without


def test_scores_refuse_counts_of_other_classes() -> None:
    with pytest.raises(ValueError, match="must hold 4 classes as the confusion, not 3"):
        metrics.scores(HAND, [1, 2, 3])


def spread_of(confusions: dict[int, np.ndarray]) -> dict[str, float]:
    counted = {client: ConfusionCounts.from_matrix(matrix) for client, matrix in confusions.items()}
    return Classification().client_spread(counted)


def test_the_sum_over_clients_is_not_the_mean_of_clients() -> None:
    large, small = np.array([[90, 10], [0, 0]]), np.array([[0, 1], [0, 1]])
    assert metrics.accuracy(large + small) == pytest.approx(91 / 102)
    assert spread_of({0: large, 1: small})["mean"] == pytest.approx(0.7)


def test_spread_by_hand() -> None:
    right = {7: 9, 1: 5, 4: 9, 2: 2}
    confusions = {client: np.array([[n, 10 - n], [0, 0]]) for client, n in right.items()}
    confusions[0] = np.zeros((2, 2), np.int64)
    spread = spread_of(confusions)
    values = [0.9, 0.5, 0.9, 0.2]
    assert (spread["clients"], spread["worst_client"], spread["best_client"]) == (4, 2, 4)
    assert (spread["worst"], spread["best"]) == (0.2, 0.9)
    assert (spread["worst_images"], spread["best_images"]) == (10, 10)
    assert spread["mean"] == pytest.approx(0.625)
    assert spread["std"] == pytest.approx(np.std(values, ddof=0))
    assert spread["p10"] == pytest.approx(0.29)


def test_spread_of_nobody_has_the_same_keys() -> None:
    nobody = spread_of({3: np.zeros((2, 2), np.int64)})
    assert nobody.keys() == spread_of({3: np.eye(2, dtype=np.int64)}).keys()
    assert nobody.pop("clients") == 0
    assert all(math.isnan(value) for value in nobody.values())
