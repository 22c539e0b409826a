"""What server and client agree on: the same facts back, one sentence for everything else."""

from __future__ import annotations

import io
import tomllib
import zipfile
from typing import Any

import pytest

from fedvision.deploy.contract import PROTOCOL, RunFacts, bundle
from fedvision.errors import ConfigError
from tests.experiments import tiny

FACTS = RunFacts(run="ab12", experiment=tiny().to_toml(), classes=("a", "ü"), image=(8, 8, 1))


def test_facts_come_back_and_name_the_experiment() -> None:
    assert RunFacts.from_table(FACTS.to_table()) == FACTS
    assert FACTS.config == tiny()


def test_a_run_config_holds_plain_values_that_the_bundle_declares() -> None:
    with zipfile.ZipFile(io.BytesIO(bundle())) as archive:
        assert archive.namelist() == ["pyproject.toml"], "no code travels"
        page = tomllib.loads(archive.read("pyproject.toml").decode())
    declared = page["tool"]["flwr"]["app"]["config"]
    table = FACTS.to_table()
    assert set(declared) == set(table)
    assert all(type(table[key]) is type(declared[key]) for key in table)
    assert bundle() == bundle()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"protocol": PROTOCOL + 1, "version": "9.9"}, "the server speaks protocol 3 (fedvision 9.9)"),
        (
            {"protocol": PROTOCOL - 1, "version": "0.0.1"},
            f"protocol {PROTOCOL - 1} (fedvision 0.0.1) and this client protocol {PROTOCOL}",
        ),
        ({"version": "9.9"}, "(fedvision 9.9) and this client"),
        ({"protocol": None}, "install the same fedvision on both"),
        ({"experiment": "rounds = 99"}, "is not the one that the server sent"),
        ({"classes": "{"}, "incomplete"),
        ({"image": "[8, 8]"}, "damaged"),
        ({"run": "../../etc"}, "damaged"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RunFacts.from_table(FACTS.to_table() | change)
    assert sentence in str(refused.value)
