"""What a run that goes on must find as it was, and what may have changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedvision import plugin_folder
from fedvision.api import simulate
from fedvision.config import ExperimentConfig
from fedvision.errors import RunFolderError
from fedvision.runs.folder_lock import claimed
from tests.experiments import tiny


def arrays(path: Path, **changed: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    facts = {
        "train_images": rng.integers(0, 256, (60, 8, 8), dtype=np.uint8),
        "train_labels": np.arange(60) % 3,
        "test_images": rng.integers(0, 256, (12, 8, 8), dtype=np.uint8),
        "test_labels": np.arange(12) % 3,
    }
    np.savez(path, **{**facts, **changed})


def experiment(path: Path, **tables: object) -> ExperimentConfig:
    return tiny(data={"use": "npz", "path": str(path)}, partition={"use": "iid", "clients": 3}, **tables)


def content(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize(
    ("key", "part"),
    [("train_images", "training images"), ("test_images", "test images"), ("test_labels", "test labels")],
)
def test_a_run_does_not_go_on_with_other_data(key: str, part: str, tmp_path: Path) -> None:
    arrays(tmp_path / "data.npz")
    config = experiment(tmp_path / "data.npz", rounds=1)
    simulate(config, out=tmp_path / "run")
    before = content(tmp_path / "run")
    old = np.load(tmp_path / "data.npz")[key]
    arrays(tmp_path / "data.npz", **{key: old[::-1].copy() if key == "test_labels" else 255 - old})
    with pytest.raises(RunFolderError, match=f"other {part}; restore"):
        simulate(config, out=tmp_path / "run", resume=True)
    assert content(tmp_path / "run") == before


def test_a_changed_module_is_a_notice_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "own_rule_of_mine.py"
    module.write_text("from fedvision.algorithms.fedavg import FedAvg\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tiny(strategy={"use": "own_rule_of_mine:FedAvg"}, rounds=1)
    simulate(config, out=tmp_path / "run")
    module.write_text("from fedvision.algorithms.fedavg import FedAvg\n# mended\n")
    assert list(plugin_folder.sources(config.to_dict())) == ["own_rule_of_mine"]
    result = simulate(config, out=tmp_path / "run", resume=True)
    assert "the source of own_rule_of_mine was changed since the run's first part" in str(
        result.folder.summary()["notices"] + [event["what"] for event in result.folder.events()]
    )


def test_a_folder_in_use_is_refused_and_not_touched(tmp_path: Path) -> None:
    config = tiny(rounds=1)
    simulate(config, out=tmp_path / "run")
    before = content(tmp_path / "run")
    script = (
        "import sys; from pathlib import Path; from fedvision.runs.folder_lock import claimed\n"
        "with claimed(Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="another fedvision process is working in this folder"):
            simulate(config, out=tmp_path / "run", resume=True)
        other.kill()
    assert content(tmp_path / "run") == before
    simulate(config, out=tmp_path / "run", resume=True)


def test_a_claim_ends_with_its_block(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "new", "wait"),
        pytest.raises(RunFolderError, match="or wait"),
        claimed(tmp_path / "new", "wait"),
    ):
        pass
    with claimed(tmp_path / "new", "wait"):
        pass
