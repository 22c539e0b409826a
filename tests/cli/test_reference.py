"""The generated reference of configuration keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fedvision.cli.reference import render
from fedvision.config import ExperimentConfig, TrainingConfig
from fedvision.losses.margins import ldam
from fedvision.shared_keys import field_texts


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs/configuration.md"
    assert page.read_text() == render(), "run: python -m fedvision.cli.reference > docs/configuration.md"


def test_every_key_is_described() -> None:
    texts = field_texts(TrainingConfig)
    assert texts["lr"] == "Learning rate of round 1."
    for cls in (ExperimentConfig, TrainingConfig):
        assert all(field_texts(cls).get(field.name) for field in dataclasses.fields(cls))


def test_arguments_of_a_plugin_are_listed() -> None:
    _, _, after = render().partition("### `ldam`")
    section = after.partition("### ")[0]
    assert "| `max_margin` | `0.5` | Margin of the rarest class, in units of a logit, >= 0. |" in section
    assert "`counts`" not in section
    assert (ldam.__doc__ or "").splitlines()[0] in section.replace("\n", " ")
