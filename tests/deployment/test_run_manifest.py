"""What server and client agree on: the same facts back, one sentence for everything else."""

from __future__ import annotations

import io
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fedvision.deployment.run_manifest import PROTOCOL, RunManifest, build_fab
from fedvision.errors import ConfigError
from tests.experiments import tiny

FACTS = RunManifest(run="ab12", experiment=tiny().to_toml(), classes=("a", "ü"), image=(8, 8, 1))


def test_facts_come_back_and_name_the_experiment() -> None:
    assert RunManifest.from_table(FACTS.to_table()) == FACTS
    assert FACTS.config == tiny()


def test_a_run_config_holds_plain_values_that_the_bundle_declares() -> None:
    with zipfile.ZipFile(io.BytesIO(build_fab())) as archive:
        assert archive.namelist() == ["pyproject.toml", ".info/CONTENT"], "no code travels"
        page = tomllib.loads(archive.read("pyproject.toml").decode())
    declared = page["tool"]["flwr"]["app"]["config"]
    table = FACTS.to_table()
    assert set(declared) == set(table)
    assert all(type(table[key]) is type(declared[key]) for key in table)
    assert build_fab() == build_fab()


def test_flower_installs_the_app_bundle(tmp_path: Path) -> None:
    """Flower installs the bundle and finds the app of its own clients here."""
    from flwr.cli.install import install_from_fab
    from flwr.clientapp import ClientApp
    from flwr.supercore.object_ref import load_app

    installed = install_from_fab(build_fab(), install_dir=tmp_path, skip_prompt=True)
    page = tomllib.loads((installed / "pyproject.toml").read_text())
    assert [path.name for path in installed.iterdir()] == ["pyproject.toml"]
    named = page["tool"]["flwr"]["app"]["components"]["clientapp"]
    assert isinstance(load_app(named, ImportError, installed), ClientApp)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"protocol": PROTOCOL + 1, "version": "9.9"},
            f"the server speaks protocol {PROTOCOL + 1} (fedvision 9.9)",
        ),
        (
            {"protocol": PROTOCOL - 1, "version": "0.0.1"},
            f"protocol {PROTOCOL - 1} (fedvision 0.0.1) and this client protocol {PROTOCOL}",
        ),
        ({"version": "9.9"}, "(fedvision 9.9) and this client"),
        ({"protocol": None}, "install the same fedvision on both"),
        ({"experiment": "rounds = 99"}, "is not the one that the server sent"),
        ({"classes": "{"}, "incomplete"),
        ({"image": "[1e999, 1, 1]"}, "incomplete"),
        ({"weights": "[" * 100_000}, "incomplete"),
        ({"image": "[8, 8]"}, "damaged"),
        ({"run": "../../etc"}, "damaged"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RunManifest.from_table(FACTS.to_table() | change)
    assert sentence in str(refused.value)
