"""Plug-ins that fail, end the program or return something else: one sentence names them, before a run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvision import simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.errors import ConfigError, FedVisionError, RunError
from fedvision.experiment import Experiment
from fedvision.files import read_lines
from fedvision.training.client_algorithm import ClientAlgorithm
from tests.experiments import tiny

HERE = __name__
TABLES: dict[str, Callable[[str], dict[str, Any]]] = {
    "data": lambda use: {"data": use},
    "partition": lambda use: {"partition": {"use": use, "clients": 3}},
    "model": lambda use: {"model": use},
    "loss": lambda use: {"loss": use},
    "strategy": lambda use: {"strategy": use},
    "task": lambda use: {"task": use},
    "update": lambda use: {"update": [{"use": use}]},
    "schedule": lambda use: {"training": {"schedule": use}},
    "sampler": lambda use: {"training": {"sampler": use}},
    "optimizer": lambda use: {"training": {"optimizer": use}},
}


def nothing(**given: Any) -> None:
    """Return nothing."""


def leaves(lr: float = 0.1) -> None:
    """End the program."""
    raise SystemExit(5)


def lacks(lr: float = 0.1) -> None:
    """Look something up that is not there."""
    raise KeyError("x")


number = 5


def gives_nothing(**given: Any) -> Callable[..., None]:
    """Return a function that returns nothing."""
    return lambda *given: None


class Fails(nn.Module):
    """Raises in training on batches of more than two images, which no trial before a run has."""

    def __init__(self, num_classes: int, error: str) -> None:
        super().__init__()
        self.head = nn.Linear(64, num_classes)
        self.error = {"exit": SystemExit(4), "key": KeyError("gone"), "assert": AssertionError()}[error]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C], or raise."""
        if self.training and len(images) > 2:
            raise self.error
        logits: torch.Tensor = self.head(images.flatten(1))
        return logits


class EndsBadly(ClientAlgorithm):
    """Returns no pair of tensors."""

    def finish(self, steps: int, lr: float) -> Any:
        """Return what is no memory."""
        return {}, None


class Unfinished(FedAvg):
    """FedAvg with a client half that ends badly."""

    client = EndsBadly


def experiment(kind: str, name: str) -> ExperimentConfig:
    return tiny(**TABLES[kind](f"{HERE}:{name}"), rounds=1)


@pytest.mark.parametrize("kind", sorted(TABLES))
@pytest.mark.parametrize(
    ("name", "sentence"),
    [("leaves", "building it failed: SystemExit: 5"), ("lacks", "building it failed: KeyError: 'x'")],
)
def test_a_factory_that_fails_is_named(kind: str, name: str, sentence: str) -> None:
    with pytest.raises(FedVisionError) as caught:
        Experiment.build(experiment(kind, name))
    assert sentence in str(caught.value)
    assert f"{HERE}:{name}" in str(caught.value)


@pytest.mark.parametrize("kind", sorted(TABLES))
@pytest.mark.parametrize("name", ["nothing", "gives_nothing", "number", "absent"])
def test_a_factory_that_makes_something_else_is_named(kind: str, name: str) -> None:
    with pytest.raises(FedVisionError) as caught:
        Experiment.build(experiment(kind, name))
    assert f"{HERE}:{name}" in str(caught.value)


def test_names_that_a_module_has_are_its_public_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        Experiment.build(experiment("model", "zzzz"))
    assert "; known: " in str(caught.value)
    assert "__" not in str(caught.value).partition("known")[2]


def test_a_module_that_ends_the_program(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(7)\n")
    (tmp_path / "e.toml").write_text(
        'data = "digits"\nmodel = "ends:net"\n[partition]\nuse = "iid"\nclients = 2\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "fedvision", "simulate", "e.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "fedvision: e.toml: [model] use = 'ends:net': importing 'ends' failed: SystemExit: 7"
    )


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        (
            {"model": {"use": f"{HERE}:Fails", "error": "exit"}},
            "SystemExit: 4 (test_failing_plugins.py, line ",
        ),
        ({"model": {"use": f"{HERE}:Fails", "error": "key"}}, "KeyError: 'gone' (test_failing_plugins.py, "),
        ({"model": {"use": f"{HERE}:Fails", "error": "assert"}}, "AssertionError (test_failing_plugins.py, "),
        ({"strategy": f"{HERE}:Unfinished"}, "finish of the client half EndsBadly must return a pair"),
    ],
)
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_what_a_plugin_raises_in_training_is_told_of_its_client(
    tables: dict[str, Any], reason: str, engine: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="no client succeeded in 2 rounds in a row; client 0: ") as caught:
        simulate(tiny(**tables, rounds=2), out=tmp_path / "run", engine=engine)
    assert reason in str(caught.value)
    (first, *_) = read_lines(tmp_path / "run/rounds.jsonl")
    assert [item["client"] for item in first["refused"]] == [0, 1, 2, 3, 4]


class Rule(FedAvg):
    """FedAvg of which one method raises or returns something else."""

    def __init__(self, method: str, result: str) -> None:
        super().__init__()
        self.__dict__[method] = {"key": self._key, "exit": self._exit, "number": lambda *given: 5}[result]

    @staticmethod
    def _key(*given: Any) -> None:
        raise KeyError("k")

    @staticmethod
    def _exit(*given: Any) -> None:
        raise SystemExit(3)

    def refine(self, state: Any, server: Any) -> Any:
        """Stand for a refinement, so that one is tried."""
        return state


@pytest.mark.parametrize("method", ["check", "notices", "personal", "query", "refine", "side_networks"])
@pytest.mark.parametrize(
    ("result", "reason"), [("key", "KeyError: 'k'"), ("exit", "SystemExit: 3"), ("number", "")]
)
def test_a_method_of_a_strategy_that_fails_is_one_sentence(
    method: str, result: str, reason: str, tmp_path: Path
) -> None:
    """Those that the server calls in a round are in ``flower/test_own_strategies``."""
    config = tiny(strategy={"use": f"{HERE}:Rule", "method": method, "result": result}, rounds=1)
    if (method, result) == ("check", "number"):
        simulate(config, out=tmp_path / "run")
        return
    with pytest.raises(FedVisionError) as caught:
        simulate(config, out=tmp_path / "run")
    assert "Rule" in str(caught.value)
    assert reason in str(caught.value)


def images(size: int = 8, **changed: Any) -> ImageSet:
    facts: dict[str, Any] = {"images": np.zeros((6, size, size, 1), np.uint8), "labels": np.arange(6) % 2}
    return ImageSet(**{**facts, **changed})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Dataset(train=None, classes=("a", "b")), "train must be a .*ImageSet, not NoneType"),  # type: ignore[arg-type]
        (
            lambda: Dataset(train=images(), test=(1, 2), classes=("a", "b")),  # type: ignore[arg-type]
            "test must be a .*ImageSet, not tuple",
        ),
        (
            lambda: Dataset(train=images(), classes=("a", "b", "a")),
            "1 class names are there twice, such as 'a'",
        ),
        (
            lambda: Dataset(train=images(), test=images(9), classes=("a", "b")),
            r"test images are \[9, 9, 1\], and training images \[8, 8, 1\]",
        ),
        (lambda: images(labels=[0, 1] * 3), "labels must be a NumPy array, not list"),
        (lambda: images(images=None), "images must be a NumPy array, not NoneType"),
    ],
)
def test_a_data_set_of_something_else_is_refused(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(FedVisionError, match=sentence):
        make()


def test_what_nobody_sees_in_a_class_name_is_written_out() -> None:
    names = ("new\nline", "\x1b[31mred", "\u202ertl", "zero\u200bwidth", "caf\udce9", "caf\xe9", "\U0001f600")
    assert Dataset(train=images(), classes=names).classes == (
        "new\\nline",
        "\\x1b[31mred",
        "\\u202ertl",
        "zero\\u200bwidth",
        "caf\\xe9",
        "caf\xe9",
        "\U0001f600",
    )
