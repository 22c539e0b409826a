"""``predict`` and ``evaluate`` on the command line: what is printed, what is written, how it ends."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvision.cli import main
from fedvision.data.sources.arrays import digits
from tests.data.pictures import spoil

pytestmark = pytest.mark.usefixtures("here")


def picture(path: Path, number: int) -> None:
    test = digits().test
    assert test is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(test.images[number, ..., 0]).save(path)


def test_predictions_stand_in_a_table_and_in_a_file(
    finished: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        picture(here / f"photos/{number}.png", number)
    assert main.main(["predict", str(finished), "photos", "--csv", "out.csv"]) == 0
    captured = capsys.readouterr()
    head, *rows = csv.reader((here / "out.csv").read_text().splitlines())
    assert [row[0] for row in rows] == ["photos/0.png", "photos/1.png", "photos/2.png"]
    assert head[3:] == [f"p({digit})" for digit in range(10)]
    shown = [line.split() for line in captured.out.splitlines()]
    assert shown[0] == ["file", "class", "probability"]
    assert shown[1:] == [[row[0], row[1], f"{100 * float(row[2]):.1f}%"] for row in rows]
    assert captured.err == ""


def test_predictions_as_lines_of_json(finished: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what the CSV has, to the bit, and a line for what cannot be read."""
    picture(here / "one.png", 0)
    spoil(here / "bad.png")
    files = ["--csv", "out.csv", "--jsonl", "out.jsonl"]
    assert main.main(["predict", str(finished), "bad.png", "one.png", *files]) == 1
    one, bad = (json.loads(line) for line in (here / "out.jsonl").read_text().splitlines())
    (row,) = csv.DictReader((here / "out.csv").read_text().splitlines())
    assert (one["file"], one["class"], str(one["probability"])) == (
        "one.png",
        row["class"],
        row["probability"],
    )
    assert {f"p({name})": str(p) for name, p in one["probabilities"].items()}.items() <= row.items()
    assert bad == {"file": "bad.png", "error": "no known image format"}
    assert main.main(["predict", str(finished), "one.png", "--jsonl", "none/out.jsonl"]) == 2
    assert "--jsonl none/out.jsonl: there is no folder none" in capsys.readouterr().err


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(
    finished: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(here / "one.png", 0)
    spoil(here / "bad.png")
    assert main.main(["predict", str(finished), "bad.png", "one.png", "none.png"]) == 1
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["file", "one.png"]
    assert captured.err.splitlines() == [
        "bad.png: no known image format",
        "none.png: No such file or directory",
        "fedvision: 2 images of 3 cannot be read: bad.png, none.png; the others are predicted",
    ]


def test_scores_stand_as_at_the_end_of_a_run(
    finished: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["report", str(finished)]) == 0
    report = capsys.readouterr().out
    assert main.main(["evaluate", str(finished), "--data", "digits", "--json", "scores.json"]) == 0
    found = capsys.readouterr().out
    heading = found.partition("\n\n")[0]
    # It is wrapped by the length of the folder's name, and a long name itself.
    assert "".join(heading.split()) == f"{finished},1round:355testimagesofdigits"

    def rows(text: str) -> list[list[str]]:
        lines = text.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("measured"))
        return [line.split() for line in lines[start + 2 :] if line and "kB" not in line]

    of_run = rows(report)
    del of_run[-1]  # where the report is
    record = json.loads((here / "scores.json").read_text())
    assert [row[: len(line)] for row, line in zip(rows(found), of_run, strict=False)] == of_run
    low, high = record["intervals"]["accuracy"]
    assert rows(found)[0][2:] == [f"{100 * low:.1f}", "to", f"{100 * high:.1f}"]
    recorded = json.loads((finished / "rounds.jsonl").read_text())["server"]
    assert (record["scores"], record["loss"]) == (recorded["scores"], recorded["loss"])
    per_class = [row for row in rows(found) if row[0] in record["classes"]][-10:]
    for row in per_class:
        one = record["classes"][row[0]]
        assert row[1:4] == [str(one["training_images"]), str(one["images"]), f"{100 * one['recall']:.1f}%"]
        assert row[4:7] == " to ".join(f"{100 * end:.1f}" for end in one["recall_interval"]).split()
        assert row[7:] == [f"{100 * one[name]:.1f}%" for name in ("ap", "auroc")]
    reported = json.loads((finished / "summary.json").read_text())["calibration"]
    assert record["reliability"] == reported["reliability"]
    assert [one["auroc"] for one in record["classes"].values()] == reported["auroc"]
    assert "On average the final model gives the class that it names" in " ".join(found.split())


def test_a_folder_of_classes_is_measured_with_the_names_of_its_folders(
    finished: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = digits().test
    assert test is not None
    for number in range(20):
        picture(here / f"photos/{test.labels[number]}/{number}.png", number)
    command = ["evaluate", str(finished), "--data", "photos", "--json"]
    assert main.main([*command, "folder.json"]) == 0
    assert "20 images, none kept for a test of photos" in " ".join(capsys.readouterr().out.split())
    np.savez(here / "a.npz", train_images=test.images[:20], train_labels=test.labels[:20])
    table = 'use = "npz", path = "a.npz"'
    assert main.main(["evaluate", str(finished), "--data", table, "--json", "table.json"]) == 0
    one, other = (json.loads((here / f"{name}.json").read_text()) for name in ("folder", "table"))
    assert one["confusion"] == other["confusion"]
    (here / "photos/0").rename(here / "photos/zero")
    assert main.main([*command, "folder.json"]) == 2
    assert capsys.readouterr().err.startswith(
        "fedvision: --data photos: the data has images of 'zero', which the model does not know"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["predict", "nowhere", "x.png"], "nowhere/model.json: there is no such file"),
        (["predict", "RUN", "x.png"], "none of 1 images can be read: x.png (No such file or directory)"),
        (["predict", "RUN", "x.png", "--csv", "none/a.csv"], "--csv none/a.csv: there is no folder none"),
        (["predict", "RUN", "x.png", "--threads", "0"], "--threads must be >= 1, not 0"),
        (["predict", "RUN", "x.png", "--workers", "-1"], "--workers must be >= 0, not -1"),
        (["predict", "RUN", "x.png", "--device", "warp"], "is not available on this machine"),
        (["evaluate", "RUN", "--data", "digit"], "did you mean 'digits'"),
        (["evaluate", "RUN", "--data", "a.npz"], "--data a.npz: there is no such file or folder"),
        (["evaluate", "RUN", "--data", "digits", "--json", "."], "--json .: this is a folder"),
    ],
)
def test_wrong_usage_is_one_sentence(
    options: list[str], sentence: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([str(finished) if argument == "RUN" else argument for argument in options]) == 2
    captured = capsys.readouterr().err
    assert sentence in captured
    assert captured.count("\n") == 1
