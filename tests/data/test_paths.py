"""Paths as people write them, and defaults from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.data import paths


def test_home_and_variables_are_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLINIC", "north")
    assert paths.expand("~/images/$CLINIC") == tmp_path / "images/north"


def test_a_relative_path_is_relative_to_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.expand("images") == tmp_path / "images"


@pytest.mark.parametrize(
    ("where", "variable", "default"),
    [
        (paths.data_root, "FEDVISION_DATA", ".cache/fedvision"),
        (paths.cache_folder, "FEDVISION_CACHE", ".cache/fedvision/decoded"),
    ],
)
def test_what_is_written_beats_the_environment_and_that_the_default(
    where: object, variable: str, default: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert callable(where)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/moved")
    assert where("/written") == Path("/written")
    assert where("") == tmp_path / "moved"
    monkeypatch.delenv(variable)
    assert where("") == tmp_path / default
