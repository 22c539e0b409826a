"""``explain`` on the command line: what is written, and wrong inputs, each of which is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fedvision.cli import main
from fedvision.data.sources.arrays import digits
from tests.data.pictures import spoil

pytestmark = pytest.mark.usefixtures("here")

CLIENT = """
name = "north"
[superlink]
address = "fl.example.org:8443"
key = "client.key"
insecure = true
[data]
use = "digits"
"""


def picture(path: Path, number: int) -> None:
    test = digits().test
    assert test is not None
    Image.fromarray(test.images[number, ..., 0]).save(path)


def test_a_runs_mistakes_are_explained_and_its_report_shows_them(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["explain", str(finished), "--limit", "3"]) == 0
    captured = capsys.readouterr()
    place = finished / "explanations/mistakes"
    assert captured.out.splitlines()[-1] == f"page: {place / 'explanations.html'}"
    assert captured.err == ""
    record = json.loads((place / "explanations.json").read_text())
    assert len(record["images"]) == 3
    assert all(one["true"] != one["class"] == one["predicted"] for one in record["images"])
    report = (finished / "report.html").read_text()
    assert "Where the model looked" in report
    assert record["verdict"] in report
    assert report.count("<article>") == 3


def test_files_are_explained_for_a_class(
    finished: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        picture(here / f"{number}.png", number)
    call = ["explain", str(finished), *(f"{number}.png" for number in range(3)), "--class", "7"]
    assert main.main([*call, "--out", "out", "--method", "integrated-gradients", "--limit", "2"]) == 0
    record = json.loads((here / "out/explanations.json").read_text())
    assert [one["image"] for one in record["images"]] == ["0.png", "1.png"]
    assert {one["class"] for one in record["images"]} == {"7"}
    assert {one["method"] for one in record["images"]} == {"integrated-gradients"}
    assert "page: out/explanations.html" in capsys.readouterr().out


def test_images_may_stand_behind_options(
    finished: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        picture(here / f"{number}.png", number)
    options = ["--class", "7", "--method", "integrated-gradients", "--out", "out"]
    assert main.main(["explain", str(finished), "0.png", *options, "1.png"]) == 0
    record = json.loads((here / "out/explanations.json").read_text())
    assert [one["image"] for one in record["images"]] == ["0.png", "1.png"]
    with pytest.raises(SystemExit):
        main.main(["explain", str(finished), "0.png", *options, "--colour", "red"])
    assert "unrecognized arguments: --colour red" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main(["card", str(finished), "--name", "x", "another"])
    assert "unrecognized arguments: another" in capsys.readouterr().err


def test_a_client_explains_its_own_images_under_its_own_labels(finished: Path, here: Path) -> None:
    (here / "client.toml").write_text(CLIENT)
    assert main.main(["explain", str(finished), "--client", "client.toml", "--out", "a", "--limit", "4"]) == 0
    record = json.loads((here / "a/explanations.json").read_text())
    assert len(record["images"]) == 4
    assert all(one["true"] in "0123456789" for one in record["images"])
    (here / "client.toml").write_text(f'{CLIENT}[data.label_map]\n3 = ""\n4 = "5"\n')
    assert (
        main.main(["explain", str(finished), "--client", "client.toml", "--out", "b", "--limit", "60"]) == 0
    )
    record = json.loads((here / "b/explanations.json").read_text())
    assert {"3", "4"}.isdisjoint(one["true"] for one in record["images"])


def test_what_cannot_be_read_is_named_and_the_others_are_explained(
    finished: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(here / "good.png", 0)
    spoil(here / "bad.png")
    assert main.main(["explain", str(finished), "good.png", "bad.png", "--out", "out"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "fedvision: 1 image cannot be read: bad.png; the others are explained"
    assert len(json.loads((here / "out/explanations.json").read_text())["images"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nowhere"], 2, "nowhere/model.json: there is no such file"),
        (["RUN", "good.png", "--class", "cat"], 2, "the model has no class 'cat'"),
        (["RUN", "bad.png"], 2, "none of 1 images can be read: bad.png"),
        (["RUN", "good.png", "--method", "attention-rollout"], 2, "needs a Transformer"),
        (["RUN", "good.png", "--method", "lime"], 2, "method must be one of auto"),
        (["RUN", "good.png", "--limit", "0"], 2, "--limit must be >= 1, not 0"),
        (["RUN", "good.png", "--client", "client.toml"], 2, "name either it or IMAGES"),
        (["RUN", "--client", "none.toml"], 2, "none.toml"),
        (["RUN", "good.png", "--out", "good.png"], 2, "this is no folder"),
        (["COPY"], 2, "it keeps no wrongly named test images; name IMAGES"),
    ],
)
def test_wrong_input_is_one_sentence(
    finished: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    sentence: str,
) -> None:
    picture(here / "good.png", 0)
    spoil(here / "bad.png")
    (here / "client.toml").write_text(CLIENT)
    (here / "copy").mkdir()
    for name in ("model.json", "model.safetensors"):
        (here / "copy" / name).write_bytes((finished / name).read_bytes())
    places = {"RUN": str(finished), "COPY": "copy"}
    assert main.main(["explain", *(places.get(one, one) for one in arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (error,) = captured.err.splitlines()
    assert error.startswith("fedvision: ")
    assert sentence in error
