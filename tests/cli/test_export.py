"""``export`` on the command line: what is printed, what is written, and a tour of wrong inputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fedvision.cli import main
from fedvision.data.sources.arrays import digits

pytestmark = pytest.mark.usefixtures("here")


def arrays(name: str, images: np.ndarray, labels: np.ndarray, **more: np.ndarray) -> str:
    np.savez(name, train_images=images, train_labels=labels, **more)
    return name


@pytest.mark.slow
def test_int8_is_written_measured_recorded_and_stands_in_the_report(
    finished: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(finished), "--format", "onnx", "--out", "small.onnx", "--data", "digits"]
    int8 = ["--quantize", "int8", "--calibration", "digits", "--calibration-images", "60"]
    assert main.main([*command, *int8]) == 0
    captured = capsys.readouterr()
    assert "stretches them to 8 x 8; --fit names another way" in captured.err
    shown = captured.out
    assert "beside PyTorch on 403 images: the same decisions" in " ".join(shown.split())
    assert "measured on 355 images (test images of digits), one thread of" in " ".join(shown.split())
    original, small = json.loads((here / "small.onnx.json").read_text())["versions"]
    assert (original["kind"], small["kind"], small["name"]) == ("original", "quantized", "ONNX, int8")
    assert small["bytes"] == (here / "small.onnx").stat().st_size
    assert small["about"]["calibration_images"] == 60
    share = small["about"]["calibration_agreement"]
    assert share > 0.9
    assert f"on 60 calibration images: {100 * share:.1f}% have the same decision" in " ".join(shown.split())
    rows = [line.split() for line in shown.splitlines() if line.startswith("ONNX, int8")]
    row = [cell for part in rows for cell in part]  # a table that is too wide goes on below
    assert f"{100 * small['balanced_accuracy']:.2f}%" in row
    assert row[-1] == small["worst_class"]
    assert main.main(["report", str(finished)]) == 0
    page = " ".join((finished / "report.html").read_text().split())
    assert "Smaller and faster versions of the model" in page
    assert "Measured on 355 images (test images of digits)" in page
    assert f'<td class="n">{100 * small["worst_recall"]:.1f}%</td>' in page
    assert page.index("PyTorch, as trained") < page.index("ONNX, int8")


WRONG = [
    (["--format", "onnx"], "nowhere", "nowhere/model.json: there is no such file"),
    (["--format", "tflite"], "", "--format must be one of onnx, torch-export, safetensors, not 'tflite'"),
    (
        ["--format", "onnx", "--fit", "cover"],
        "",
        "--fit must be one of crop, stretch, pad, exact, not 'cover'",
    ),
    (["--format", "onnx", "--out", "none/a.onnx"], "", "--out none/a.onnx: there is no folder none"),
    (["--format", "onnx", "--out", "a.json"], "", "a file of --format onnx ends in .onnx"),
    (["--format", "safetensors", "--out", "RUN/model.safetensors"], "", "this file is the run's own"),
    (["--format", "onnx", "--json", "RUN/model.json"], "", "this file is a run's own; name another one"),
    (["--format", "onnx", "--quantize", "int4"], "", "--quantize must be int8, not 'int4'"),
    (["--format", "onnx", "--quantize", "int8"], "", "name them with --calibration SOURCE"),
    (
        ["--format", "torch-export", "--quantize", "int8", "--calibration", "digits"],
        "",
        "for --format onnx, not",
    ),
    (["--format", "onnx", "--calibration", "digits"], "", "--calibration is for --quantize int8"),
    (["--format", "onnx", "--calibration-images", "5"], "", "--calibration-images is for --quantize int8"),
    (["--format", "onnx", "--part", "test"], "", "--part is for --data"),
    (["--format", "onnx", "--tolerance", "0"], "", "--tolerance must be > 0 and < 1, not 0.0"),
    (["--format", "onnx", "--threads", "0"], "", "--threads must be >= 1, not 0"),
    (["--format", "onnx", "--data", "digit"], "", "did you mean 'digits'"),
    (["--format", "onnx", "--data", "others.npz"], "", "--data others.npz: the data has images of '10'"),
    (["--format", "safetensors", "--data", "digits"], "", "--data measures a file that can be run"),
]
INT8 = ["--format", "onnx", "--quantize", "int8", "--calibration"]
WRONG += [
    ([*INT8, "large.npz"], "", "--calibration large.npz: the data's array of images is uint8 [4, 9, 8, 1]"),
    ([*INT8, "colour.npz"], "", "--calibration colour.npz: the data's array of images is uint8 [4, 8, 8, 3]"),
    ([*INT8, "none.npz"], "", "--calibration none.npz: there is no such file or folder"),
    ([*INT8, "empty.npz"], "", "--calibration empty.npz"),
    ([*INT8, "digits", "--calibration-images", "0"], "", "--calibration-images must be >= 1, not 0"),
    ([*INT8, "digits", "--calibration-method", "mean"], "", "must be one of percentile, minmax, entropy"),
]


@pytest.mark.parametrize(("options", "run", "sentence"), WRONG, ids=[sentence[:40] for *_, sentence in WRONG])
def test_wrong_usage_is_one_sentence_and_writes_nothing(
    options: list[str],
    run: str,
    sentence: str,
    finished: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    four = np.zeros((4, 8, 8, 1), np.uint8)
    arrays("others.npz", np.zeros((11, 8, 8, 1), np.uint8), np.arange(11))
    arrays("large.npz", np.zeros((4, 9, 8, 1), np.uint8), np.arange(4))
    arrays("colour.npz", np.zeros((4, 8, 8, 3), np.uint8), np.arange(4))
    arrays("empty.npz", four[:0], np.zeros(0, np.int64))
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    given = [option.replace("RUN", str(finished)) for option in options]
    assert main.main(["export", run or str(finished), *given]) == 2
    captured = capsys.readouterr().err
    assert sentence in captured
    assert captured.count("\n") == 1
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    assert {path.suffix for path in here.iterdir()} == {".npz"}


def test_a_missing_package_is_one_sentence(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedvision.export import onnx_format

    monkeypatch.setattr(onnx_format, "_PACKAGES", ("onnx", "no_such_runtime"))
    assert main.main(["export", str(finished), "--format", "onnx"]) == 2
    assert capsys.readouterr().err == (
        "fedvision: ONNX files need no_such_runtime, not installed here; pip install 'fedvision[export]'\n"
    )


def test_a_missing_package_is_found_out_before_anything_large_is_loaded(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main.main(["export", str(finished), "--format", "onnx"]) == 2
    assert "pip install 'fedvision[export]'" in capsys.readouterr().err


def test_the_test_images_are_never_calibrated_on(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedvision.export import exporter

    seen = []

    def noted(model: object, format: str, out: Path, **keys: object) -> None:
        seen.append(keys["calibration"])
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "export", noted)
    assert main.main(["export", str(finished), *INT8, "digits"]) == main.INTERRUPTED
    data = digits()
    assert seen[0].images == 500
    assert np.array_equal(seen[0].shard.images, data.train.images)
