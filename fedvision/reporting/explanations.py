"""Explanations as a page that needs no network, as numbers, and as maps that a run's report shows again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedvision.errors import MALFORMED, RunError, RunFolderError
from fedvision.explanation.result import Explanation, Explanations
from fedvision.files import json_page, read_json, replace_file
from fedvision.formatting import percent
from fedvision.reporting.page import png_uri, render_page
from fedvision.runs.model_description import ModelDescription

NUMBERS, MAPS, PAGE = "explanations.json", "maps.safetensors", "explanations.html"
MISTAKES = Path("explanations", "mistakes")
"""Where in a run folder the explanations of its kept mistakes are."""


class Look(NamedTuple):
    """A picture of an image."""

    title: str
    source: str
    alt: str


class Item(NamedTuple):
    """What is shown of one image."""

    title: str
    beside: str
    looks: list[Look]
    facts: list[tuple[str, str]]
    remark: str


class Tile(NamedTuple):
    """A figure of the whole page."""

    label: str
    value: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """What a report shows of explanations that were written before."""

    items: list[Item]
    """One an image."""
    verdict: str
    """Whether maps are better than random ones."""


def write_explanations(folder: Path, found: Explanations, *, title: str, model: str) -> Path:
    """Write page, numbers and maps into a folder, which is made, and return the page's path.

    Args:
        folder: Where.
        found: The explanations.
        title: The page's heading.
        model: SHA-256 of the model's tensors.

    Raises:
        RunError: The folder cannot be written.
    """
    from safetensors.numpy import save

    record = found.to_record()
    arrays: dict[str, NDArray[Any]] = {"images": np.ascontiguousarray(found.images), "maps": found.maps}
    for name in found.each[0].branches:
        arrays[f"maps.{name}"] = np.stack([one.branches[name].map for one in found.each])
    items = [
        _item(row, {name: array[place] for name, array in arrays.items()})
        for place, row in enumerate(record["images"])
    ]
    page = render_page(
        "explanations.html",
        title=title,
        method=found.each[0].method,
        items=items,
        tiles=_tiles(found),
        verdict=record["verdict"],
        notices=[*found.notices, *(f"{name}: {why}" for name, why in found.unreadable.items())],
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / MAPS, save(arrays))
        replace_file(folder / NUMBERS, json_page({"model": model, **record}))
        replace_file(folder / PAGE, page)
    except OSError as error:
        raise RunError(
            f"{folder}: the explanations cannot be written: {error.strerror or error}; name another folder"
        ) from error
    return folder / PAGE


def read_section(run: Path) -> Section | None:
    """Return what was explained of a run's kept mistakes; None where nothing was, or of another model.

    Raises:
        RunFolderError: A file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    record = read_json(run / MISTAKES / NUMBERS)
    if not record or not (run / MISTAKES / MAPS).is_file():
        return None
    try:
        if record["model"] != ModelDescription.read(run).sha256:
            return None
        arrays = load_file(run / MISTAKES / MAPS)
        return Section(
            items=[
                _item(row, {name: array[place] for name, array in arrays.items()})
                for place, row in enumerate(record["images"])
            ],
            verdict=str(record["verdict"]),
        )
    except (SafetensorError, *MALFORMED) as error:
        raise RunFolderError(
            f"{run / MISTAKES}: the explanations are damaged ({error}); delete the folder, or write it again "
            "with `fedvision explain`"
        ) from error


def overlay(image: NDArray[np.uint8], map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image with its map over it, uint8 [H, W, 3], in colours that the colour-blind tell apart.

    Args:
        image: uint8 [H, W, channels], shown in gray.
        map: [H, W], 0 to 1.
    """
    from matplotlib import colormaps

    gray = image.astype(np.float32).mean(2, keepdims=True)
    colour = 255 * np.asarray(colormaps["cividis"](map), np.float32)[..., :3]
    found: NDArray[np.uint8] = np.rint(0.4 * gray + 0.6 * colour).astype(np.uint8)
    return found


def _item(row: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Item:
    """Return what is shown of one image: its row of the record, and the arrays of it alone."""
    image, name, explained = arrays["images"], row["image"], row["class"]
    looks = [
        Look("image", png_uri(image), f"{name}"),
        Look(
            "both" if "branches" in row else "map",
            png_uri(overlay(image, arrays["maps"])),
            f"{name}: which pixels count for {explained}",
        ),
    ]
    facts = [
        ("deletion", f"{row['deletion']:.2f}, random {row['random_deletion']:.2f}"),
        ("insertion", f"{row['insertion']:.2f}, random {row['random_insertion']:.2f}"),
    ]
    for branch, part in row.get("branches", {}).items():
        if arrays[f"maps.{branch}"].any():
            alt = f"{name}: what the {branch} looks at for {explained}"
            looks.append(Look(branch, png_uri(overlay(image, arrays[f"maps.{branch}"])), alt))
        facts.append(
            (branch, "–" if part["share"] is None else f"{percent(part['share'], 0)} of the decision")
        )
    remarks = [] if row["better_than_random"] else ["This map is no better than a random one."]
    if not row.get("complete", True):
        remarks.append(f"Its attributions miss the logit's change by {row['completeness_error']:.2f} nats.")
    true = row.get("true")
    wrong = f"in truth {true}" if true is not None and true != explained else ""
    return Item(
        title=f"{explained} {percent(row['probability'], 0)}",
        beside=wrong or ("" if row["predicted"] == explained else f"predicted {row['predicted']}"),
        looks=looks,
        facts=facts,
        remark=" ".join(remarks),
    )


def _tiles(found: Explanations) -> Sequence[Tile]:
    better = sum(one.scores.gain > 0 for one in found.each)
    return (
        Tile(
            "deletion",
            f"{found.mean('deletion'):.2f}",
            f"random map {found.mean('random_deletion'):.2f}; low is good",
        ),
        Tile(
            "insertion",
            f"{found.mean('insertion'):.2f}",
            f"random map {found.mean('random_insertion'):.2f}; high is good",
        ),
        Tile("better than random", f"{better} of {len(found)}", "maps, by insertion less deletion"),
    )


def table(found: Explanations) -> str:
    """Return the numbers for a terminal: a row an image, the means, and whether they beat random maps."""
    rows: list[tuple[str, ...]] = [
        ("image", "class", "probability", "deletion", "random", "insertion", "random", "")
    ]
    for name, one in zip(found.names, found.each, strict=True):
        rows.append((name, found.classes[one.label], percent(one.probability), *_numbers(one)))
    means = [found.mean(key) for key in ("deletion", "random_deletion", "insertion", "random_insertion")]
    rows.append(("mean", "", "", *(f"{value:.3f}" for value in means), ""))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if place < 2 else cell.rjust(w)
            for place, (cell, w) in enumerate(zip(row, wide, strict=True))
        )
        for row in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), found.verdict])


def _numbers(one: Explanation) -> tuple[str, str, str, str, str]:
    scores = one.scores
    values = (scores.deletion, scores.random_deletion, scores.insertion, scores.random_insertion)
    first, second, third, fourth = (f"{value:.3f}" for value in values)
    return first, second, third, fourth, "" if scores.gain > 0 else "no better than random"
