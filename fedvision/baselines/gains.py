"""Who gains by taking part: the federated model beside each client's own and the one of all images.

Read from a run folder alone. Means over clients count each client once, whatever its number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.files import plain
from fedvision.runs.baseline_folder import BaselineFolder
from fedvision.runs.folder import RunFolder
from fedvision.tasks import metrics
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.intervals import Interval, mean_interval, score_intervals, wilson

Record = Mapping[str, Any]
Floats = NDArray[np.float64]
TEST, HELD_OUT = "test", "held_out"
"""The server's test images, and those that each client holds out."""
_COMPARED = ("balanced_accuracy", "mean_ap", "mean_iou", "ap")
"""Scores by which clients are compared, the first that there is; else the first score of the task."""


@dataclass(frozen=True, kw_only=True)
class Gains:
    """The federated model and clients' own ones on one kind of images, client by client."""

    on: str
    """``TEST`` or ``HELD_OUT``."""
    score: str
    """The key of the score."""
    clients: tuple[int, ...]
    """The n clients compared."""
    alone: Floats
    """Score of each one's own model [n]."""
    federated: Floats
    """Score of the federated model on the same images [n]."""
    sure: NDArray[np.int64] | None
    """int64 [n]: 1 or -1 where the whole 95 % interval of the difference is on one side of 0, else 0; None
    where there are no intervals."""

    @property
    def difference(self) -> Floats:
        """What each client gains by taking part [n]; negative where it loses."""
        return self.federated - self.alone

    def facts(self) -> dict[str, Any]:
        """Return how many clients gain and lose, and how much."""
        gained = self.difference
        facts: dict[str, Any] = {
            "score": self.score,
            "clients": len(self.clients),
            "gain": int((gained > 0).sum()),
            "lose": int((gained < 0).sum()),
            "difference": spread(gained),
        }
        if self.sure is not None:
            facts |= {"surely_gain": int((self.sure > 0).sum()), "surely_lose": int((self.sure < 0).sum())}
        return facts


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What a run folder holds of baselines."""

    federated: Record
    """The federated model's last measurement on the test images; empty where there was none."""
    central: Record
    """The same of the model of all images."""
    local: Mapping[int, Record]
    """Each client's line, those whose training failed left out."""
    failed: Mapping[int, str]
    """Why others' training failed."""
    held_out: Mapping[str, Mapping[int, Record]]
    """By ``federated`` and ``central``: the view on what each client holds out."""
    budgets: Mapping[str, Record]
    """By baseline, what ``baseline.json`` says of its training."""
    counts: NDArray[np.int64]
    """int64 [K, C]: training images of the clients shown."""
    shown: tuple[int, ...]
    """The clients of these rows."""

    def gains(self, on: str) -> Gains | None:
        """Return the comparison on one kind of images; None where both models were not measured there."""
        pairs = {}
        for client, line in self.local.items():
            mine = line.get("server" if on == TEST else "local")
            other = self._federated_view if on == TEST else self.held_out.get("federated", {}).get(client)
            if mine and other:
                pairs[client] = mine, other
        if not pairs:
            return None
        score = compared_by(next(iter(pairs.values()))[1]["scores"])
        known = {
            client: pair
            for client, pair in pairs.items()
            if all(one["scores"].get(score) is not None for one in pair)
        }
        if not known:
            return None
        alone, federated = (
            np.array([pair[place]["scores"][score] for pair in known.values()], float) for place in (0, 1)
        )
        sure = None
        if score == "balanced_accuracy" and all("right" in one for pair in known.values() for one in pair):
            sure = np.array([_side(*pair) for pair in known.values()], np.int64)
        return Gains(on=on, score=score, clients=tuple(known), alone=alone, federated=federated, sure=sure)

    @property
    def _federated_view(self) -> Record | None:
        return with_classes(self.federated) if self.federated else None

    def scores(self, on: str) -> dict[str, dict[str, Any]]:
        """Return scores by model: numbers of one model on the test images, else the spread over clients."""
        found: dict[str, dict[str, Any]] = {}
        if on == TEST:
            for name, record in {"federated": self.federated, "central": self.central}.items():
                if record:
                    found[name] = dict(record["scores"])
            found["local"] = _spreads(line.get("server") for line in self.local.values())
        else:
            for name, views in self.held_out.items():
                found[name] = _spreads(views.values())
            found["local"] = _spreads(line.get("local") for line in self.local.values())
        return {name: scores for name, scores in found.items() if scores}

    def intervals(self, name: str, distinct: Sequence[int]) -> dict[str, Interval]:
        """Return the 95 % intervals of the federated or the central model's scores on the test images."""
        record = {"federated": self.federated, "central": self.central}[name]
        confusion = (
            ConfusionCounts.from_record(record.get("confusion")) if record else ConfusionCounts.none(0)
        )
        return score_intervals(confusion, distinct if any(distinct) else None)

    def worst_class(self) -> dict[str, Any]:
        """Return the recall of each model's worst class on the test images; of clients' models the spread."""
        found: dict[str, Any] = {}
        for name, record in {"federated": self.federated, "central": self.central}.items():
            recalls = _recalls(with_classes(record)) if record else None
            if recalls is not None and not np.isnan(recalls).all():
                place = int(np.nanargmin(recalls))
                found[name] = {"class": place, "recall": float(recalls[place])}
        own = [_recalls(line.get("server")) for line in self.local.values()]
        worst = np.array([np.nanmin(one) for one in own if one is not None and not np.isnan(one).all()])
        return found | ({"local": spread(worst)} if len(worst) else {})

    def missing_classes(self) -> dict[str, Any]:
        """Return the recall of classes on clients that have no training image of them.

        Returns:
            ``pairs`` of a client and such a class with test images, the mean recall over them of the client's
            own model (``local``) and of the federated one; empty where every client has every class.
        """
        federated = _recalls(self._federated_view)
        rows = dict(zip(self.shown, self.counts, strict=True))
        mine, theirs = [], []
        for client, line in self.local.items():
            own = _recalls(line.get("server"))
            if own is None or federated is None or client not in rows:
                continue
            lacking = (rows[client] == 0) & ~np.isnan(own) & ~np.isnan(federated)
            mine += own[lacking].tolist()
            theirs += federated[lacking].tolist()
        if not mine:
            return {}
        return {"pairs": len(mine), "local": float(np.mean(mine)), "federated": float(np.mean(theirs))}


def read_baselines(folder: RunFolder) -> Baselines | None:
    """Return what a run folder holds of finished baselines; None where there are none.

    Raises:
        RunFolderError: A file is damaged.
    """
    places = {name: BaselineFolder(folder.path, name) for name in ("federated", "central", "local")}
    facts = {name: place.facts() for name, place in places.items()}
    there = {name for name, one in facts.items() if one.get("status") == "finished"}
    if not there & {"central", "local"}:
        return None
    lines = places["local"].clients() if "local" in there else {}
    held_out = {}
    for name in ("federated", "central"):
        views = places[name].clients() if name in there else {}
        if any(line.get("local") for line in views.values()):
            held_out[name] = {client: line["local"] for client, line in views.items() if line.get("local")}
    split, rounds = folder.split(), folder.rounds()
    counts = np.array(split.get("counts") or np.zeros((0, 0)), np.int64)
    return Baselines(
        federated=next((one["server"] for one in reversed(rounds) if one.get("server")), {}),
        central=facts["central"].get("server", {}) if "central" in there else {},
        local={client: line for client, line in lines.items() if "failed" not in line},
        failed={client: line["failed"] for client, line in lines.items() if "failed" in line},
        held_out=held_out,
        budgets={name: facts[name]["of"] for name in ("central", "local") if name in there},
        counts=counts,
        shown=tuple(split.get("shown") or range(len(counts))),
    )


def summary(folder: RunFolder) -> dict[str, Any]:
    """Return what ``summary.json`` says of a run's baselines.

    Raises:
        RunFolderError: A file is damaged.
    """
    found = read_baselines(folder)
    if found is None:
        return {}
    gains = {on: one.facts() for on in (TEST, HELD_OUT) if (one := found.gains(on))}
    facts = {
        "clients": len(found.local),
        "failed": len(found.failed),
        "budgets": found.budgets,
        "scores": {on: scores for on in (TEST, HELD_OUT) if (scores := found.scores(on))},
        "gains": gains,
        "worst_class": found.worst_class(),
        "missing_classes": found.missing_classes(),
    }
    kept: dict[str, Any] = plain({key: value for key, value in facts.items() if value not in ({}, 0)})
    return kept


def spread(values: Floats) -> dict[str, float]:
    """Return mean, median, lowest and highest of at least one value."""
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def compared_by(scores: Mapping[str, Any]) -> str:
    """Return the key of the score by which clients are compared."""
    return next((key for key in _COMPARED if key in scores), next(iter(scores)))


def with_classes(record: Record) -> Record:
    """Return a measurement with ``images`` and ``right`` [C] where its confusion counts tell."""
    if not record.get("confusion"):
        return record
    confusion = ConfusionCounts.from_record(record["confusion"])
    return {**record, "images": confusion.images_of, "right": confusion.right_of}


def _spreads(views: Iterable[Record | None]) -> dict[str, Any]:
    """Return the spread of each score over clients' views."""
    there = [one["scores"] for one in views if one]
    keys = dict.fromkeys(key for scores in there for key in scores)
    columns = {key: [one[key] for one in there if one.get(key) is not None] for key in keys}
    return {key: spread(np.array(values, float)) for key, values in columns.items() if values}


def _recalls(view: Record | None) -> Floats | None:
    """Return the recall of each class [C], NaN without images; None where classes were not counted."""
    if not view or "right" not in view:
        return None
    return metrics.ratio(np.asarray(view["right"]), np.asarray(view["images"]))


def _side(mine: Record, other: Record) -> int:
    """Return on which side of 0 the 95 % interval of a difference in balanced accuracy is; 0 where on both.

    The interval is that of independent samples (MOVER: Zou, Donner 2008, Statistics in Medicine 27:1693). On
    the same images the difference is known better than that, so fewer are called sure than could be.
    """
    (low, alone, high), (low_other, federated, high_other) = map(_balanced, (mine, other))
    difference = federated - alone
    below = np.hypot(federated - low_other, high - alone)
    above = np.hypot(high_other - federated, alone - low)
    return int(difference - below > 0) - int(difference + above < 0)


def _balanced(view: Record) -> tuple[float, float, float]:
    """Return the balanced accuracy between the ends of its interval."""
    right, images = np.asarray(view["right"]), np.asarray(view["images"])
    there = images > 0
    low, high = wilson(right[there], images[there])
    values = right[there] / images[there]
    ends = mean_interval(values, low, high)
    return ends.low, float(values.mean()), ends.high
