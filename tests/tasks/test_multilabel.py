"""Several labels an image: decisions, AP and AUROC from histograms, beside scikit-learn's on the scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from torch.nn import functional as F

from fedvision.tasks.multilabel import MultiLabel, ScoreHistograms
from fedvision.tasks.score_bins import BINS, bounds
from fedvision.tasks.stats import MetricStats

TASK = MultiLabel()


def counted(logits: np.ndarray, targets: np.ndarray) -> MetricStats:
    """Return the counts of logits [N, L] and targets [N, L]."""
    _, cells, _ = TASK.observe(
        torch.from_numpy(logits).float(), torch.from_numpy(targets).to(torch.uint8), logits.shape[1]
    )
    return MetricStats.from_cells(cells.numpy(), TASK.stats_shape(logits.shape[1]))


def drawn(
    seed: int, images: int = 300, labels: int = 4, spread: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 logits and targets of labels from frequent to rare, of which each occurs."""
    rng = np.random.default_rng(seed)
    targets = rng.random((images, labels)) < 0.5 / 3.0 ** np.arange(labels)
    targets[0], targets[1] = True, False
    logits = spread * rng.normal(size=(images, labels)) + 2 * targets - 1
    return logits.astype(np.float32), targets.astype(np.uint8)


def test_decisions_by_hand() -> None:
    """Probability 1/2 is logit 0, which is a yes; the number next to it below is a no."""
    below = np.nextafter(np.float32(0), np.float32(-1))
    logits = np.array([[0.0, 5.0], [below, -5.0], [40.0, 5.0], [-40.0, 5.0]])
    targets = np.array([[1, 1], [1, 1], [0, 1], [0, 0]])
    stats = counted(logits, targets)
    assert stats.examples == 4
    found = ScoreHistograms.of(stats).decisions()
    assert {name: values.tolist() for name, values in found.items()} == {
        "true_positives": [1, 2],
        "false_positives": [1, 1],
        "false_negatives": [1, 1],
    }


def test_average_precision_and_area_by_hand() -> None:
    """By falling score: yes, no, yes, no; AP (1/1 + 2/3) / 2, and three of four pairs in order."""
    stats = counted(np.array([[4.0], [3.0], [2.0], [1.0]]), np.array([[1], [0], [1], [0]]))
    found = ScoreHistograms.of(stats).by_label()
    assert found["ap"].tolist() == pytest.approx([5 / 6])
    assert found["auroc"].tolist() == [0.75]


def test_scores_of_one_bin_are_tied() -> None:
    stats = counted(np.array([[0.010], [0.011]]), np.array([[0], [1]]))
    found = ScoreHistograms.of(stats).by_label()
    assert (found["ap"].tolist(), found["auroc"].tolist()) == ([0.5], [0.5])
    ap, area = bounds(stats.tables()).values()
    assert (ap[0].tolist(), ap[1].tolist()) == ([0.5], [1.0])
    assert (area[0].tolist(), area[1].tolist()) == ([0.0], [1.0])


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_the_binned_scores(seed: int) -> None:
    logits, targets = drawn(seed)
    found = ScoreHistograms.of(counted(logits, targets)).by_label()
    bins = np.clip(np.floor(logits * 32), -512, 511)
    named = logits >= 0
    for label in range(targets.shape[1]):
        y, z = targets[:, label], bins[:, label]
        assert found["ap"][label] == pytest.approx(reference.average_precision_score(y, z), abs=1e-12)
        assert found["auroc"][label] == pytest.approx(reference.roc_auc_score(y, z), abs=1e-12)
        expected = reference.precision_recall_fscore_support(
            y, named[:, label], average="binary", zero_division=0
        )
        scores = [found[key][label] for key in ("precision", "recall", "f1")]
        assert scores == pytest.approx(list(expected[:3]), abs=1e-12)


@pytest.mark.slow
@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.3, 3.0, 30.0]))
def test_bounds_hold_for_the_scores_themselves(seed: int, spread: float) -> None:
    logits, targets = drawn(seed, images=60, spread=spread)
    stats = counted(logits, targets)
    limits = bounds(stats.tables())
    found = ScoreHistograms.of(stats).by_label()
    for key, judge in (("ap", reference.average_precision_score), ("auroc", reference.roc_auc_score)):
        low, high = limits[key]
        for label in range(targets.shape[1]):
            exact = judge(targets[:, label], logits[:, label])
            assert low[label] - 1e-9 <= exact <= high[label] + 1e-9
            assert low[label] - 1e-9 <= found[key][label]


def test_binning_costs_less_than_a_thousandth_on_ordinary_scores() -> None:
    logits, targets = drawn(3, images=4000)
    found = ScoreHistograms.of(counted(logits, targets)).by_label()
    for label in range(targets.shape[1]):
        y, z = targets[:, label], logits[:, label]
        assert abs(found["ap"][label] - reference.average_precision_score(y, z)) < 5e-3
        assert abs(found["auroc"][label] - reference.roc_auc_score(y, z)) < 1e-3


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    logits, targets = drawn(1)
    parts = [counted(logits[part], targets[part]) for part in (slice(0, 7), slice(7, 150), slice(150, None))]
    whole = counted(logits, targets)
    total = parts[2] + parts[0] + parts[1]
    assert np.array_equal(total.tables(), whole.tables())
    assert TASK.scores(total, [9, 5, 3, 1]) == TASK.scores(whole, [9, 5, 3, 1])


def test_undefined_measures_are_left_out_of_means() -> None:
    logits, targets = np.array([[1.0, 1.0, -1.0], [-1.0, 1.0, -2.0]]), np.array([[1, 1, 0], [0, 1, 0]])
    stats = counted(logits, targets)
    found = ScoreHistograms.of(stats).by_label()
    assert found["ap"][:2].tolist() == [1.0, 1.0]
    assert [math.isnan(value) for value in found["ap"]] == [False, False, True]
    assert [math.isnan(value) for value in found["auroc"]] == [False, True, True]
    assert [math.isnan(value) for value in found["precision"]] == [False, False, True]
    scores = TASK.scores(stats, [5, 5, 1])
    assert (scores["mean_ap"], scores["macro_auroc"], scores["macro_f1"], scores["micro_f1"]) == (
        1,
        1,
        1,
        1,
    )
    assert math.isnan(scores["tail"])
    assert all(math.isnan(value) for value in TASK.scores(MetricStats.empty((3, 2, BINS))).values())


def test_groups_are_of_labels_by_their_training_images() -> None:
    logits, targets = drawn(2)
    stats = counted(logits, targets)
    ap = ScoreHistograms.of(stats).by_label()["ap"]
    scores = TASK.scores(stats, [10, 40, 30, 20])
    assert (scores["head"], scores["tail"]) == (ap[1], ap[0])
    assert scores["medium"] == pytest.approx((ap[2] + ap[3]) / 2)


def test_mean_loss_over_labels_and_nan_scores() -> None:
    """The loss is the mean over labels and a score that is no number is the lowest."""
    logits, targets = (
        torch.tensor([[2.0, -1.0], [0.5, 3.0]]),
        torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8),
    )
    loss, _, _ = TASK.observe(logits, targets, 2)
    assert float(loss) == pytest.approx(
        float(F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="sum")) / 2
    )
    _, cells, _ = TASK.observe(
        torch.tensor([[math.nan, math.inf]]), torch.tensor([[1, 1]], dtype=torch.uint8), 2
    )
    assert cells.tolist() == [BINS, 3 * BINS + BINS - 1]


def test_a_record_has_a_column_for_each_figure() -> None:
    record = TASK.to_record(counted(*drawn(0)))
    assert record["images"] == 300
    assert {len(column) for column in record["labels"].values()} == {4}
    assert set(record["labels"]) >= {"positives", "true_positives", "recall", "precision", "ap", "auroc"}


def test_clients_are_compared_by_their_mean_ap() -> None:
    good = counted(np.array([[1.0], [-1.0]]), np.array([[1], [0]]))
    bad = counted(np.array([[-1.0], [1.0]]), np.array([[1], [0]]))
    silent = counted(np.array([[-1.0]]), np.array([[0]]))
    spread = TASK.client_spread({4: bad, 1: good, 2: silent})
    assert (spread["clients"], spread["worst_client"], spread["worst"]) == (2, 4, 0.5)
