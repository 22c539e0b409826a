"""What lies in simulations/ and in the pages works: every experiment is sound, every command exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fedvision import registry
from fedvision.cli import main
from fedvision.config import ExperimentConfig
from fedvision.sweep import load_sweep
from tests.test_docs import PAGES, RUNTIME

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(ROOT.glob("simulations/**/*.toml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_experiment_names_what_there_is(path: Path) -> None:
    registry.allow_folder(path.parent)
    for config in load_sweep(path).experiments.values():
        for kind in ("data", "partition", "model", "loss", "strategy"):
            registry.check(kind, getattr(config, kind), RUNTIME.get(kind, frozenset()))
        assert ExperimentConfig.from_toml(config.to_toml()) == config


def commands() -> list[tuple[str, str]]:
    """Return every ``fedvision ...`` and ``make ...`` line of the pages' code blocks."""
    found = []
    for page in PAGES:
        for kind, block in re.findall(r"```(sh|console)?\n(.*?)```", page.read_text(), re.S):
            for line in block.splitlines():
                if kind == "console" and not line.startswith("$ "):
                    continue  # what a command printed
                text = line.removeprefix("$ ").split("  #")[0].strip()
                if text.startswith(("fedvision ", "make ")):
                    found.append((str(page.relative_to(ROOT)), text))
    return found


def test_the_readme_shows_commands() -> None:
    assert {"README.md"} <= {page for page, _ in commands()}


@pytest.mark.parametrize(("page", "text"), commands())
def test_every_command_in_a_readme_is_understood(page: str, text: str) -> None:
    arguments = shlex.split(text)
    if arguments[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(arguments[1:]) <= set(targets)
        return
    options = main.parser().parse_args(arguments[1:])
    experiment = getattr(options, "experiment", None)
    if experiment is not None and "mine" not in str(experiment):
        assert (ROOT / experiment).exists(), f"{page}: {experiment}"
