"""Run folders as text for a terminal, a pipe or a log file."""

from __future__ import annotations

from collections.abc import Sequence

from fedvision.reporting.compare import Group, compare, rarest_recalls, shown_scores
from fedvision.reporting.explain import idle
from fedvision.reporting.facts import VIEWS, Measurement, RunFacts, read_facts
from fedvision.reporting.folder import RunFolder
from fedvision.reporting.sheets import Sheet, plain_text
from fedvision.reporting.wording import duration, in_order, number, percent, plural, score_name, size, whole

RAREST = 3
"""Number of classes whose recall stands under a run's scores."""
_WHERE = {"server": "on the server", "local": "on clients"}


def run_table(folder: RunFolder) -> str:
    """Return one run's scores, its rarest classes and what it cost.

    Raises:
        RunFolderError: A file in the folder is damaged.
    """
    facts = read_facts(folder)
    parts: list[str | Sheet] = [_heading(facts)]
    if measured := [found for view in VIEWS if (found := facts.measurement(view))]:
        parts += ["", _scores(measured)]
    if facts.best_view and facts.clients:
        parts += ["", _rarest(facts, facts.best_view)]
    notices = [f"note: {notice}" for notice in facts.summary.get("notices", [])]
    return plain_text(*parts, "", _cost(facts), *idle(facts), *notices)


def comparison_table(folders: Sequence[RunFolder]) -> str:
    """Return one row for each experiment; runs that repeat each other are a mean ± sample deviation.

    Raises:
        RunFolderError: A file in a folder is damaged.
    """
    groups = compare(folders)
    scores = shown_scores(groups)
    table = Sheet("experiment", "n", *(score_name(score) for score in scores), keys=2)
    for group in groups:
        spreads = [group.spread(score) for score in scores]
        cells = ["–" if spread is None else str(spread) for spread in spreads]
        table.add(group.label + _unfinished(group), str(len(group.runs)), *cells)
    parts: list[str | Sheet] = [table]
    if rarest := _rarest_of(groups):
        parts += ["", rarest]
    if any(len(group.runs) > 1 for group in groups):
        parts.append("mean ± sample standard deviation over n runs that differ in their seed alone")
    return plain_text(*parts)


def _rarest_of(groups: Sequence[Group]) -> Sheet | None:
    classes, recalls = rarest_recalls(groups, RAREST)
    if not classes:
        return None
    table = Sheet("recall of a class (training images)", *(f"{c.name} ({whole(c.train)})" for c in classes))
    for group, row in zip(groups, recalls, strict=True):
        table.add(group.label, *(percent(recall) for recall in row))
    return table


def _heading(facts: RunFacts) -> str:
    where = f"{facts.done} of {plural(facts.config.rounds, 'round')}"
    clients = f", {plural(facts.clients, 'client')}" if facts.clients else ""
    return f"{facts.config.name}: {facts.status}, {where}{clients}"


def _scores(measured: Sequence[Measurement]) -> Sheet:
    table = Sheet("measured", *(_WHERE[view.view] for view in measured))
    for key in in_order({key for view in measured for key in view.scores}):
        table.add(score_name(key), *(percent(view.scores.get(key)) for view in measured))
    table.add("loss", *(number(view.loss) for view in measured))
    if any(view.worst or view.withheld for view in measured):
        table.add("worst client", *map(_worst, measured))
    return table


def _worst(measured: Measurement) -> str:
    told = [f"{percent(measured.worst[1])} ({measured.worst[0]})"] if measured.worst else []
    if measured.withheld:
        told.append(f"{whole(measured.withheld)} not shared" if told else "not shared")
    return ", ".join(told)


def _rarest(facts: RunFacts, measured: Measurement) -> Sheet:
    table = Sheet("rarest classes", "training images", "recall")
    for row in reversed(facts.class_facts(measured)[-RAREST:]):
        table.add(row.name, whole(row.train), percent(row.recall))
    return table


def _cost(facts: RunFacts) -> str:
    sent = facts.sent()
    told = (
        f"{size(sent['down'])} sent to clients, {size(sent['up'])} back, {duration(facts.seconds()['total'])}"
    )
    refused = len(facts.refused())
    return told + (f"; {plural(refused, 'repl', 'ies', 'y')} refused" if refused else "")


def _unfinished(group: Group) -> str:
    """Return a remark on runs that have not reached their last round."""
    early = sum(run.done < run.config.rounds for run in group.runs)
    return f" ({early} unfinished)" if early else ""
