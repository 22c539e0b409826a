"""Post-hoc correction: probabilities divided by the prior, rows of one norm, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fedvision
from fedvision import adjustment, simulate
from fedvision.cli.main import main
from fedvision.errors import ConfigError, RunFolderError
from tests.experiments import FEDPER, digits_of_several_labels, several_labels, tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return runs whose loss has no scale, and one of 4."""
    folder = tmp_path_factory.mktemp("adjustment")
    losses: dict[str, Any] = {"plain": "cross-entropy", "scaled": {"use": "ldam", "scale": 4.0}}
    for name, loss in losses.items():
        simulate(tiny(rounds=2, loss=loss), out=folder / name)
    return {name: folder / name for name in losses}


def probabilities(run: Path) -> np.ndarray:
    return np.asarray(fedvision.load(run, device="cpu").predict(IMAGES).probabilities, np.float64)


def copied(run: Path, out: Path, **changes: Any) -> Path:
    """Return a copy of a run's model, its description or its tensors changed."""
    out.mkdir()
    state = load_file(run / "model.safetensors") | changes.pop("state", {})
    save_file(state, out / "model.safetensors")
    table = json.loads((run / "model.json").read_text()) | changes
    table = {key: value for key, value in table.items() if value is not None}
    table["sha256"] = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    (out / "model.json").write_text(json.dumps(table))
    return out


@pytest.mark.parametrize("kind", ["plain", "scaled"])
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_probabilities_are_divided_by_the_prior(
    kind: str, tau: float, runs: dict[str, Path], tmp_path: Path
) -> None:
    """Those of an adjusted model are in proportion to p / prior^tau, whatever scale the loss has."""
    made = adjustment.adjust(runs[kind], tmp_path / "new", tau=tau)
    assert made.notices == ()
    counts = np.array(json.loads((runs[kind] / "model.json").read_text())["class_counts"])
    assert counts.max() > 5 * counts.min() > 0
    expected = probabilities(runs[kind]) / (counts / counts.sum()) ** tau
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities(made.folder), expected, rtol=1e-4, atol=1e-7)


def test_only_the_bias_changes_and_the_run_stays(runs: dict[str, Path], tmp_path: Path) -> None:
    before = (runs["plain"] / "model.safetensors").read_bytes()
    adjustment.adjust(runs["plain"], tmp_path / "new")
    assert (runs["plain"] / "model.safetensors").read_bytes() == before
    old, new = (load_file(path / "model.safetensors") for path in (runs["plain"], tmp_path / "new"))
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["head.bias"]
    note = json.loads((tmp_path / "new/adjustment.json").read_text())
    assert (note["tau"], note["norms"], note["run"]) == (1.0, False, str(runs["plain"]))


def test_rows_get_one_norm_and_no_bias(runs: dict[str, Path], tmp_path: Path) -> None:
    state = load_file(runs["plain"] / "model.safetensors")
    state["head.weight"][3] = 0.0
    run = copied(runs["plain"], tmp_path / "run", state={"head.weight": state["head.weight"]})
    adjustment.adjust(run, tmp_path / "new", tau=0.0, norms=True)
    old, new = (load_file(path / "model.safetensors") for path in (run, tmp_path / "new"))
    norms = old["head.weight"].norm(dim=1)
    expected = torch.full((10,), float(norms.mean()))
    expected[3] = 0.0
    torch.testing.assert_close(new["head.weight"].norm(dim=1), expected)
    cosines = torch.nn.functional.cosine_similarity(old["head.weight"], new["head.weight"])
    torch.testing.assert_close(cosines, (expected > 0).float())
    assert not new["head.bias"].any()
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["head.bias", "head.weight"]


def test_both_together(runs: dict[str, Path], tmp_path: Path) -> None:
    adjustment.adjust(runs["plain"], tmp_path / "rows", tau=0.0, norms=True)
    adjustment.adjust(runs["plain"], tmp_path / "both", tau=2.0, norms=True)
    rows, both = (load_file(tmp_path / name / "model.safetensors") for name in ("rows", "both"))
    assert torch.equal(rows["head.weight"], both["head.weight"])
    counts = torch.tensor(json.loads((runs["plain"] / "model.json").read_text())["class_counts"])
    torch.testing.assert_close(both["head.bias"], -2 * (counts / counts.sum()).log())


def test_a_class_without_images_counts_as_one(runs: dict[str, Path], tmp_path: Path) -> None:
    run = copied(runs["plain"], tmp_path / "run", class_counts=[0, 9, *[10] * 8])
    made = adjustment.adjust(run, tmp_path / "new")
    assert made.notices == ("no client has images of 0, which count as one image each",)
    old, new = (load_file(path / "model.safetensors")["head.bias"] for path in (run, tmp_path / "new"))
    shift = (new - old).double()
    assert torch.isfinite(new).all()
    np.testing.assert_allclose(shift[:2], np.log([90.0, 10.0]), rtol=1e-5)


def test_a_loss_that_corrected_already_is_named(tmp_path: Path) -> None:
    loss = {"use": "logit-adjusted", "prior": "global"}
    simulate(tiny(rounds=1, loss=loss), out=tmp_path / "run")
    (notice,) = adjustment.adjust(tmp_path / "run", tmp_path / "new").notices
    assert "'logit-adjusted' with loss.prior = 'global', corrects for class frequencies already" in notice
    assert adjustment.adjust(tmp_path / "run", tmp_path / "rows", tau=0.0, norms=True).notices == ()


@pytest.mark.slow
def test_what_cannot_be_adjusted_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    run, new = runs["plain"], tmp_path / "new"
    with pytest.raises(ConfigError, match="--tau 0 changes nothing"):
        adjustment.adjust(run, new, tau=0.0)
    for tau in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--tau must be >= 0"):
            adjustment.adjust(run, new, tau=tau)
    with pytest.raises(RunFolderError, match="it is there already"):
        adjustment.adjust(run, tmp_path)
    unknown = copied(run, tmp_path / "unknown", class_counts=None)
    with pytest.raises(RunFolderError, match="its clients reported no class counts"):
        adjustment.adjust(unknown, new)
    simulate(tiny(rounds=1, **FEDPER), out=tmp_path / "personal")
    with pytest.raises(RunFolderError, match=r"head\.\w+.* stayed on the clients"):
        adjustment.adjust(tmp_path / "personal", new)
    tables = several_labels(digits_of_several_labels(tmp_path))
    simulate(tiny(rounds=1, **tables), out=tmp_path / "labels")
    with pytest.raises(ConfigError, match=r"of one label an image, not of .* 'multi-label'"):
        adjustment.adjust(tmp_path / "labels", new)
    simulate(tiny(rounds=1, model={"use": "tests.algorithms.test_moon:plain"}), out=tmp_path / "whole")
    with pytest.raises(ConfigError, match="fedvision adjust needs a network of backbone and head"):
        adjustment.adjust(tmp_path / "whole", new)
    assert not new.exists()


def test_the_command_writes_a_folder_and_says_what_to_do(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["plain"], run)
    assert main(["adjust", str(run)]) == 0
    assert f"{run}-adjusted: tau = 1; measure it:" in capsys.readouterr().out
    assert main(["adjust", str(run), "--norms", "--out", str(tmp_path / "rows")]) == 0
    assert f"{tmp_path}/rows: rows of equal norm; measure it:" in capsys.readouterr().out
    assert main(["evaluate", f"{run}-adjusted", "--data", str(run / "config.toml")]) == 0
    assert main(["adjust", str(run)]) == 2
    assert "it is there already; name another folder with --out" in capsys.readouterr().err
