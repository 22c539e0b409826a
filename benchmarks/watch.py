"""The page of ``fedvision watch`` in a browser: accessibility, and how long it lags behind a round's end.

::

    npm install --prefix /tmp/browser axe-core puppeteer-core
    python benchmarks/watch.py --modules /tmp/browser --chromium /usr/bin/chromium

needs Node.js, Chromium (or Chrome) and these two packages. axe-core looks at each kind of page, on light
and dark, wide and narrow; then rounds are recorded in a small and in a large run while Chromium has the page
open. A round is seen when its number and scores are; its curves follow.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fedvision.runs.folder_lock import claimed  # noqa: E402
from tests.watching.sample import WrittenRun  # noqa: E402

SIZES = {"4 clients x 5 classes": (4, 5), "1,000 clients x 100 classes": (1000, 100)}


class Browser:
    """Chromium with the script beside this file."""

    def __init__(self, modules: Path, chromium: str) -> None:
        script = Path(__file__).with_name("watch_browser.mjs")
        self._process = subprocess.Popen(
            ["node", str(script), str(modules.resolve()), chromium],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, job: str, **facts: Any) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"job": job, **facts}) + "\n")
        self._process.stdin.flush()
        return self.next()

    def next(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            sys.exit("the browser's script ended; does it find the packages and Chromium?")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextmanager
def page_on(path: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield the address of a page on a run, and what tells the processor seconds of its process so far."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fedvision.cli.main", "watch", str(path), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout

    def seconds() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    try:
        yield process.stdout.readline().rpartition(": ")[2].strip(), seconds
    finally:
        process.terminate()
        process.wait()


def states(folder: Path) -> dict[str, Path]:
    """Write a run in each state, and return the folders."""
    small = {"clients": 6, "classes": 8, "rounds": 20}
    for name in ("running", "failed", "done"):
        run = WrittenRun(folder / name, machines=name == "running", **small)
        run.begin()
        for _ in range(20 if name == "done" else 7):
            run.round()
        if name != "running":
            status = {"status": "finished" if name == "done" else "failed", "error": "the loss is not finite"}
            run.folder.write_summary(status)
    WrittenRun(folder / "waiting", machines=True, **small)
    large = WrittenRun(folder / "large", clients=1000, classes=100, rounds=50, machines=True)
    large.begin()
    for _ in range(5):
        large.round()
    return {name: folder / name for name in ("running", "failed", "done", "waiting", "large", "absent")}


def accessibility(browser: Browser, folder: Path, pictures: Path | None) -> int:
    """Look at every kind of page and return how many faults there are."""
    faults = 0
    with ExitStack() as stack:
        for name, path in states(folder).items():
            if name in ("running", "waiting", "large"):
                stack.enter_context(claimed(path, ""))
            with page_on(path) as (address, _):
                for width in (1200, 390):
                    for dark in (False, True):
                        look = f"{name}-{width}-{'dark' if dark else 'light'}"
                        file = str(pictures.resolve() / f"{look}.png") if pictures else None
                        search = "12" if name == "large" else None
                        found = browser.do(
                            "look", url=address, width=width, dark=dark, file=file, search=search
                        )
                        wrong = [*found["violations"], *found["faults"]]
                        wrong += [f"{found['wider']} pixels wider than the window"] if found["wider"] else []
                        print(f"{look:<24} {len(wrong)} faults {wrong or ''}", flush=True)
                        faults += len(wrong)
    return faults


def latency(browser: Browser, path: Path, size: tuple[int, int], rounds: int) -> dict[str, float]:
    """Record rounds while the page is open and return seconds from a round's end to the changed page."""
    run = WrittenRun(path, clients=size[0], classes=size[1], rounds=rounds + 5, machines=True)
    run.begin()
    for _ in range(4):
        run.round()
    took, drawn = [], []
    with claimed(path, ""), page_on(path) as (address, seconds):
        assert browser.do("follow", url=address)["following"]
        time.sleep(2)
        before = seconds()
        for _ in range(rounds):
            run.round()
            done = time.time()
            while (seen := browser.next()).get("seen") != run.done:
                pass
            took.append(seen["at"] - done)
            while "drawn" not in (seen := browser.next()):
                pass
            drawn.append(seen["drawn"] - done)
            time.sleep(0.7)
        used = (seconds() - before) / rounds
    return {
        "median": statistics.median(took),
        "most": max(took),
        "drawn": statistics.median(drawn),
        "processor": used,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--modules", type=Path, required=True, help="folder in which npm installed the packages"
    )
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of a measurement of time")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each page")
    options = parser.parse_args()
    browser = Browser(options.modules, options.chromium)
    try:
        with tempfile.TemporaryDirectory() as folder:
            faults = accessibility(browser, Path(folder), options.pictures)
            print(f"{faults} faults; {platform.processor() or platform.machine()}, {platform.platform()}")
            for name, size in SIZES.items():
                found = latency(browser, Path(folder) / f"latency-{size[0]}", size, options.rounds)
                print(
                    f"{name}: {found['median']:.2f} s from a round's end to the changed page (median of "
                    f"{options.rounds}), {found['most']:.2f} s at most, "
                    f"{found['drawn']:.2f} s to its curves; {found['processor']:.2f} processor "
                    "seconds of the page's process a round",
                    flush=True,
                )
    finally:
        browser.close()
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
