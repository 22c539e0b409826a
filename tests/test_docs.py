"""Links, anchors and the list of pages of the documentation, read without what builds the site."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedvision
from fedvision import registry
from fedvision.cli import main
from fedvision.config import ExperimentConfig
from fedvision.deployment.client.config import ClientMachineConfig

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "server", "clients", "simulations", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
RUNTIME = {
    "partition": frozenset({"columns"}),
    "model": frozenset({"num_classes", "in_channels", "image_size"}),
    "loss": frozenset({"counts", "round", "rounds"}),
}
"""Arguments that the program gives."""


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^(```+)[^\n]*\n.*?^\1[ \t]*$", "", text, flags=re.S | re.M)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them: a heading met again gets -1, -2, ..."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
        if found[name]:
            found[f"{name}-{found[name]}"] = 0
    return set(found)


def links(text: str) -> list[str]:
    """Return the targets of a page's links and pictures."""
    without_code = re.sub(r"`[^`\n]*`", "", prose(text))
    return re.findall(r"\]\(\s*<?([^)\s>]+)", without_code)


def broken(page: Path) -> Iterator[str]:
    """Yield the links of a page that lead to no file or to no heading of it."""
    text = page.read_text(encoding="utf-8")
    for target in links(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert list(broken(page)) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# What a round *waits* for?\n\n## `[round]`, again\n\n## `[round]`, again\n"
    )
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#what-a-round-waits-for) ![c](none.svg) [d](#here) [e](#there)\n"
        "[f](other.md#round-again-1) [g](other.md#round-again-2) `[h](code.md)` [i](https://example.org/x#y)\n"
        "```toml\n# Not a heading\n[j](code.md)\n```\n[k](#not-a-heading)\n"
    )
    assert list(broken(page)) == ["none.svg", "#there", "other.md#round-again-2", "#not-a-heading"]


def cells() -> list[tuple[str, str]]:
    """Return the lines that docs/questions.md gives: whether they are a client's, and their content."""
    text = (ROOT / "docs/questions.md").read_text(encoding="utf-8")
    return re.findall(r"^\|[^|]*\| (\*client\*)? ?`([^`]+)`[^|]*\|$", text, re.M)


def examples() -> list[tuple[str, str]]:
    """Return every block of TOML by page, and every line of docs/questions.md."""
    found = [("docs/questions.md", line) for _, line in cells() if not line.startswith("fedvision ")]
    for page in PAGES:
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
            found.append((str(page.relative_to(ROOT)), block))
    return found


def is_of_a_client(table: dict[str, Any]) -> bool:
    """Separate keys of a client's file from an experiment's."""
    return bool(
        table.keys() & {"share", "superlink", "plugins", "memory_limit", "policy"}
    ) or "label_map" in str(table)


def with_defaults(defaults: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Return a table with what it needs beside it."""
    merged = defaults | table
    for key in defaults.keys() & table.keys():
        if isinstance(table[key], dict):
            merged[key] = defaults[key] | table[key]
    return merged


@pytest.mark.parametrize(("page", "block"), examples())
def test_every_toml_is_one_of_an_experiment_or_of_a_client(page: str, block: str) -> None:
    table = tomllib.loads(block)
    table.pop("sweep", None)
    data: dict[str, Any] = {"use": "digits"}
    if table.keys() & {"share", "superlink", "plugins", "memory_limit", "policy"} or "label_map" in table.get(
        "data", ()
    ):
        link = {"address": "fl.example.org:8443", "key": "client.key", "root_certificate": "ca.crt"}
        ClientMachineConfig.from_dict(
            with_defaults({"name": "north", "superlink": link, "data": data}, table)
        )
        return
    config = ExperimentConfig.from_dict({"data": data} | table)
    for kind in ("data", "partition", "model", "loss", "strategy"):
        spec = getattr(config, kind)
        if not str(spec.use).startswith("my_"):
            registry.check(kind, spec, RUNTIME.get(kind, frozenset()))


@pytest.mark.parametrize("line", [line for _, line in cells() if line.startswith("fedvision ")])
def test_every_command_among_the_answers_is_understood(line: str) -> None:
    options = main.parser().parse_args(shlex.split(line)[1:])
    if path := getattr(options, "experiment", None):
        assert (ROOT / path).exists(), line


def test_every_answer_is_found() -> None:
    text = (ROOT / "docs/questions.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith("| question")]
    links = [row for row in rows if row.endswith(") |") and "`" not in row]
    assert len(cells()) == len(rows) - len(links)
    for marked, line in cells():
        if not line.startswith("fedvision "):
            assert is_of_a_client(tomllib.loads(line)) == bool(marked), line


def named(entries: list[Any]) -> Iterator[str]:
    """Yield the pages of a site's navigation."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for below in entry.values():
                yield from named([below] if isinstance(below, str) else below)


@pytest.mark.parametrize("kind", ["strategy", "loss", "partition", "update"])
def test_every_built_in_algorithm_is_described(kind: str) -> None:
    page = (ROOT / "docs/algorithms.md").read_text(encoding="utf-8")
    described = {
        name for row in re.findall(r"^\| (`[^|]*) \|", page, re.M) for name in re.findall(r"`([^`]+)`", row)
    }
    assert set(registry.BUILTINS[kind]) <= described


@pytest.mark.parametrize("kind", ["loss", "metric", "partition", "sampler", "strategy", "update"])
def test_the_page_of_parts_names_every_built_in(kind: str) -> None:
    page = (ROOT / "docs/parts.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| {kind} |"))
    assert set(registry.BUILTINS[kind]) <= set(re.findall(r"`([^`]+)`", row.split("|")[2]))


def test_the_site_names_every_page_once() -> None:
    project = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    listed = list(named(project["nav"]))
    assert len(listed) == len(set(listed))
    below = {f"{folder}/README.md" for folder in FOLDERS} - {"docs/README.md"}
    wanted = {str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
    assert set(listed) == wanted | below


def test_contract_tests_run_with_the_oldest_and_the_newest_flower_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bounds,) = (text for text in project["dependencies"] if text.startswith("flwr"))
    match = re.fullmatch(r"flwr>=1\.(\d+),<1\.(\d+)", bounds)
    assert match
    versions = [f"1.{match[1]}", f"1.{int(match[2]) - 1}"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["contract"]["strategy"]["matrix"]["flower"] == versions
    assert f".ci/contract {' '.join(versions)}\n" in (ROOT / "Makefile").read_text()


def test_every_hook_before_a_commit_is_a_tool_of_the_environment() -> None:
    hooks = [
        hook
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    tools = {hook["entry"].split()[0] for hook in hooks}
    assert tools == {".venv/bin/ruff", ".venv/bin/mypy"}


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == fedvision.__version__
    newest = re.findall(r"^## (\d\S*) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert newest == fedvision.__version__
