"""The report: one file, nothing from outside, everything that people wrote is text."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvision.errors import RunFolderError
from fedvision.reporting.html import halves, write_report
from fedvision.reporting.page import png_uri
from fedvision.reporting.run_data import read_facts
from fedvision.runs.folder import RunFolder
from fedvision.tasks.confusion import ConfusionCounts
from tests.reporting.sample import MakeRun

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Collects a page's tags and text, and refuses tags that do not close in order."""

    VOID = frozenset(("meta", "img", "br", "image", "path", "use", "rect"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.stack: list[str] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def _read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def _mistakes(folder: RunFolder, channels: int = 1) -> None:
    images = np.arange(2 * 4 * 4 * channels, dtype=np.uint8).reshape(2, 4, 4, channels)
    folder.write_mistakes(images, np.array([2, 2]), np.array([0, 1]), np.array([0.97, 0.5]))


@pytest.mark.slow
def test_the_report_has_every_section(make_run: MakeRun) -> None:
    refusal = {"client": 1, "stage": "training", "kind": "refused", "reason": "NaN in the update"}
    summary: dict[str, Any] = {
        "status": "finished",
        "notices": ["one file could not be read"],
        "parameters": 1234,
    }
    summary["memory"] = {"process": 700_000_000, "workers": [{"process": 3_000_000}, {"process": 41_000_000}]}
    folder = make_run("long tail", summary=summary, changes={"refused": [refusal]})
    _mistakes(folder)
    path = write_report(folder)
    assert path == folder.path / "report.html"
    page = _read(path)
    for expected in (
        "long tail",
        "finished, 3 of 3 rounds",
        "2 clients keep 20 training images of 3 classes",
        "After round 3 the model names 60 of 100 test images rightly",
        "ant least (40.0%)",
        "7 images of the source belong to no client",
        "Mistakes in the rarest classes",
        "3 kB 1 kB sent by clients 1.5 kB 500 B",
        "one file could not be read",
        "3 replies not used (3 refused): the rounds went on without them.",
        "NaN in the update",
        "1,234",
        "memory, at most 700 MB memory, at most, the largest of 2 workers 41 MB",
        'use = "digits"',
        "abc123",
        "fedvision simulate 'long tail/config.toml' --out 'long tail-again'",
        "torch threads",
    ):
        assert expected in page.text, expected
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


def test_intervals_stand_beside_scores_and_over_bars(make_run: MakeRun) -> None:
    """18 of 30 images are right on the server, 3 of 5 on clients, 4 of 10 ants: Wilson's by hand."""
    page = _read(write_report(make_run("three")))
    assert "accuracy 60.0% 42.3 to 75.4 60.0% 23.1 to 88.2" in page.text
    lines = [attrs for tag, attrs in page.tags if tag == "i"]
    assert [line["title"] for line in lines][-1] == "16.8 to 68.7 %, of 10 images"
    assert lines[-1]["style"] == "left:16.82%;width:51.91%"
    assert "Behind a score stands its 95 % confidence interval" in page.text


def test_scores_without_counts_have_no_intervals(make_run: MakeRun) -> None:
    view = {"loss": 1.0, "scores": {"accuracy": 0.5}}
    page = _read(write_report(make_run("own", changes={"server": view, "local": None})))
    assert "confidence interval:" not in page.text
    assert "accuracy 50.0%" in page.text
    assert not [tag for tag, _ in page.tags if tag == "i"]


@pytest.mark.slow
def test_a_finished_run_says_how_sure_its_model_is(make_run: MakeRun) -> None:
    """Ten images 0.95 sure of which seven are right, and twenty 0.45 sure of which eleven are."""
    images, right, sums = (np.zeros(15).tolist() for _ in range(3))
    images[6], images[14], right[6], right[14], sums[6], sums[14] = 20, 10, 11, 7, 9.0, 9.5
    reliability = {"images": images, "right": right, "confidence": sums, "error": 0.15, "excess": 0.0167}
    known = {"reliability": reliability, "ap": [0.9, 0.8, None], "auroc": [0.99, 0.98, None]}
    page = _read(write_report(make_run("sure", summary={"status": "finished", "calibration": known})))
    assert "names 61.7%, and it is right in 60.0%: it is too sure by 1.7 points." in page.text
    assert "Bin by bin the distance is 15.0 points" in page.text
    assert "dog 8 60.0% 80.0% 98.0%" in page.text
    assert "ant 2 40.0% – –" in page.text
    pictures = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    expected = (
        "confidence and accuracy: 45% sure and 55% right (20 images); 95% sure and 70% right (10 images)"
    )
    assert expected in pictures


def test_nothing_is_fetched_and_nothing_is_run(make_run: MakeRun) -> None:
    folder = make_run()
    _mistakes(folder)
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert value
                assert value.startswith(("data:image/png;base64,", "#")), value
    assert "http" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


@pytest.mark.slow
def test_what_people_wrote_is_text(make_run: MakeRun) -> None:
    refusal = {"client": EVIL, "stage": EVIL, "reason": f"$x$ {EVIL}"}
    folder = make_run(
        "<b>bold",
        classes=(EVIL, '" onload="x', "猫 & $dog$"),
        changes={"refused": [refusal]},
        summary={"status": "failed", "error": EVIL, "notices": [EVIL]},
        data={"use": "npz", "path": EVIL},
    )
    _mistakes(folder)
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text
    assert "<b>bold" not in text
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count(EVIL) >= 6
    assert "猫 & $dog$" in page.text


@pytest.mark.slow
def test_the_report_reads_only_the_run_folder(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(summary={"status": "finished"})
    before = write_report(folder).read_bytes()
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(folder.path, tmp_path / "elsewhere" / "run")
    assert write_report(RunFolder.read(Path(moved))).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [0, 1, 2])
@pytest.mark.parametrize("split", [True, False])
def test_a_run_that_has_just_begun_has_a_report(make_run: MakeRun, rounds: int, split: bool) -> None:
    page = _read(write_report(make_run(rounds=rounds, split=split)))
    assert f"unfinished, {rounds} of 3 rounds" in page.text
    assert ("Nothing has been measured yet." in page.text) == (rounds == 0)
    assert ("No round has been recorded yet." in page.text) == (rounds == 0)
    assert ("Losses are in nats." in page.text) == (rounds > 1)


@pytest.mark.slow
def test_sparse_records_have_a_report(make_run: MakeRun) -> None:
    folder = make_run(rounds=1, changes={"server": None})
    folder.append_round({"round": 2}, {"total": 1.0})
    assert "unfinished, 2 of 3 rounds" in _read(write_report(folder)).text


@pytest.mark.slow
def test_only_measured_views_are_explained(make_run: MakeRun) -> None:
    both = _read(write_report(make_run("both"))).text
    server = _read(write_report(make_run("server only", changes={"local": None}))).text
    assert "measured on images that they keep for it" in both
    assert "measured on images that they keep for it" not in server


def test_two_hundred_events_are_enough(make_run: MakeRun) -> None:
    refused = [{"client": i, "stage": "training", "reason": "too slow"} for i in range(100)]
    text = _read(write_report(make_run(changes={"refused": refused}))).text
    assert text.count("too slow") == 200
    assert "100 more are in rounds.jsonl" in text


def test_a_damaged_folder_is_an_error_of_one_sentence(make_run: MakeRun) -> None:
    folder = make_run()
    (folder.path / "split.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"split\.json: this is no JSON"):
        write_report(folder)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB")])
def test_images_keep_their_pixels(channels: int, mode: str) -> None:
    image = np.arange(2 * 3 * channels, dtype=np.uint8).reshape(2, 3, channels)
    prefix, _, data = png_uri(image[::-1]).partition(",")
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert prefix == "data:image/png;base64"
    assert shown.mode == mode
    assert np.array_equal(np.array(shown).reshape(2, 3, -1), image[::-1, :, : 1 if channels < 3 else 3])


def test_long_lists_stand_in_two_halves() -> None:
    rows = list(range(25))
    assert halves(rows) == [rows[:13], rows[13:]]  # type: ignore[arg-type,comparison-overlap]
    assert halves(rows[:24]) == [rows[:24]]  # type: ignore[arg-type,comparison-overlap]
    assert halves([]) == []


@pytest.mark.slow
def test_the_command_that_makes_a_deployed_run_again_names_its_place(make_run: MakeRun) -> None:
    folder = make_run()
    place = ["server", "--private", "127.0.0.1:8000", "--tls", "/pki/server"]
    folder.note_invocation({"folder": "/home/me", "modules": ["/home/me/parts"]})
    folder.note_invocation({"server": place})
    command = f"cd /home/me && fedvision {' '.join(place)} {folder.path}/config.toml"
    assert f"{command} --out {folder.path}-again --wait-for 2" in _read(write_report(folder)).text


@pytest.mark.slow
def test_report_of_many_classes(
    make_run: MakeRun,
) -> None:
    """As a matrix, the counts of 5,000 classes are 200 MB, and the table of all classes is megabytes."""
    classes = 5000
    true = np.arange(classes)
    counted = ConfusionCounts.from_predictions(true, true // 2 * 2, classes)
    facts = {"loss": 1.0, "confusion": counted.to_record(), "scores": {"accuracy": 0.5}}
    folder = make_run(rounds=0, split=False)
    counts = [list(range(classes, 0, -1))]
    names = [f"name {c}" for c in true.tolist()]
    folder.write_split({"digest": "a", "classes": names, "counts": counts})
    folder.append_round({"round": 1, "server": facts}, {})
    path = write_report(folder)
    assert path.stat().st_size < 1_000_000
    page = _read(path)
    assert "4,600 classes between the most frequent and the rarest are left out here" in page.text
    assert "Each row stands for 12 true classes" in page.text
    for name, shown in (("name 199", 1), ("name 200", 0), ("name 4799", 0), ("name 4800", 1)):
        assert page.texts.count(name) == shown
    assert [row.recall for row in read_facts(folder).class_facts(read_facts(folder).best_view)[:3]] == [
        1,
        0,
        1,
    ]
