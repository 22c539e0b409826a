"""Predicted masks as tables: shares of pixels by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedvision.tasks.mask_predictions import MaskPredictions

FOUND = MaskPredictions(
    classes=("ground", "roof", "tree"),
    names=("a.png", 'b,"c".png'),
    masks=np.array([[[0, 0], [2, 1]], [[2, 2], [2, 2]]], np.uint8),
)


def test_shares_are_of_an_images_pixels() -> None:
    assert FOUND.shares().tolist() == [[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]]
    assert list(FOUND.table())[1:] == [
        ("a.png", "ground 50.0%, roof 25.0%, tree 25.0%"),
        ('b,"c".png', "tree 100.0%"),
    ]


def test_a_row_of_csv_for_each_image() -> None:
    assert FOUND.to_csv().splitlines() == [
        "file,share(ground),share(roof),share(tree)",
        "a.png,0.5,0.25,0.25",
        '"b,""c"".png",0.0,0.0,1.0',
    ]


def test_a_line_of_json_for_each_image() -> None:
    lines = [json.loads(line) for line in FOUND.to_jsonl().splitlines()]
    assert [line["file"] for line in lines] == list(FOUND.names)
    assert lines[0]["shares"] == pytest.approx({"ground": 0.5, "roof": 0.25, "tree": 0.25})


def test_nothing_is_found_in_no_image() -> None:
    none = MaskPredictions(classes=("a", "b"), names=(), masks=np.zeros((0, 4, 4), np.uint8))
    assert (len(none), none.shares().shape, none.to_csv()) == (0, (0, 2), "file,share(a),share(b)\n")
