"""A run folder's scalars, read back by TensorBoard itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedvision import simulate
from fedvision.errors import ConfigError
from fedvision.reporting import pages
from fedvision.reporting.tensorboard import write_scalars
from tests.experiments import tiny
from tests.reporting.sample import MakeRun


def _read(logs: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, round(event.value, 4)) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_figure_is_a_scalar(make_run: MakeRun) -> None:
    folder = make_run(rounds=2, classes=("cat", "a/b <c>", "ant"), changes={"lr": None})
    write_scalars(folder)
    logs = write_scalars(folder)
    assert logs == folder.path / "tensorboard"
    found = _read(logs)
    assert found["train/loss"] == [(1, 1.0), (2, 0.5)]
    assert found["server/loss"] == [(1, 2.0), (2, 1.0)]
    assert found["server/accuracy"] == [(1, 0.4667), (2, 0.5333)]
    assert found["server recall/cat"] == [(1, 0.6), (2, 0.7)]
    assert found["server recall/a_b _c_"] == [(1, 0.6), (2, 0.6)]
    assert found["local recall/ant"] == [(1, 0.0), (2, 0.0)]
    assert found["bytes/down"] == [(1, 1000.0), (2, 1000.0)]
    assert found["seconds/total"] == [(1, 3.0), (2, 3.0)]
    assert "train/lr" not in found


def test_missing_tensorboard_is_an_error_with_the_command_to_install_it(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedvision\[tensorboard\]'"):
        write_scalars(make_run(rounds=1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_recalls_of_counts_kept_as_pairs(make_run: MakeRun) -> None:
    counts = {"classes": 200, "pairs": [[3, 3, 1], [3, 7, 3], [9, 9, 2]]}
    folder = make_run(rounds=1, changes={"server": {"confusion": counts}, "local": None})
    found = _read(write_scalars(folder))
    recalls = {tag: values for tag, values in found.items() if tag.startswith("server recall/")}
    assert recalls == {"server recall/3": [(1, 0.25)], "server recall/9": [(1, 1.0)]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scalars_of_classes_with_like_names(make_run: MakeRun) -> None:
    """Classes whose names differ in signs alone have scalars of their own."""
    found = _read(write_scalars(make_run(rounds=1, classes=("c+", "c/", "ant"))))
    assert found["server recall/c_ 0"] == [(1, 0.6)]
    assert found["server recall/c_ 1"] == [(1, 0.6)]
    assert "server recall/c_" not in found
    assert "server recall/ant" in found


def test_missing_tensorboard_is_said_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="TensorBoard is not installed"):
        simulate(tiny(), out=tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
    pages.page_writer()
