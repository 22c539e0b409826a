"""The methods that docs/algorithms.md writes as TOML: each is built, with the data of the tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedvision.experiment import Experiment
from tests.experiments import tiny

PAGE = (Path(__file__).parents[2] / "docs/algorithms.md").read_text()
SECTION = re.split(
    r"^## ", PAGE.partition("## Methods of several parts\n")[2], maxsplit=1, flags=re.MULTILINE
)[0]
RECIPES = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", SECTION, re.DOTALL)]


@pytest.mark.parametrize("tables", RECIPES, ids=lambda tables: "-".join(tables))
def test_a_recipe_is_an_experiment_without_a_notice_on_the_method(tables: dict[str, Any]) -> None:
    experiment = Experiment.build(tiny(**tables))
    assert not any("the paper's" in notice for notice in experiment.notices())


def test_the_page_has_recipes() -> None:
    assert len(RECIPES) == 4
