"""The five lines of a model card: which file they name, and that they work where there is no fedvision."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedvision.api import simulate
from fedvision.cli.main import main, parser
from fedvision.files import append_line, json_line
from fedvision.reporting.card_loading import loading
from fedvision.trained_model import load
from tests.experiments import FEDPER, digits_of_several_labels, several_labels, tiny

VERBS = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
needs_export = pytest.mark.skipif("export" not in VERBS, reason="this fedvision has no verb export")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "run"
    simulate(tiny(rounds=1), out=folder)
    return folder


def exported(folder: Path, **line: Any) -> None:
    sha256 = json.loads((folder / "model.json").read_text())["sha256"]
    about = {"format": "onnx", "sha256": sha256} | line.pop("about", {})
    append_line(folder / "exports.jsonl", json_line({"kind": "export", "about": about, **line}))


def block(paragraphs: list[str]) -> str:
    found = re.search(r"```python\n(.*?)\n```", "\n\n".join(paragraphs), re.DOTALL)
    assert found is not None
    return found[1]


def test_without_an_export_the_command_is_named(run: Path) -> None:
    paragraphs = loading(run)
    assert "`fedvision export run --format onnx` writes the model" in paragraphs[0]
    lines = block(paragraphs).split("\n")
    assert len(lines) == 5
    assert "InferenceSession('model.onnx')" in lines[1]
    assert "fedvision" not in block(paragraphs)
    assert "(1, 8, 8, 1)" in lines[3]


def test_the_exported_file_of_this_model_is_named(run: Path, tmp_path: Path) -> None:
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    exported(tmp_path, name="ONNX", file="first.onnx", about={"sha256": "of another model"})
    assert "'model.onnx'" in block(loading(tmp_path))
    exported(tmp_path, name="torch", file="model.pt2", about={"format": "torch-export"})
    assert "'model.onnx'" in block(loading(tmp_path))
    exported(tmp_path, name="ONNX", file="/somewhere/mine.onnx")
    exported(tmp_path, name="ONNX, int8", file="small.onnx", kind="quantized")
    paragraphs = loading(tmp_path)
    assert "`mine.onnx` is this model" in paragraphs[0]
    assert "'mine.onnx'" in block(paragraphs)
    assert "/somewhere" not in "".join(paragraphs)


def test_of_personal_tensors_there_is_no_whole_model(tmp_path: Path) -> None:
    simulate(tiny(rounds=1, evaluation={"holdout": 0.3}, **FEDPER), out=tmp_path / "run")
    assert loading(tmp_path / "run") == [
        "A part of the network stayed on the clients, so there is no whole model to load."
    ]


def test_a_run_without_a_model_says_so(tmp_path: Path) -> None:
    assert loading(tmp_path) == ["The run has no final model yet."]


@pytest.mark.slow
@needs_export
@pytest.mark.parametrize("several", [False, True], ids=["classes", "labels"])
def test_the_five_lines_run_without_fedvision(several: bool, tmp_path: Path) -> None:
    tables: dict[str, Any] = {}
    if several:
        tables = several_labels(digits_of_several_labels(tmp_path)) | {
            "partition": {"use": "iid", "clients": 2}
        }
    folder = tmp_path / "run"
    simulate(tiny(rounds=1, **tables), out=folder)
    assert main(["export", str(folder), "--format", "onnx"]) == 0
    assert main(["card", str(folder)]) == 0
    text = (folder / "model_card.md").read_text()
    assert "`model.onnx` is this model" in text
    found = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert found is not None
    assert found[1].count("\n") == 4
    script = f"import sys; sys.modules['fedvision'] = sys.modules['torch'] = None\n{found[1]}\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    import numpy as np

    labels = load(folder).predict(np.zeros((1, 8, 8, 1), np.uint8)).labels
    classes = json.loads((folder / "model.json").read_text())["classes"]
    ours = (
        [[c for c, has in zip(classes, labels[0], strict=True) if has]] if several else [classes[labels[0]]]
    )
    assert done.stdout.strip() == repr(ours)
