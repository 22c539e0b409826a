"""Two experiments in different folders have modules of one name: each gets the one beside it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fedvision import registry
from fedvision.errors import PluginError
from fedvision.experiment import Experiment
from fedvision.plugin_folder import allow_folder, allowed_folder, other_module
from fedvision.runs.folder import RunFolder
from fedvision.simulation import Simulation
from fedvision.types import PluginSpec
from tests.experiments import tiny

PART = PluginSpec(use="part_of_two_folders:make")


def folder(place: Path, value: int, *, helper: bool = True) -> Path:
    """Write a folder whose plug-in returns the value of the helper beside it."""
    place.mkdir()
    if helper:
        (place / "helper_of_two_folders.py").write_text(f"VALUE = {value}\n")
    (place / "part_of_two_folders.py").write_text(
        "def make():\n    from helper_of_two_folders import VALUE\n    return VALUE\n"
    )
    return place


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return folder(tmp_path / "one", 1), folder(tmp_path / "two", 2)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave the process as it was: no folder, no module of one, no place to look for them."""
    path = list(sys.path)
    yield
    allow_folder(None)
    sys.path[:] = path
    for name in ("part_of_two_folders", "helper_of_two_folders"):
        sys.modules.pop(name, None)


@pytest.fixture
def program(folders: tuple[Path, Path]) -> Callable[[], ModuleType]:
    """Return how a program imports the first folder's module without a word to the registry."""

    def own() -> ModuleType:
        sys.path.insert(0, str(folders[0]))
        importlib.invalidate_caches()
        return importlib.import_module("part_of_two_folders")

    return own


def test_each_folder_has_its_own_modules_and_keeps_them(folders: tuple[Path, Path]) -> None:
    made, calls = [], []
    for place in (*folders, *folders):
        allow_folder(place)
        made.append(registry.build("data", PART))
        calls.append(registry.resolve("data", PART.use).call)
        assert Path(sys.modules["helper_of_two_folders"].__file__ or "").parent == place
    assert made == [1, 2, 1, 2]
    assert calls[0] is calls[2] is not calls[1]
    assert calls[1] is calls[3]
    assert str(folders[0]) not in sys.path


def test_a_module_of_another_folder_is_not_taken_for_a_missing_one(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    allow_folder(folders[0])
    assert registry.build("data", PART) == 1
    (tmp_path / "empty").mkdir()
    allow_folder(tmp_path / "empty")
    with pytest.raises(PluginError, match=r"put part_of_two_folders.py beside the experiment"):
        registry.build("data", PART)
    allow_folder(folder(tmp_path / "no-helper", 3, helper=False))
    with pytest.raises(PluginError, match="No module named 'helper_of_two_folders'"):
        registry.build("data", PART)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_programs_own_module_steps_aside_and_comes_back(
    first: bool, folders: tuple[Path, Path], program: Callable[[], ModuleType]
) -> None:
    """Whether the program imports its own before the folder is in use or, by its path, after."""
    if not first:
        allow_folder(folders[1])
    own = program()
    if first:
        allow_folder(folders[1])
    assert registry.build("data", PART) == 2
    assert sys.modules["part_of_two_folders"] is not own
    allow_folder(None)
    assert sys.modules["part_of_two_folders"] is own
    assert sys.path[0] == str(folders[0])


def test_a_folder_that_the_program_imported_from_keeps_its_module(
    folders: tuple[Path, Path], program: Callable[[], ModuleType]
) -> None:
    own = program()
    allow_folder(folders[0])
    assert registry.resolve("data", PART.use).call is own.make
    allow_folder(None)
    assert sys.modules["part_of_two_folders"] is own


@pytest.mark.parametrize("name", ["colorsys", "torch"])
def test_a_name_that_others_rest_on_is_refused(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(name)
    (tmp_path / f"{name}.py").write_text("def make():\n    return 1\n")
    allow_folder(tmp_path)
    assert sys.modules[name] is module
    assert other_module(name) == module.__file__
    with pytest.raises(PluginError, match=rf"'{name}' beside the experiment has the name .*rename the file"):
        registry.build("data", PluginSpec(use=f"{name}:make"))


def test_a_run_uses_the_folder_with_which_it_was_built(folders: tuple[Path, Path], tmp_path: Path) -> None:
    built = []
    for place in folders:
        allow_folder(place)
        built.append(Experiment.build(tiny()))
    for place, experiment in zip(folders, built, strict=True):
        Simulation(experiment, RunFolder.create(tmp_path / f"run-{place.name}", experiment.config))
        assert allowed_folder() == place
