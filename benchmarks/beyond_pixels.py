"""Pixels, columns and text: what each tells a network, alone and fused, also where texts are missing.

    python benchmarks/beyond_pixels.py [--seeds 0 1 2] [--only emoji]

emoji: the category of an emoji, from its picture, its name, or both: 8 of Unicode's 9, as the names of flags
hold the word "flag"; of the others 5 % hold a word of their category (person, symbol, smiling, food).
Google's drawings are one client's, Twitter's another's. A quarter of the emoji, with all variants of a code
point in both styles, is for the test, so that no drawing of a test emoji was trained on. ``missing`` leaves
out 30 % of the names, in training and test, by a draw of the seed.

elpv: how defective a solar cell is (4 classes, a quarter of each for the test) from its photograph, with and
without its type, mono- or polycrystalline; 8 clients, Dirichlet 0.5.

The table goes to standard output, each run to benchmarks/results/beyond-pixels.json. Folders: ``emoji`` of
``names.csv`` and images, ``elpv`` of class folders, and ``elpv-labels.csv`` (labels.csv of the PyPI package
elpv-dataset) in $FEDVISION_DATA, else ~/.cache/fedvision.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Store, Turn, spread, take, turns

from fedvision import ExperimentConfig, simulate
from fedvision.runs.environment import environment

RESULTS = Path(__file__).parent / "results/beyond-pixels.json"
MISSING, TEST = 0.3, 0.25
NAME = {"name": {"kind": "text", "words": 8, "buckets": 2048}}
TYPE = {"type": {"kind": "category", "categories": ["mono", "poly"]}}
ALONE = {"extractor": "none"}
ARMS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "emoji": {
        "image": {},
        "text": {**ALONE, "inputs": NAME},
        "image and text": {"inputs": NAME},
        "text, 30 % missing": {**ALONE, "inputs": NAME},
        "image and text, 30 % missing": {"inputs": NAME},
    },
    "elpv": {"image": {}, "image and type": {"inputs": TYPE}},
}
SCORES = ("balanced_accuracy", "macro_f1", "accuracy")


def folder() -> Path:
    """Return where the images are."""
    return Path(os.environ.get("FEDVISION_DATA", Path.home() / ".cache/fedvision"))


def emoji(seed: int, *, missing: bool) -> Iterator[dict[str, str]]:
    """Yield a row for each picture that is no flag."""
    rows = list(csv.DictReader((folder() / "emoji/names.csv").read_text().splitlines()))
    rows = [row for row in rows if row["category"] != "flags"]
    points = [Path(row["file"]).stem.split("-")[0] for row in rows]
    rng = np.random.default_rng(seed)
    tested = set(rng.permutation(sorted(set(points)))[: round(TEST * len(set(points)))].tolist())
    gone = rng.random(len(rows)) < MISSING
    for row, point, left_out in zip(rows, points, gone.tolist(), strict=True):
        name = "" if missing and left_out else row["name"]
        part = "test" if point in tested else "train"
        yield {
            "file": row["file"].removeprefix("emoji/"),
            "label": row["category"],
            "split": part,
            "style": row["style"],
            "name": name,
        }


def elpv(seed: int) -> Iterator[dict[str, str]]:
    """Yield a row for each photograph."""
    types = dict(line.split()[::2] for line in (folder() / "elpv-labels.csv").read_text().splitlines())
    rng = np.random.default_rng(seed)
    for group in sorted((folder() / "elpv").iterdir()):
        files = sorted(group.glob("*.png"))
        tested = rng.permutation(len(files)) < round(TEST * len(files))
        for file, test in zip(files, tested.tolist(), strict=True):
            part = "test" if test else "train"
            kind = types[f"images/{file.name}"]
            yield {"file": f"{group.name}/{file.name}", "label": group.name, "split": part, "type": kind}


def experiment(turn: Turn, rounds: int, table: Path) -> ExperimentConfig:
    """Write the table of a measurement's images and return its experiment."""
    at_emoji = turn.workload == "emoji"
    rows = list(
        emoji(turn.repetition, missing="missing" in turn.rival) if at_emoji else elpv(turn.repetition)
    )
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    images = {"size": 32, "channels": 3} if at_emoji else {"size": 48, "channels": 1}
    clients = (
        {"use": "column", "name": "style"} if at_emoji else {"use": "dirichlet", "clients": 8, "alpha": 0.5}
    )
    model = dict(ARMS[turn.workload][turn.rival])
    width = {} if "extractor" in model else {"width": 16}
    return ExperimentConfig.from_dict(
        {
            "name": "beyond-pixels",
            "seed": turn.repetition,
            "rounds": rounds,
            "checkpoint_every": rounds,
            "data": {"use": "manifest", "path": str(table), "root": str(folder() / turn.workload), **images},
            "partition": clients,
            "model": {"use": "fusion", "dim": 48, "depth": 1, "heads": 4, "dropout": 0.1, **width, **model},
            "loss": {"use": "logit-adjusted", "prior": "global"},
            "training": {"optimizer": "adamw", "lr": 0.002, "batch_size": 64, "clip_norm": 1.0},
            "transforms": {"flip": True, "crop": 4},
            "evaluation": {"every": rounds},
        }
    )


def measure(turn: Turn, rounds: int) -> dict[str, Any]:
    """Run an experiment; return the last model's scores on the test images."""
    with tempfile.TemporaryDirectory() as place:
        config = experiment(turn, rounds, Path(place) / "images.csv")
        server = simulate(config, engine="serial", out=Path(place) / "run").rounds[-1]["server"]
    return {"scores": {name: server["scores"][name] for name in SCORES}}


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the runs as Markdown: mean ± sample deviation over seeds, in percent."""
    lines = ["| images | the network reads | balanced accuracy, % | macro-F1, % | accuracy, % | n |"]
    lines.append("|---|---|---|---|---|---|")
    for workload, arms in ARMS.items():
        for arm in arms:
            own = [run for run in runs if (run["workload"], run["rival"]) == (workload, arm)]
            if own:
                cells = [spread([100 * run["scores"][score] for run in own], ".1f") for score in SCORES]
                lines.append(f"| {workload} | {arm} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    """Take the measurements that are missing, in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    facts = environment()
    store = Store(
        options.out, {"rounds": options.rounds, **{key: facts[key] for key in ("torch", "processor")}}
    )
    plan = [
        Turn(turn.workload, turn.rival, options.seeds[turn.repetition])
        for workload in options.only
        for turn in turns([workload], list(ARMS[workload]), len(options.seeds))
    ]
    take(store, plan, lambda turn: measure(turn, options.rounds), describe=lambda run: str(run["scores"]))
    print(table(store.runs))


if __name__ == "__main__":
    main()
