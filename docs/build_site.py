"""Build the documentation as a site in build/site: `make docs`.

The site mirrors the repository. Every page keeps its path, and the files that pages link to are copied beside
them, so a link that holds in the repository holds on the site; Zensical fails where one leads nowhere.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build/pages"
"""Where zensical.toml has its `docs_dir`."""
FOLDERS = ("docs", "server", "clients", "simulations", "benchmarks")
LINK = re.compile(r"\]\(([^)#:]+)[^)]*\)")


def pages() -> list[Path]:
    """Return the pages of the repository, sorted."""
    nested = (page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))
    return sorted([*ROOT.glob("*.md"), *nested])


def linked(page: Path) -> list[Path]:
    """Return the files of the repository that a page links to."""
    targets = ((page.parent / name).resolve() for name in LINK.findall(page.read_text(encoding="utf-8")))
    return [target for target in targets if target.is_file() and target.is_relative_to(ROOT)]


def main() -> int:
    """Copy the pages and build the site; return Zensical's exit code."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    found = pages()
    for path in {ROOT / "docs/site.css", *found, *(target for page in found for target in linked(page))}:
        copy = SOURCE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
