"""``--data SOURCE`` as a ``[data]`` table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedvision.data.sources.shorthand import spelled_table
from fedvision.errors import ConfigError

PICTURES = {"size": 8, "fit": "pad"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a.npz", "a.CSV", "a.zip"):
        (tmp_path / name).write_bytes(b"")
    for folder in ("yolo", "VOC2012/Annotations", "VOC2012/JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("boxes.json", "yolo/data.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "named.toml").write_text('data = "digits"')
    (tmp_path / "table.toml").write_text('[data]\nuse = "image-folder"\npath = "x"\nfit = "crop"')
    (tmp_path / "none.toml").write_text("rounds = 3")


@pytest.mark.parametrize(
    ("source", "table"),
    [
        ("photos", {"use": "image-folder", "path": "photos", **PICTURES}),
        ("a.npz", {"use": "npz", "path": "a.npz"}),
        ("a.CSV", {"use": "manifest", "path": "a.CSV", **PICTURES}),
        ("boxes.json", {"use": "coco", "path": "boxes.json", **PICTURES}),
        ("yolo", {"use": "yolo", "path": "yolo", **PICTURES}),
        ("yolo/data.yaml", {"use": "yolo", "path": "yolo/data.yaml", **PICTURES}),
        ("VOC2012", {"use": "voc", "path": "VOC2012", **PICTURES}),
        ("digits", {"use": "digits"}),
        ("my_data:load", {"use": "my_data:load"}),
        ('use = "npz", path = "a.npz"', {"use": "npz", "path": "a.npz"}),
        (
            '{ use = "manifest", path = "t", size = 9 }',
            {"use": "manifest", "path": "t", "size": 9, "fit": "pad"},
        ),
        ("named.toml", {"use": "digits"}),
        ("table.toml", {"use": "image-folder", "path": "x", "size": 8, "fit": "crop"}),
    ],
)
def test_what_a_source_means(source: str, table: dict[str, Any]) -> None:
    assert spelled_table(source, lambda: PICTURES) == table


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("a.zip", "only folders, .npz and .csv files are read"),
        ("b.npz", "there is no such file or folder"),
        ("b.toml", "there is no such file; name an experiment's file"),
        ("none.toml", "it has no [data]"),
        ("use = npz", "this is no table"),
        ('path = "a.npz"', "its key use is missing"),
        ("use = 3", "its key use is missing"),
    ],
)
def test_what_is_no_source(source: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spelled_table(source, lambda: PICTURES)
    assert sentence in str(caught.value)
    assert source in str(caught.value)


def test_no_size_without_files() -> None:
    def refuse() -> dict[str, Any]:
        raise AssertionError

    assert spelled_table("a.npz", refuse) == {"use": "npz", "path": "a.npz"}
