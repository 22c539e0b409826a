"""Run folders as text for a terminal, a pipe or a log file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedvision.files import plain
from fedvision.formatting import (
    duration,
    ends,
    in_order,
    listed,
    number,
    percent,
    plural,
    score_name,
    size,
    whole,
)
from fedvision.reporting import boxes
from fedvision.reporting.baselines import gain_sentences, score_tables
from fedvision.reporting.baselines_compared import beside
from fedvision.reporting.class_facts import ClassFacts, class_facts, rarest
from fedvision.reporting.compare import (
    Group,
    compare,
    group_kinds,
    notices,
    rarest_scores,
    shown_scores,
)
from fedvision.reporting.personal_models import personal_rows, personal_sentence
from fedvision.reporting.run_data import VIEWS, Measurement, RunData, read_facts
from fedvision.reporting.summary_sentences import PERSONAL, certainty, clients_of, idle, trust
from fedvision.reporting.text_table import TextTable, plain_text
from fedvision.runs.folder import RunFolder
from fedvision.runs.model_versions import ModelVersion
from fedvision.tasks.class_predictions import ClassScores
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.intervals import Interval

RAREST = 3
"""Number of classes whose recall stands under a run's scores."""
INTERVAL = "95 % interval"
_HEADS = {"precision": "precision", "ap": "AP", "auroc": "AUROC"}
PER_CLASS = 30
"""Up to so many classes, the scores of a model have a row for each."""


def run_table(folder: RunFolder) -> str:
    """Return one run's scores, its rarest classes and what it cost.

    Raises:
        RunFolderError: A file in the folder is damaged.
    """
    facts = read_facts(folder)
    parts: list[str | TextTable] = [_heading(facts)]
    if measured := [found for view in VIEWS if (found := facts.measurement(view))]:
        parts += ["", _scores(measured, facts.kinds), *_unmeasured(facts, measured)]
    if facts.best_view and facts.clients and (facts.of_pixels or not facts.own_counts):
        parts += _rarest(facts.class_facts(facts.best_view), facts.distinct, facts.rare_score)
    parts += boxes.rarest_table(facts)
    parts += _personal(facts)
    if facts.held_out_by:  # no other command can tell, as nobody else has the images
        parts += ["", trust(facts)]
    parts += _baselines(facts)
    notices = [f"note: {notice}" for notice in facts.summary.get("notices", [])]
    return plain_text(*parts, "", _cost(facts), *idle(facts), *notices)


def _personal(facts: RunData) -> list[str | TextTable]:
    """Return the rarest classes with the global and with personal models; nothing where there are none."""
    rows = personal_rows(facts)
    if not rows:
        return []
    table = TextTable("rarest on clients' images", "training images", "global model", "personal models")
    for row in reversed(rows[-RAREST:]):
        table.add(row.name, whole(row.train), percent(row.shared), percent(row.own))
    return ["", table, personal_sentence(facts)]


def _baselines(facts: RunData) -> list[str | TextTable]:
    """Return the models trained beside a run and who gains by taking part; nothing where there are none."""
    if facts.baselines is None:
        return []
    parts: list[str | TextTable] = []
    for table in score_tables(facts, facts.baselines):
        text = TextTable(f"on {table.on}", *table.models)
        for name, cells in table.rows:
            text.add(name, *(cell.text for cell in cells))
        parts += ["", text]
    return [
        *parts,
        "of clients: mean (lowest to highest), each client counted once",
        *gain_sentences(facts, facts.baselines),
    ]


def score_table(heading: str, found: ClassScores) -> str:
    """Return a model's scores as a run's end shows them, with each class unless they are many."""
    known = np.array(found.class_counts or [0] * len(found.classes), np.int64)
    counted = found.confusion if found.confusable else None
    labels = {name: plain(values) for name, values in found.by_class.items()} if found.several_labels else {}
    by_class = found.calibration.by_class() if found.calibration else {}
    curves = {name: plain(values) for name, values in by_class.items()}
    of_pixels = found.counted == "pixel"
    pixels = {name: plain(values) for name, values in found.by_class.items()} if of_pixels else {}
    classes = class_facts(found.classes, known, known, counted, labels, curves, pixels)
    measured = Measurement(
        view="here",
        round=0,
        scores=plain(found.scores),
        confusion=counted or ConfusionCounts.none(0),
        loss=plain(found.loss),
        worst=None,
    )
    parts: list[str | TextTable] = [
        heading,
        "",
        _scores([measured], "labels" if found.several_labels else "classes", found.intervals),
    ]
    if found.by_class and not found.of_boxes:
        score = "IoU" if pixels else "AP" if found.several_labels else "recall"
        parts += _rarest(classes, known, score)
    if found.of_boxes and len(classes) <= PER_CLASS:
        parts += ["", boxes.score_rows(found)]
    elif pixels and len(classes) <= PER_CLASS:
        parts += ["", _of_pixels(classes, found)]
    elif found.by_class and len(classes) <= PER_CLASS:
        further = ("precision", "ap") if found.several_labels else ("ap", "auroc") if curves else ()
        heading = "label" if found.several_labels else "class"
        table = TextTable(
            heading, "training images", "images", "recall", INTERVAL, *(_HEADS[name] for name in further)
        )
        for one in classes:
            train = whole(one.train) if found.class_counts else "–"
            cells = [percent(getattr(one, name)) for name in further]
            table.add(one.name, train, whole(one.test), percent(one.recall), _ends(one.interval), *cells)
        parts += ["", table]
    sure = certainty(found.calibration.reliability) if found.calibration else ""
    return plain_text(*parts, *([sure] if sure else []), *(f"note: {notice}" for notice in found.notices))


def _of_pixels(classes: Sequence[ClassFacts], found: ClassScores) -> TextTable:
    """Return a row for each class of pixels."""
    table = TextTable("class", "training pixels", "pixels", "IoU", "Dice", "Dice of an image")
    for one in classes:
        train = whole(one.train) if found.class_counts else "–"
        scores = (percent(value) for value in (one.iou, one.dice, one.case_dice))
        table.add(one.name, train, whole(one.test), *scores)
    return table


def versions_table(versions: Sequence[ModelVersion]) -> TextTable:
    """Return a row for each version of a model, with what was measured of it."""
    table = TextTable(
        "version",
        "size",
        "ms an image, one at a time",
        "ms an image, 32 at a time",
        "accuracy",
        "balanced accuracy",
        "worst recall",
        "worst class",
    )
    for one in versions:
        table.add(
            one.name,
            size(one.bytes) if one.bytes else "–",
            *(number(one.latency_ms.get(batch)) for batch in ("1", "32")),
            percent(one.accuracy, 2),
            percent(one.balanced_accuracy, 2),
            percent(one.worst_recall),
            one.worst_class or "–",
        )
    return table


def comparison_table(folders: Sequence[RunFolder]) -> str:
    """Return one row for each experiment; runs that repeat each other are a mean ± sample deviation.

    Raises:
        RunFolderError: A file in a folder is damaged.
    """
    groups = compare(folders)
    scores = shown_scores(groups)
    kinds = group_kinds(groups)
    table = TextTable("experiment", "n", *(score_name(score, kinds) for score in scores), keys=2)
    for group in groups:
        spreads = [group.spread(score) for score in scores]
        cells = ["–" if spread is None else str(spread) for spread in spreads]
        table.add(group.label + _unfinished(group), str(len(group.runs)), *cells)
        _add_baselines(table, group, scores)
    parts: list[str | TextTable] = [table]
    if rarest := _rarest_of(groups):
        parts += ["", rarest]
    if any(len(group.runs) > 1 for group in groups):
        parts.append("mean ± sample standard deviation over n runs that differ in their seed alone")
    parts += notices(groups)
    return plain_text(*parts)


def _add_baselines(table: TextTable, group: Group, scores: Sequence[str]) -> None:
    """Add a row for each baseline of a group's runs."""
    for name, runs, cells in beside(group, scores):
        table.add(f"{group.label}: {name}", str(runs), *cells)


def _rarest_of(groups: Sequence[Group]) -> TextTable | None:
    classes, shares = rarest_scores(groups, RAREST)
    if not classes:
        return None
    score = groups[0].runs[0].rare_score
    what = f"{score} of a {'label' if score == 'AP' else 'class'}"
    counted = "pixels" if score == "IoU" else "images"
    table = TextTable(f"{what} (training {counted})", *(f"{c.name} ({whole(c.train)})" for c in classes))
    for group, row in zip(groups, shares, strict=True):
        table.add(group.label, *(percent(share) for share in row))
    return table


def _heading(facts: RunData) -> str:
    where = f"{facts.done} of {plural(facts.config.rounds, 'round')}"
    clients = f", {plural(facts.clients, 'client')}" if facts.clients else ""
    return f"{facts.config.name}: {facts.status}, {where}{clients}"


def _scores(
    measured: Sequence[Measurement], kinds: str, intervals: Mapping[str, Interval] | None = None
) -> TextTable:
    further, blank = ([INTERVAL], [""]) if intervals else ([], [])
    table = TextTable("measured", *map(_where, measured), *further)
    for key in in_order({key for view in measured for key in view.scores}):
        cells = [_ends(intervals.get(key))] if intervals else []
        table.add(score_name(key, kinds), *(percent(view.scores.get(key)) for view in measured), *cells)
    table.add("loss", *(number(view.loss) for view in measured), *blank)
    if any(view.worst or view.withheld for view in measured):
        table.add("worst client", *map(_worst, measured), *blank)
    if any(view.part for view in measured):
        table.add("measured by", *(clients_of(view) if view.part else "" for view in measured), *blank)
    return table


def _ends(interval: Interval | None) -> str:
    return ends(*interval) if interval else "–"


def _where(measured: Measurement) -> str:
    if measured.personal:
        return PERSONAL
    return {"server": "on the server", "local": "on clients", "here": "here"}[measured.view]


def _worst(measured: Measurement) -> str:
    parts = []
    if measured.worst:
        name, accuracy, images = measured.worst
        behind = "" if images is None else f", {plural(images, 'image')}"
        parts.append(f"{percent(accuracy)} ({name}{behind})")
    if measured.withheld:
        parts.append(f"{whole(measured.withheld)} not shared" if parts else "not shared")
    return ", ".join(parts)


def _unmeasured(facts: RunData, measured: Sequence[Measurement]) -> list[str]:
    """Return a line for each view whose balanced accuracy leaves out classes without images."""
    notices = []
    for view in measured:
        missing = [c.name for c in facts.class_facts(view) if not c.test] if view.confusion.examples else []
        if missing and view.scores.get("balanced_accuracy") is not None:
            name = score_name("balanced_accuracy")
            notices.append(f"{name} {_where(view)} is without {listed(missing)}: no images to measure")
    return notices


def _rarest(classes: Sequence[ClassFacts], distinct: NDArray[np.int64], score: str) -> list[str | TextTable]:
    """Return the table of the rarest classes, or a sentence where there are none; nothing without counts.

    Args:
        classes: As ``class_facts`` returns them.
        distinct: int64 [C]: training images, or pixels, of each class.
        score: ``"recall"``, ``"AP"`` of labels, or ``"IoU"`` of classes of pixels.
    """
    kinds, counted = "labels" if score == "AP" else "classes", "pixels" if score == "IoU" else "images"
    scores = {"recall": ("recall",), "AP": ("recall", "AP"), "IoU": ("IoU", "Dice")}[score]
    if found := rarest(classes, distinct, RAREST):
        table = TextTable(f"rarest {kinds}", f"training {counted}", *scores)
        for row in reversed(found):
            shown = (percent(getattr(row, name.lower())) for name in scores)
            table.add(row.name, whole(row.train), *shown)
        return ["", table]
    if not distinct.any() or len(distinct) < 2:
        return []
    least = int((distinct == distinct.min()).sum())
    if least == len(distinct):
        return ["", f"all {least} {kinds} have equally many training {counted}: none is rare"]
    return ["", f"{least} of {len(distinct)} {kinds} are equally rare: too many to list as the rarest"]


def _cost(facts: RunData) -> str:
    sent = facts.sent()
    back = f"{size(sent['up'])} back"
    if sent["up_whole"] != sent["up"]:
        back += f" ({size(sent['up_whole'])} without [[update]])"
    part = f" ({part} each time)" if (part := facts.part_sent()) else ""
    traffic = f"{size(sent['down'])} sent to clients{part}, {back}, {duration(facts.seconds()['total'])}"
    unused = facts.unused()
    return traffic + (f"; {unused}" if unused else "")


def _unfinished(group: Group) -> str:
    """Return a remark on runs that have not come to their end, which may be before the last round."""
    early = sum(run.done < run.config.rounds and run.status != "finished" for run in group.runs)
    return f" ({early} unfinished)" if early else ""
