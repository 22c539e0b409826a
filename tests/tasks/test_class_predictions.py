"""Predictions and scores as files: every number is the one that was computed."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from fedvision.files import json_page
from fedvision.tasks.class_predictions import ClassPredictions, ClassScores, LabelPredictions
from fedvision.tasks.classification import Classification
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.metrics import scores


def test_a_csv_table_has_every_probability_to_the_bit() -> None:
    drawn = np.random.default_rng(0).dirichlet(np.ones(3), 4).astype(np.float32)
    found = ClassPredictions(
        classes=("cat", "dog, small", 'a "bird"'),
        names=("one.png", "two,2.png", "three.png", "four.png"),
        labels=drawn.argmax(1),
        probabilities=drawn,
    )
    head, *rows = csv.reader(io.StringIO(found.to_csv()))
    assert head == ["file", "class", "probability", "p(cat)", "p(dog, small)", 'p(a "bird")']
    assert [row[0] for row in rows] == list(found.names)
    assert [row[1] for row in rows] == [found.classes[label] for label in drawn.argmax(1)]
    assert np.array_equal(np.array([row[3:] for row in rows], np.float32), drawn)
    assert np.array_equal(np.array([row[2] for row in rows], np.float32), drawn.max(1))


def test_the_label_is_given_and_not_computed_again() -> None:
    """Two probabilities may be equal, in float32, where their logits are not."""
    even = np.full((1, 2), 0.5, np.float32)
    found = ClassPredictions(classes=("a", "b"), names=("x",), labels=np.array([1]), probabilities=even)
    assert list(found.rows()) == [("x", "b", np.float32(0.5))]


def test_a_record_of_scores_by_hand() -> None:
    confusion = ConfusionCounts.from_matrix(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    found = ClassScores(
        classes=("a", "b", "c"),
        class_counts=(90, 9, 1),
        stats=confusion,
        by_class=Classification().by_class(confusion),
        loss=0.25,
        examples=6,
        scores=scores(confusion, (90, 9, 1)),
        intervals=Classification().intervals(confusion, (90, 9, 1)),
    ).to_record()
    assert found["classes"]["a"].pop("recall_interval") == pytest.approx([0.300642, 0.954413], abs=1e-6)
    assert found["classes"]["a"] == {
        "training_images": 90,
        "images": 4,
        "recall": 0.75,
        "precision": 1.0,
        "f1": 6 / 7,
    }
    assert found["classes"]["b"]["precision"] == 2 / 3
    assert (found["images"], found["loss"]) == (6, 0.25)
    assert found["scores"]["balanced_accuracy"] == 0.875
    assert set(found["intervals"]) == {"accuracy", "balanced_accuracy", "macro_f1", "head", "medium"}
    low, high = found["intervals"]["accuracy"]
    assert low < 5 / 6 < high
    assert "".join(json_page(found).split()).count('"recall_interval":[null,null]') == 1
    assert found["confusion"] == [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert '"recall": null' in json_page(found)  # of class c nothing is known


def test_labels_of_an_image_share_a_column() -> None:
    found = LabelPredictions(
        classes=("cat", "dog", "bird"),
        names=("one.png", "two.png"),
        labels=np.array([[1, 0, 1], [0, 0, 0]], np.uint8),
        probabilities=np.array([[0.75, 0.25, 0.5], [0.125, 0.25, 0.0]], np.float32),
    )
    assert list(csv.reader(io.StringIO(found.to_csv()))) == [
        ["file", "labels", "p(cat)", "p(dog)", "p(bird)"],
        ["one.png", "cat|bird", "0.75", "0.25", "0.5"],
        ["two.png", "", "0.125", "0.25", "0.0"],
    ]
    one, two = (json.loads(line) for line in found.to_jsonl().splitlines())
    assert one == {
        "file": "one.png",
        "labels": ["cat", "bird"],
        "probabilities": {"cat": 0.75, "dog": 0.25, "bird": 0.5},
    }
    assert two["labels"] == []
    assert list(found.table()) == [
        ("file", "labels"),
        ("one.png", "cat 75.0%, bird 50.0%"),
        ("two.png", "none"),
    ]


def test_what_stands_between_labels_is_in_none_of_their_names() -> None:
    found = LabelPredictions(
        classes=("a|b", "c"), names=("x",), labels=np.ones((1, 2), np.uint8), probabilities=np.ones((1, 2))
    )
    assert found.to_csv().splitlines()[1] == "x,a|b;c,1.0,1.0"
