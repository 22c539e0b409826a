"""The house itself: who may import whom, that importing is instant, that every plug-in's target exists."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fedvision import registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedvision"
BASE = {
    "types",
    "errors",
    "seeding",
    "cores",
    "tables",
    "config",
    "sweep",
    "registry",
    "interruption",
    "streams",
}
# A room may import the rooms named here, itself and the base; the order is the house's, from the cellar up.
ROOMS: dict[str, set[str]] = {
    "metrics": set(),
    "data": set(),
    "models": set(),
    "losses": set(),
    "training": {"losses", "models", "data", "metrics"},
    "strategies": {"training"},
    "flower": {"strategies", "training", "losses", "models", "data", "metrics"},
    "engines": {"flower"},
    "reporting": {"data", "metrics"},
    "federation": {"reporting", "flower", "strategies", "training", "models", "data", "metrics"},
    "journal": {
        "federation",
        "reporting",
        "flower",
        "strategies",
        "training",
        "models",
        "data",
        "metrics",
    },
    "link": {"flower"},
    "deploy": {
        "link",
        "journal",
        "engines",
        "federation",
        "reporting",
        "flower",
        "strategies",
        "training",
        "losses",
        "models",
        "data",
        "metrics",
    },
    "client": {
        "deploy",
        "link",
        "flower",
        "strategies",
        "training",
        "losses",
        "models",
        "data",
        "metrics",
    },
    "simulation": {
        "journal",
        "federation",
        "engines",
        "reporting",
        "flower",
        "strategies",
        "training",
        "models",
        "data",
        "metrics",
    },
    "api": {"simulation", "federation", "reporting"},
    "commands": {"api", "client", "deploy", "federation", "reporting", "link", "flower"},
    "cli": {"commands", "api", "federation", "reporting"},
    "__init__": {"api"},
}
OUTSIDE = {
    "flwr": {"flower", "link", "engines", "simulation", "federation", "journal", "deploy", "client"},
    "ray": {"engines"},
}
NON_PUBLIC = ("flwr.app", "flwr.serverapp", "flwr.clientapp")


def _imports(file: Path) -> set[str]:
    """Return every module a file imports, those inside functions and under TYPE_CHECKING included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def _room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_keep_to_the_houses_directions(file: Path) -> None:
    room = _room(file)
    allowed = BASE | ROOMS.get(room, set()) | {room, "__version__"}
    for name in _imports(file):
        if name.startswith("fedvision."):
            target = name.split(".")[1]
            assert target in allowed or (room in BASE and target in BASE), f"{room} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_flower_and_ray_stay_in_their_rooms(file: Path) -> None:
    names = _imports(file)
    for package, rooms in OUTSIDE.items():
        if any(name.split(".")[0] == package for name in names):
            assert _room(file) in rooms, f"{file} imports {package}"
    private = {name for name in names if name.startswith("flwr.") and not name.startswith(NON_PUBLIC)}
    assert not private or file.name.startswith("internals"), f"{file} imports {private}"


def test_every_room_is_in_the_plan() -> None:
    assert {_room(file) for file in FILES} <= set(ROOMS) | BASE


def test_import_is_instant_and_loads_nothing_heavy() -> None:
    script = (
        "import sys, time; t = time.process_time(); import fedvision; t = time.process_time() - t\n"
        "print(t, sorted({'torch', 'flwr', 'ray', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.strip().split(" ", 1)
    assert loaded == "[]"
    assert float(seconds) < 0.1


def test_lazy_names_resolve() -> None:
    import fedvision

    assert all(getattr(fedvision, name) is not None for name in fedvision.__all__)
    with pytest.raises(AttributeError, match="no attribute 'simulte'"):
        _ = fedvision.simulte


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, table in registry.BUILTINS.items() for name in table]
)
def test_every_builtin_resolves_and_is_described(kind: str, name: str) -> None:
    factory = registry.resolve(kind, name)
    assert callable(factory.call)
    assert (factory.call.__doc__ or "").strip()


def test_sources_say_what_they_are_and_stay_short() -> None:
    for file in FILES:
        text = file.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{file} has no docstring"
        assert text.count("\n") <= 400, f"{file} is two rooms"
