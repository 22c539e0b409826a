"""A run folder's figures in an MLflow store, read back by MLflow itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fedvision import simulate
from fedvision.cli.main import main
from fedvision.errors import ConfigError
from fedvision.reporting.mlflow_store import address, open_store, write_to_mlflow
from fedvision.reporting.scalars import scalars
from tests.experiments import tiny
from tests.reporting.sample import MakeRun

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("mlflow") / "runs.db")


def runs(store: str, name: str) -> list[Any]:
    """Return the runs whose names begin so."""
    client, experiment = open_store(store)
    return [run for run in client.search_runs([experiment]) if run.info.run_name.startswith(name)]


@pytest.mark.slow
def test_curves_and_keys_are_read_back_and_a_run_is_there_once(make_run: MakeRun, store: str) -> None:
    folder = make_run(rounds=3, classes=("cat", "a/b <c>", "ant"))
    write_to_mlflow(folder, store)
    name = write_to_mlflow(folder, store)
    (run,) = runs(store, folder.config().name)
    assert (run.info.run_id, run.info.status, run.info.run_name) == (name, "FINISHED", folder.config().name)
    assert run.data.params["model.use"] == folder.config().model.use
    assert run.data.params["training.lr"] == str(folder.config().training.lr)
    client, _ = open_store(store)
    expected = dict(scalars(folder))
    for key in expected[1]:
        history = {one.step: one.value for one in client.get_metric_history(name, key)}
        assert history == {round: found[key] for round, found in expected.items()}
    assert "server recall/a_b _c_" in expected[1]
    assert run.data.metrics.keys() == expected[1].keys()


@pytest.mark.long
def test_a_sweep_writes_its_runs_side_by_side(tmp_path: Path, store: str) -> None:
    experiment = tmp_path / "two.toml"
    experiment.write_text(tiny(name="two", rounds=1).to_toml() + "\n[sweep]\nseed = [1, 2]\n")
    arguments = ["simulate", str(experiment), "--out", str(tmp_path / "out"), "--mlflow", store]
    assert main([*arguments, "--engine", "serial", "--jobs", "2"]) == 0
    assert sorted(run.data.params["seed"] for run in runs(store, "two")) == ["1", "2"]
    assert main([*arguments, "--resume"]) == 0
    assert len(runs(store, "two")) == 2


@pytest.mark.slow
def test_a_store_that_cannot_be_used_is_one_sentence_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"^--mlflow http://127\.0\.0\.1:9: the store cannot be used"):
        simulate(tiny(), out=tmp_path / "run", mlflow="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"--mlflow ftp://here: the store cannot be used"):
        simulate(tiny(), out=tmp_path / "run", mlflow="ftp://here")
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedvision\[mlflow\]'"):
        simulate(tiny(), out=tmp_path / "run", mlflow="runs.db")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_store_that_fails_at_the_end_leaves_the_run_finished(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    def fail(*arguments: Any, **named: Any) -> None:
        raise MlflowException("the disk is full\nthere")

    config = tiny(name="failing", rounds=1)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", fail)
        result = simulate(config, out=tmp_path / "run", mlflow=store)
    assert result.folder.summary()["status"] == "finished"
    assert (
        "did not take the run's figures (the disk is full there); the same command" in capsys.readouterr().err
    )
    simulate(config, out=tmp_path / "run", mlflow=store, resume=True)
    assert [run.info.status for run in runs(store, "failing")] == ["FINISHED"]


def test_a_path_is_a_file_of_sqlite() -> None:
    assert address("/a/b.db") == "sqlite:////a/b.db"
    assert address("http://here:5000") == "http://here:5000"
