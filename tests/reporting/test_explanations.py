"""The page of explanations, and what a report shows of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import fedvision
from fedvision.errors import RunError, RunFolderError
from fedvision.explanation.faithfulness import Faithfulness
from fedvision.explanation.result import Branch, Explanation, Explanations, verdict
from fedvision.reporting.explanations import (
    MAPS,
    MISTAKES,
    NUMBERS,
    overlay,
    read_section,
    table,
    write_explanations,
)
from fedvision.runs.model_description import ModelDescription


def scores(gain: float) -> Faithfulness:
    return Faithfulness(deletion=0.25, insertion=0.5 + gain, random_deletion=0.375, random_insertion=0.625)


def explanations() -> Explanations:
    """Two images, the first of a fusion whose map is no better than random, the other not complete."""
    map = np.eye(4, dtype=np.float32)
    branches = {
        "extractor": Branch(map=map, drop=2.0, share=1.0),
        "transformer": Branch(map=0 * map, drop=-1.0, share=0.0),
    }
    common = {"method": "hires-cam", "predicted": 0, "map": map}
    each = [
        Explanation(label=0, probability=0.875, scores=scores(0.0), branches=branches, **common),
        Explanation(
            label=1, probability=0.1, scores=scores(0.3), branches=branches, completeness_error=0.7,
            complete=False, **common,
        ),
    ]  # fmt: skip
    return Explanations(
        classes=("<cat>", "dog"),
        names=["a.png", "b.png"],
        images=np.zeros((2, 4, 4, 1), np.uint8),
        each=each,
        true=[1, None],
        unreadable={"c.png": "it is empty"},
    )


def test_a_page_says_what_is_seen_and_what_it_is_worth(tmp_path: Path) -> None:
    page = write_explanations(tmp_path / "new/folder", explanations(), title="R & D", model="abc").read_text()
    assert "R &amp; D" in page
    assert page.count("data:image/png;base64,") == 6
    assert 'alt="a.png: which pixels count for &lt;cat&gt;"' in page
    assert 'alt="a.png: what the extractor looks at for &lt;cat&gt;"' in page
    assert "looks at for dog" in page
    assert "<b>&lt;cat&gt; 88%</b> <span>in truth dog</span>" in page
    assert "<b>dog 10%</b> <span>predicted &lt;cat&gt;</span>" in page
    assert page.count("This map is no better than a random one.") == 1
    assert "Its attributions miss the logit&#39;s change by 0.70 nats." in page
    assert "100% of the decision" in page
    assert "c.png: it is empty" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_numbers_are_json_and_maps_are_tensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    found = explanations()
    write_explanations(tmp_path, found, title="x", model="abc")
    record = json.loads((tmp_path / NUMBERS).read_text())
    assert record["model"] == "abc"
    assert record["mean"]["insertion"] == pytest.approx(0.65)
    assert record["mean"]["gain"] == pytest.approx(0.15)
    assert record["mean"]["gain_error"] == pytest.approx(0.15)
    first, second = record["images"]
    assert (first["class"], first["true"], first["better_than_random"]) == ("<cat>", "dog", False)
    assert first["branches"]["transformer"] == {"share": 0.0, "drop": -1.0}
    assert "true" not in second
    assert (second["complete"], second["completeness_error"]) == (False, 0.7)
    tensors = load_file(tmp_path / MAPS)
    assert set(tensors) == {"images", "maps", "maps.extractor", "maps.transformer"}
    assert np.array_equal(tensors["maps"], found.maps)


def test_a_table_ends_with_the_verdict() -> None:
    lines = table(explanations()).splitlines()
    assert lines[1].split() == [
        *("a.png", "<cat>", "87.5%", "0.250", "0.375", "0.500", "0.625"),
        *("no", "better", "than", "random"),
    ]
    assert lines[-1] == explanations().verdict


@pytest.mark.parametrize(
    ("gain", "error", "images", "words"),
    [
        (0.3, 0.1, 9, "are better than random"),
        (0.15, 0.1, 9, "not measurably better"),
        (-0.15, 0.1, 9, "not measurably better"),
        (-0.3, 0.1, 9, "are worse than random"),
        (0.3, float("inf"), 1, "is better than a random one; one image proves little"),
        (0.0, float("inf"), 1, "is no better"),
    ],
)
def test_the_verdict_heeds_chance(gain: float, error: float, images: int, words: str) -> None:
    assert words in verdict(gain, error, images)


def test_the_overlay_brightens_with_the_map() -> None:
    map = np.linspace(0, 1, 9, dtype=np.float32).reshape(3, 3)
    found = overlay(np.full((3, 3, 3), 100, np.uint8), map).astype(int).sum(2).ravel()
    assert (np.diff(found) > 0).all()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written.*name another folder"):
        write_explanations(tmp_path / "file", explanations(), title="x", model="abc")


def test_a_report_shows_what_was_explained_of_the_same_model(finished: Path) -> None:
    assert read_section(finished) is None
    digest = ModelDescription.read(finished).sha256
    for model, shown in ((digest, True), ("another", False)):
        write_explanations(finished / MISTAKES, explanations(), title="x", model=model)
        section = read_section(finished)
        assert (section is not None) == shown
        if section is not None:
            assert [item.title for item in section.items] == ["<cat> 88%", "dog 10%"]
            assert section.verdict == explanations().verdict


def test_damaged_explanations_are_one_sentence(finished: Path) -> None:
    digest = ModelDescription.read(finished).sha256
    write_explanations(finished / MISTAKES, explanations(), title="x", model=digest)
    (finished / MISTAKES / MAPS).write_bytes(b"nothing")
    with pytest.raises(RunFolderError, match="explanations are damaged"):
        read_section(finished)
    write_explanations(finished / MISTAKES, explanations(), title="x", model=digest)
    (finished / MISTAKES / NUMBERS).write_text(json.dumps({"model": digest}))
    with pytest.raises(RunFolderError, match="explanations are damaged"):
        read_section(finished)


def test_python_returns_maps_of_arrays(finished: Path) -> None:
    model = fedvision.load(finished)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    found = model.explain(images, limit=2)
    assert found.maps.shape == (2, 8, 8)
    assert found.maps.dtype == np.float32
    assert found.labels.tolist() == model.predict(images).labels[:2].tolist()
    other = model.explain(images[2:], label=model.classes[4])
    assert other.labels.tolist() == [4]
