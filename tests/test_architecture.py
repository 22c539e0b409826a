"""The architecture: who may import whom, that importing is instant, that every plug-in's target exists."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from fedvision import registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedvision"
BASE = {
    *(
        "types",
        "errors",
        "seeding",
        "cores",
        "memory",
        "files",
        "formatting",
        "log_format",
        "ranges",
        "devices",
        "tables",
        "config",
        "inputs",
        "sweep",
    ),
    *(
        "registry",
        "builtin_plugins",
        "families",
        "plugin_folder",
        "interruption",
        "streams",
        "stages",
        "shared_keys",
    ),
}
"""Modules that every package may import."""
LAYERS = (
    "losses",
    "data",
    "data.partition",
    "data.decoding",
    "data.sources",
    "models",
    "tasks",
    "aggregation",
    "updates",
    "training",
    "training.vectorized",
    "explanation",
    "algorithms",
    "flower",
    "server",
    "engines",
    "engines.ray",
    "libraries",
    "experiment",
    "experiment_builder",
    "runs",
    "simulation",
    "baselines",
    "reporting",
    "deployment",
    "deployment.transport",
    "deployment.client",
    "deployment.server",
    "watching",
    "trained_model",
    "detecting",
    "derived_model",
    "pruning",
    "adjustment",
    "generated",
    "export",
    "api",
    "unlearning",
    "parallel_runs",
    "sweep_runner",
    "testing",
    "cli",
    "__main__",
    "__init__",
)
"""Packages and modules from the lowest to the highest: each may import those before it, and BASE."""
APART = {
    "models": {"losses", "data"},
    "aggregation": set(LAYERS[:7]),
    "updates": {"losses", "data", "tasks", "aggregation"},
    "reporting": {"engines", "engines.ray", "simulation"},
    "deployment": set(LAYERS[:23]) - {"aggregation"},
    "deployment.transport": {
        "server",
        "engines",
        "engines.ray",
        "experiment",
        "runs",
        "simulation",
        "reporting",
    },
    "deployment.client": {
        "server",
        "engines",
        "engines.ray",
        "experiment",
        "runs",
        "simulation",
        "reporting",
    },
    "deployment.server": {"deployment.client", "engines.ray", "simulation", "reporting"},
    "watching": {"deployment.client", "engines", "engines.ray", "simulation", "server", "flower", "training"},
}
"""Lower packages that a package must not import all the same."""
OUTSIDE = {
    "flwr": {"flower", "server", "engines", "engines.ray", "simulation", "baselines", "experiment", "runs"}
    | {name for name in LAYERS if name.startswith("deployment")},
    "ray": {"engines", "engines.ray"},
}
NON_PUBLIC = ("flwr.app", "flwr.serverapp", "flwr.clientapp")


@cache
def _imports(file: Path) -> set[str]:
    """Return every module a file imports, those inside functions and under TYPE_CHECKING included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def _package(parts: tuple[str, ...]) -> str:
    """Return the layer of a module given by the parts of its dotted name, ``fedvision`` left out."""
    dotted = ".".join(parts[:2])
    return dotted if dotted in LAYERS else parts[0]


def _layer(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return _package(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = sorted(PACKAGE.rglob("*.py"))


def test_no_import_climbs() -> None:
    climbing = []
    for file in FILES:
        own = _layer(file)
        below = BASE if own in BASE else BASE | set(LAYERS[: LAYERS.index(own) + 1]) - APART.get(own, set())
        allowed = below | {own, "__version__"}
        ours = (name for name in _imports(file) if name.startswith("fedvision."))
        climbing += [
            (str(file), name) for name in ours if _package(tuple(name.split(".")[1:])) not in allowed
        ]
    assert climbing == []


def test_no_files_import_each_other() -> None:
    """Not in a circle of several either; a package's own file is what it imports, not what imports it."""
    names = {".".join(("fedvision", *f.relative_to(PACKAGE).with_suffix("").parts)): f for f in FILES}
    graph = {name: (_imports(file) & names.keys()) - {name} for name, file in names.items()}
    while free := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in free:
            del graph[name]
    assert sorted(graph) == []


def test_flower_and_ray_stay_in_their_packages() -> None:
    strange = []
    for file in FILES:
        names = _imports(file)
        for package, layers in OUTSIDE.items():
            if any(name.split(".")[0] == package for name in names) and _layer(file) not in layers:
                strange.append((str(file), package))
        private = {name for name in names if name.startswith("flwr.") and not name.startswith(NON_PUBLIC)}
        if not file.name.startswith("internals"):
            strange += [(str(file), name) for name in private]
    assert strange == []


def test_every_package_has_a_layer_and_stands_in_the_drawing() -> None:
    found = {_layer(file) for file in FILES}
    assert found == set(LAYERS) | BASE
    drawing = (ROOT / "docs/architecture.md").read_text()
    packages = [name for name in LAYERS if (PACKAGE / name.replace(".", "/")).is_dir()]
    assert [name for name in packages if f"`{name}`" not in drawing] == []


def test_tests_mirror_the_packages() -> None:
    """A test file of a package lies where the package does; helpers and whole-system tests are free."""
    for folder in (ROOT / "tests").rglob("*"):
        if any(folder.glob("test_*.py")) and folder.name != "benchmarks":
            assert (PACKAGE / folder.relative_to(ROOT / "tests")).is_dir(), folder


def test_import_is_instant_and_loads_nothing_heavy() -> None:
    script = "import sys; before = set(sys.modules); import fedvision; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "fedvision" in loaded
    assert loaded <= {"fedvision", *sys.stdlib_module_names}
    assert len(done.stdout.split()) < 30, "each takes a millisecond or so"


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


def test_sources_have_a_docstring_and_stay_short() -> None:
    for file in FILES:
        text = file.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{file} has no docstring"
        assert text.count("\n") <= 400, f"{file} is too long"


def test_tests_stay_short() -> None:
    for file in (ROOT / "tests").rglob("*.py"):
        assert file.read_text().count("\n") <= 400, f"{file} is too long"


def test_functions_stay_short() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 60, f"{file}: {node.name} is too long"
