"""Several runs side by side: repeated seeds become mean and deviation, other groups differ by keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

from fedvision.formatting import in_order, percent
from fedvision.reporting.class_facts import ClassFacts
from fedvision.reporting.run_data import VIEWS, RunData, read_facts
from fedvision.reporting.series import Band
from fedvision.reporting.summary_sentences import PERSONAL, clients_of
from fedvision.runs.folder import RunFolder

WORST = "worst client"
"""Name of the score of the client served worst: its accuracy, or its mean AP."""


class Spread(NamedTuple):
    """Mean and deviation of one score over a group's runs."""

    mean: float
    deviation: float | None
    """Sample standard deviation, divided by n - 1; None for one run."""
    n: int

    def __str__(self) -> str:
        return self.bare + "%"

    @property
    def bare(self) -> str:
        """The mean and deviation in percent, without the sign."""
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs whose experiments are equal but for seed and name."""

    label: str
    """The keys in which it differs from the other groups, as ``--set`` takes them; a lone group's name."""
    settings: Mapping[str, str | None]
    """Those keys with their values; None where the group has no such key."""
    runs: Sequence[RunData]
    """The runs, in the order in which they were given."""

    @property
    def notices(self) -> list[str]:
        """What its scores are of, where that is not one model on the images of all clients."""
        shown = [one for run in self.runs for view in VIEWS if (one := run.measurement(view))]
        personal = any(run.best_view is not None and run.best_view.personal for run in self.runs)
        parts = {one.part: clients_of(one) for one in shown if one.part}
        return [PERSONAL] * personal + [f"clients' scores are of {text}" for text in parts.values()]

    def values(self, score: str) -> list[float]:
        """Return one score of every run that has it."""
        found = [run_scores(run).get(score) for run in self.runs]
        return [value for value in found if value is not None]

    def spread(self, score: str) -> Spread | None:
        """Return one score's mean and deviation, or None where no run has it."""
        return spread(self.values(score))

    def band(self, score: str) -> Band:
        """Return a score's mean over runs, with one deviation to each side, in the rounds that all have."""
        lines = []
        for run in self.runs:
            if best := run.best_view:
                series = run.series(best.view, "scores", score)
                lines.append(dict(zip(series.rounds, series.values, strict=True)))
        shared = sorted(set.intersection(*(set(line) for line in lines))) if lines else []
        values = np.array([[line[number] for number in shared] for line in lines])
        if not shared:
            return Band([], [], [], [])
        mean = values.mean(0)
        deviation = values.std(0, ddof=1) if len(lines) > 1 else np.zeros_like(mean)
        return Band(shared, (mean - deviation).tolist(), mean.tolist(), (mean + deviation).tolist())


def spread(values: Sequence[float]) -> Spread | None:
    """Return the mean and deviation of a score of several runs, or None where none has it."""
    if not values:
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, len(values))


def compare(folders: Sequence[RunFolder]) -> list[Group]:
    """Read run folders and group the runs that repeat each other, in the order in which they were given.

    Raises:
        RunFolderError: A file in a folder is damaged.
    """
    tables: dict[str, dict[str, Any]] = {}
    members: dict[str, list[RunData]] = {}
    for facts in map(read_facts, folders):
        table = flat(facts.config.to_dict())
        table = {key: value for key, value in table.items() if key not in ("name", "seed")}
        same = repr(sorted(table.items()))
        tables[same] = table
        members.setdefault(same, []).append(facts)
    settings = differing(list(tables.values()))
    return [
        Group(label=_label(shown) or _shared_name([run.config.name for run in runs]), settings=own, runs=runs)
        for shown, own, runs in zip(distinguishing(settings), settings, members.values(), strict=True)
    ]


def notices(groups: Sequence[Group]) -> list[str]:
    """Return the groups' notices, each once: with whose it is, but where it is all groups'."""
    labels: dict[str, list[str]] = {}
    for group in groups:
        for notice in group.notices:
            labels.setdefault(notice, []).append(group.label)
    return [
        notice if len(own) == len(groups) > 1 else f"{'; '.join(own)}: {notice}"
        for notice, own in labels.items()
    ]


def distinguishing(settings: Sequence[Mapping[str, str | None]]) -> list[dict[str, str | None]]:
    """Return for each group as few of its settings as distinguish it from every other group.

    Keys are taken in the order of how many groups they distinguish: ``loss.use`` before ``loss.gamma``.
    """
    keys = sorted(settings[0], key=lambda key: -len({own[key] for own in settings})) if settings else []
    distinct: list[dict[str, str | None]] = [{} for _ in settings]
    for key in keys:
        seen = [tuple(own.items()) for own in distinct]
        for own, shown, before in zip(settings, distinct, seen, strict=True):
            alike = {other[key] for other, earlier in zip(settings, seen, strict=True) if earlier == before}
            if len(alike) > 1:
                shown[key] = own[key]
    return distinct


def run_scores(run: RunData) -> dict[str, float | None]:
    """Return a run's last measured scores, with the worst client's where clients measure."""
    best, clients = run.best_view, run.measurement("local")
    scores = dict(best.scores) if best else {}
    if clients is not None and clients.worst is not None:
        scores[WORST] = clients.worst.accuracy
    return scores


def shown_scores(groups: Sequence[Group]) -> list[str]:
    """Return the scores that any run has, in the order in which they are shown."""
    keys = {
        key for group in groups for run in group.runs for key, v in run_scores(run).items() if v is not None
    }
    return in_order(keys - {WORST}) + [WORST] * (WORST in keys)


def best_groups(groups: Sequence[Group], score: str) -> set[int]:
    """Return which groups have the highest mean of a score as it is shown; none where all are equal."""
    means = [percent(found.mean) if (found := group.spread(score)) else None for group in groups]
    known = [float(mean[:-1]) for mean in means if mean is not None]
    if len(set(known)) < 2:
        return set()
    top = max(known)
    return {place for place, mean in enumerate(means) if mean is not None and float(mean[:-1]) == top}


def group_kinds(groups: Sequence[Group]) -> str:
    """Return what the runs' images are of, in the plural: ``"labels"`` where all may have several."""
    kinds = {run.kinds for group in groups for run in group.runs}
    return "labels" if kinds == {"labels"} else "classes"


def rarest_scores(groups: Sequence[Group], count: int) -> tuple[list[ClassFacts], list[list[float | None]]]:
    """Return the rarest classes, the rarest last, and each group's mean recall of them, or AP, or IoU.

    Both are empty where runs have other rarest classes than others, were not measured, have no rare class, or
    where some have classes and others labels.
    """
    rows = [
        [run.rarest(run.best_view, count) for run in group.runs if run.best_view and run.clients]
        for group in groups
    ]
    sets = {tuple((c.name, c.train) for c in rarest) for runs in rows for rarest in runs}
    kinds = {(run.rare_score, run.own_counts and not run.of_pixels) for group in groups for run in group.runs}
    if len(sets) != 1 or sets == {()} or not all(rows) or len(kinds) != 1 or kinds.pop()[1]:
        return [], []
    score = groups[0].runs[0].rare_score.lower()
    columns = [zip(*runs, strict=True) for runs in rows]
    means = [[_mean([getattr(c, score) for c in column]) for column in own] for own in columns]
    return list(rows[0][0]), means


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def differing(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, str | None]]:
    """Return for each flat table the keys in which the tables differ, in their order, with its own values."""
    keys = list(dict.fromkeys(key for table in tables for key in table))
    missing = object()
    differ = [
        key for key in keys if any(table.get(key, missing) != tables[0].get(key, missing) for table in tables)
    ]
    return [{key: _text(table[key]) if key in table else None for key in differ} for table in tables]


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one table with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _label(settings: Mapping[str, str | None]) -> str:
    """Return ``"loss.use=focal, training.lr=0.1"``; or what it is without, where it has nothing more."""
    own = [f"{key}={value}" for key, value in settings.items() if value is not None]
    return ", ".join(own) or ", ".join(f"without {key}" for key in settings)


def _shared_name(names: Sequence[str]) -> str:
    """Return the words that all names begin with (``"a b"`` of a b seed1 and a b seed2), else the first."""
    words = list(takewhile(lambda column: len(set(column)) == 1, zip(*map(str.split, names), strict=False)))
    return " ".join(column[0] for column in words) or names[0]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)
