"""Who gains by taking part, in tables and sentences: the federated model beside the baselines of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedvision.baselines.gains import HELD_OUT, TEST, Baselines, Gains
from fedvision.formatting import ends, in_order, percent, plural, score_name, whole
from fedvision.reporting.run_data import RunData
from fedvision.tasks.intervals import Interval

ON: Mapping[str, str] = {TEST: "the test images", HELD_OUT: "what each client holds out"}
"""On which images a model was measured, in words."""
MODELS: Mapping[str, str] = {"federated": "federated", "central": "central", "local": "each client alone"}
"""The models that are compared, in words."""
CLIENTS_SHOWN = 60
"""Up to so many clients have a row; of more, those that lose most and those that gain most."""


class Cell(NamedTuple):
    """A score: of one model, or its mean over clients."""

    value: float | None
    interval: Interval | None = None
    """95 % interval of one model's score."""
    reach: Interval | None = None
    """Lowest and highest client."""

    @property
    def text(self) -> str:
        """The value, with what it varies between where it is a mean over clients."""
        return percent(self.value) + (f" ({ends(*self.reach)})" if self.reach else "")


class ScoreTable(NamedTuple):
    """Scores of the models on one kind of images."""

    on: str
    models: list[str]
    rows: list[tuple[str, list[Cell]]]


class ClientRow(NamedTuple):
    """One client: its own model beside the federated one."""

    name: str
    images: int | None
    values: list[tuple[float | None, float | None]]
    """Own and federated score on each kind of images."""


def score_tables(facts: RunData, found: Baselines) -> list[ScoreTable]:
    """Return the scores of all models, a table for each kind of images on which several were measured."""
    tables = []
    for on in ON:
        scores = found.scores(on)
        if not scores:
            continue
        models = [name for name in MODELS if name in scores]
        single = [name for name in models if on == TEST and name != "local"]
        intervals = {name: found.intervals(name, facts.distinct.tolist()) for name in single}
        keys = in_order({key for own in scores.values() for key in own})
        rows = [
            (
                score_name(key, facts.kinds),
                [_cell(scores[name].get(key), intervals.get(name, {}).get(key)) for name in models],
            )
            for key in keys
        ]
        tables.append(ScoreTable(ON[on], [MODELS[name] for name in models], rows))
    return tables


def _cell(value: Any, interval: Interval | None) -> Cell:
    if isinstance(value, Mapping):
        return Cell(value["mean"], reach=Interval(value["min"], value["max"]))
    return Cell(value, interval)


def gain_sentences(facts: RunData, found: Baselines) -> list[str]:
    """Return who gains and by how much, what the budget was, and what becomes of rare classes."""
    sentences = [_gain(one) for on in ON if (one := found.gains(on))]
    worst, missing = found.worst_class(), found.missing_classes()
    if missing:
        sentences.append(
            "Of classes of which a client has no training image, its own model finds "
            f"{percent(missing['local'])} and the federated one {percent(missing['federated'])} "
            f"(mean recall over {plural(missing['pairs'], 'pair')} of client and class)."
        )
    if worst:
        sentences.append(_worst(facts, worst))
    if found.failed:
        first = next(iter(found.failed.values()))
        sentences.append(f"{plural(len(found.failed), 'client')} could not be trained alone: {first}.")
    if facts.clients > len(found.local) + len(found.failed) > 0:
        some = whole(len(found.local) + len(found.failed))
        sentences.append(f"Of {plural(facts.clients, 'client')}, {some} drawn at random were trained alone.")
    return [*sentences, budget_sentence(facts, found)]


def budget_sentence(facts: RunData, found: Baselines) -> str:
    """Return how long the baselines were trained."""
    names = {"central": "the client that has all images", "local": "a client alone"}
    parts = [
        f"{names[name]} trained in {whole(len(budget['rounds']))} of {plural(budget['rounds_done'], 'round')}"
        for name, budget in found.budgets.items()
    ]
    return (
        f"Each training image was seen as often as in the federated run, to the round: {' and '.join(parts)}."
    )


def _gain(found: Gains) -> str:
    gained, name = found.difference, score_name(found.score)
    better, worse = int((gained > 0).sum()), int((gained < 0).sum())
    more = (
        f"On {ON[found.on]} {whole(better)} of {plural(len(gained), 'client')} gain by taking part and "
        f"{whole(worse)} lose: from a client's own model to the federated one, {name} changes by "
        f"{_points(gained.mean())} points in the mean, {_points(gained.min())} to {_points(gained.max())}"
    )
    if found.sure is None:
        return f"{more}."
    gain, lose = int((found.sure > 0).sum()), int((found.sure < 0).sum())
    return f"{more}; beyond the 95 % interval of the difference {whole(gain)} gain and {whole(lose)} lose."


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _worst(facts: RunData, worst: Mapping[str, Any]) -> str:
    parts = []
    for name in ("federated", "central"):
        if one := worst.get(name):
            parts.append(f"{MODELS[name]} {percent(one['recall'])} ({facts.classes[one['class']]})")
    if one := worst.get("local"):
        parts.append(f"a client alone {percent(one['mean'])} in the mean, {percent(one['max'])} at best")
    return f"Recall of the worst class on the test images: {', '.join(parts)}."


def client_rows(facts: RunData, found: Baselines) -> tuple[list[str], list[ClientRow], int]:
    """Return on what clients are compared, a row each, who loses most first, and how many are left out."""
    there = [one for on in ON if (one := found.gains(on))]
    if not there:
        return [], [], 0
    leading = there[-1]
    order = [leading.clients[place] for place in np.argsort(leading.difference, kind="stable")]
    order += [client for client in there[0].clients if client not in leading.clients]
    shown = order
    if len(order) > CLIENTS_SHOWN:
        shown = order[: CLIENTS_SHOWN // 2] + order[-CLIENTS_SHOWN // 2 :]
    columns = [
        dict(zip(one.clients, zip(one.alone.tolist(), one.federated.tolist(), strict=True), strict=True))
        for one in there
    ]
    rows = [
        ClientRow(
            facts.name(client),
            found.local[client].get("images"),
            [column.get(client, (None, None)) for column in columns],
        )
        for client in shown
    ]
    return [ON[one.on] for one in there], rows, len(order) - len(shown)
