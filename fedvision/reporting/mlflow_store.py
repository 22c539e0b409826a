"""A run folder's figures in an MLflow store: a database file, or a server.

A run has the name of its experiment, whose keys are its parameters, and the scalars have the names that they
have in TensorBoard. All runs are in one of MLflow's experiments, ``fedvision`` or ``MLFLOW_EXPERIMENT_NAME``.
A run that is written again replaces what it wrote before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedvision.errors import ConfigError, RunError
from fedvision.formatting import one_line
from fedvision.reporting.scalars import scalars
from fedvision.runs.folder import RunFolder

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NO_MLFLOW = "MLflow is not installed; run pip install 'fedvision[mlflow]', or leave it out"
_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
_FOLDER = "fedvision.run"
"""The tag with a run's folder."""
_PARAMETERS, _METRICS, _LENGTH = 100, 1000, 500
"""What one request takes: parameters, metrics; and letters of a parameter's value in any store."""
_T = TypeVar("_T")


def address(store: str) -> str:
    """Return a store as MLflow names it: a path is a file of SQLite, which is made where it is missing."""
    return store if "://" in store else f"sqlite:///{Path(store).absolute()}"


def open_store(store: str) -> tuple[MlflowClient, str]:
    """Open a store, and return it with the id of MLflow's experiment, which is made where it is missing.

    Args:
        store: ``http://HOST:PORT`` of a server, or the path of a file.

    Raises:
        ConfigError: MLflow is not installed, or the store does not answer.
    """
    # It reports its use to its makers by default; nothing of a federation is theirs to know.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise ConfigError(NO_MLFLOW) from error
    try:
        client, experiment = MlflowClient(address(store)), os.environ.get(_VARIABLE) or "fedvision"
        found = client.get_experiment_by_name(experiment)
        return client, found.experiment_id if found else client.create_experiment(experiment)
    except (MlflowException, OSError, ValueError) as error:
        raise ConfigError(
            f"--mlflow {store}: the store cannot be used ({one_line(str(error))[:200]}); name a server's URL "
            "or a file"
        ) from error


def write_to_mlflow(folder: RunFolder, store: str) -> str:
    """Write a run's parameters and scalars, and return MLflow's id of the run.

    Args:
        folder: The run.
        store: As ``open_store`` takes it.

    Raises:
        ConfigError: As of ``open_store``.
        RunError: The store stopped answering.
    """
    config = folder.config()
    client, experiment = open_store(store)
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    now = int(1000 * time.time())
    try:
        for old in client.search_runs([experiment], f"tags.`{_FOLDER}` = '{_tag(folder.path)}'"):
            client.delete_run(old.info.run_id)
        run = client.create_run(experiment, run_name=config.name, tags={_FOLDER: _tag(folder.path)})
        name = run.info.run_id
        parameters = [Param(key, value[:_LENGTH]) for key, value in _flat(config.to_dict())]
        for some in _some(parameters, _PARAMETERS):
            client.log_batch(name, params=some)
        metrics = [
            Metric(key, value, now, round) for round, found in scalars(folder) for key, value in found.items()
        ]
        for part in _some(metrics, _METRICS):
            client.log_batch(name, metrics=part)
        client.set_terminated(name)
    except MlflowException as error:
        raise RunError(
            f"--mlflow {store}: the store did not take the run's figures ({one_line(str(error))[:200]}); the "
            "same command with --resume sends them again"
        ) from error
    return str(name)


def _tag(folder: Path) -> str:
    return str(folder.absolute()).replace("'", "_")


def _flat(table: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys with their values as text; tables of a list are one value."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", str(value)


def _some(things: Sequence[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(things)
    while some := list(islice(rest, size)):
        yield some
