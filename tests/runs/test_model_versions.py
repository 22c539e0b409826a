"""The record of a model's versions: the last line of a name counts, and a damaged one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvision.errors import RunFolderError
from fedvision.runs.model_versions import FILE, ModelVersion, append_version, read_versions


def test_a_version_that_is_made_again_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    assert read_versions(tmp_path) == []
    small = ModelVersion(name="half", kind="pruned", run="runs/half", bytes=50, latency_ms={"1": 0.5})
    first = ModelVersion(name="as trained", kind="original", bytes=100, machine={"threads": 1})
    for one in (small, first, ModelVersion(name="half", kind="pruned", bytes=40)):
        append_version(tmp_path, one)
    assert read_versions(tmp_path) == [first, ModelVersion(name="half", kind="pruned", bytes=40)]
    append_version(tmp_path, small)
    assert read_versions(tmp_path) == [first, small]


@pytest.mark.parametrize("line", ['{"kind": "export"}', '{"name": "x", "kind": "smaller"}'])
def test_a_line_that_names_no_version_is_an_error(line: str, tmp_path: Path) -> None:
    append_version(tmp_path, ModelVersion(name="x", kind="export"))
    with (tmp_path / FILE).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunFolderError, match=rf"{FILE}, line 2: it names no version of a model"):
        read_versions(tmp_path)


def test_keys_of_a_later_fedvision_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"name": "x", "kind": "export", "energy": 3}\n')
    assert read_versions(tmp_path) == [ModelVersion(name="x", kind="export")]
