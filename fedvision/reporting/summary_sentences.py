"""A run in plain words: what the figures mean, for a reader who does not know their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedvision.formatting import listed, percent, plural, score_name, whole
from fedvision.reporting.class_facts import ClassFacts
from fedvision.reporting.run_data import Measurement, RunData
from fedvision.tasks.calibration import Reliability

PERSONAL = "personal models, on clients' own held-out images"
"""Of which models the scores are where a part of the network stays on its client."""


class Headline(NamedTuple):
    """One figure that stands at the top of a report."""

    label: str
    value: str
    meaning: str


def headlines(facts: RunData) -> list[Headline]:
    """Return the figures that matter most; none before the first measurement."""
    measured = facts.best_view
    if measured is None:
        return []
    alike = f"false alarms count as well as misses, every {facts.kind} alike"
    meanings = {
        "mean_ap": ("Mean AP", f"average precision on {measured_on(measured)}, every label alike"),
        "accuracy": ("Accuracy", f"share of all {measured_on(measured)} that get their right name"),
        "balanced_accuracy": ("Balanced accuracy", _balanced(facts, measured)),
        "tail": (f"Rare {facts.kinds}", _tail(facts)),
        "macro_f1": ("Macro F1", alike),
    }
    if facts.own_counts:
        on, rare = f"on {measured_on(measured)}", meanings["tail"]
        chosen = ("mean_iou", "mean_dice") if facts.of_pixels else list(measured.scores)[:3]
        meanings = {key: (_capital(score_name(key)), on) for key in chosen}
        meanings |= {"tail": rare} if facts.of_pixels else {}
    found = [
        Headline(label, percent(measured.scores[key]), meaning)
        for key, (label, meaning) in meanings.items()
        if measured.scores.get(key) is not None and meaning
    ]
    clients = facts.measurement("local")
    if clients is not None and clients.worst is not None:
        name, accuracy, images = clients.worst
        number = "the images" if images is None else plural(images, "image")
        what = score_name(facts.compared_by)
        among = f", the worst of {clients_of(clients)}" if clients.part else ""
        worst = Headline("Worst client", percent(accuracy), f"{what} on {number} of client {name}{among}")
        found = [*found[:3], worst]
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def summary_sentences(facts: RunData) -> list[str]:
    """Return a few sentences on the data, the result and how the run ended."""
    sentences = [_data(facts), *idle(facts), _result(facts), _best(facts), _strategy(facts), _ending(facts)]
    return [sentence for sentence in sentences if sentence]


def _best(facts: RunData) -> str:
    """Return after which round the model was best on clients' images, and where it is kept."""
    found = facts.summary.get("best")
    if not found:
        return ""
    where = "; it is kept in the folder best" if facts.config.evaluation.keep == "best" else ""
    score = f"{score_name(found['by'])} on images that clients hold out"
    return f"By {score} the model was best after round {found['round']} ({percent(found['score'])}){where}."


def _strategy(facts: RunData) -> str:
    """Return the single numbers that the strategy noted last, or that its last query was not answered."""
    last = facts.rounds[-1] if facts.rounds else {}
    if query := last.get("unanswered"):
        return (
            f"No client answered the strategy's query {query!r} of the last round, so the final model is as "
            "training left it."
        )
    noted = last.get("strategy") or {}
    numbers = [f"{name} {value:g}" for name, value in noted.items() if isinstance(value, int | float)]
    return f"The strategy worked with {listed(numbers)}." if numbers else ""


def idle(facts: RunData) -> list[str]:
    """Return a sentence for each client on whom the model does not rest, though it joined or tried to."""
    sentences = []
    for one in facts.idle:
        images = (
            f"; its {whole(one.member.images or 0)} images are in the class counts" if one.counted else ""
        )
        fate = (
            f"failed in every round that selected it, {one.failed} in all" if one.failed else "could not join"
        )
        sentences.append(f"{one.member.name} took no part: it {fate} ({one.reason}){images}.")
    return sentences


def measured_on(measured: Measurement) -> str:
    """Return which images a view measures."""
    kept = f"images that {clients_of(measured)} keep for measuring"
    if measured.personal:
        return f"{kept}, each with its personal model,"
    return "test images" if measured.view == "server" else kept


def clients_of(measured: Measurement) -> str:
    """Return ``"clients"``, or how many of how many where a view is not of all of them."""
    if measured.part is None:
        return "clients"
    some, all_there_are = measured.part
    return f"{whole(some)} of {plural(all_there_are, 'client')}"


def certainty(found: Reliability | None) -> str:
    """Return how far the final model's probabilities are from how often it is right; empty where unknown."""
    if found is None or not found.images.any():
        return ""
    images = found.images.sum()
    sure, right = (percent(float(values.sum() / images)) for values in (found.confidence, found.right))
    how = "too sure" if found.excess > 0 else "too unsure"
    return (
        f"On average the final model gives the class that it names {sure}, and it is right in {right}: it is "
        f"{how} by {percent(abs(found.excess))[:-1]} points. Bin by bin the distance is "
        f"{percent(found.error)[:-1]} points (expected calibration error, {len(found.images)} bins)."
    )


def trust(facts: RunData) -> str:
    """Return ``certainty`` of a run's final model, on whose images where these are clients', or why not."""
    text, told = certainty(facts.reliability), facts.held_out_by
    if told is None:
        return text
    asked = plural(told["asked"], "client")
    others = [
        f"{whole(count)} {what}"
        for count, what in (
            (told["withheld"], "did not share the statistic calibration (share.statistics)"),
            (len(told["failed"]), "gave no usable answer"),
        )
        if count
    ]
    missing = f"of {asked} {listed(others)}" if others else ""
    if not text:
        why = f": {missing}" if missing else ": no client holds out images"
        return f"How far its probabilities can be trusted was not measured{why}."
    scaled = "factor" in (facts.rounds[-1].get("calibration") or {}) if facts.rounds else False
    text += (
        f" The server has no test images: this rests on {plural(told['images'], 'image')} that "
        f"{whole(told['clients'])} of {asked} hold out from training"
        f"{', by which its temperature was chosen as well' if scaled else ''}"
    )
    text += f"; {missing}." if missing else "."
    if "ap" not in facts.summary["calibration"]:
        text += " Of so many classes clients do not send what AP and AUROC are made of."
    return text


def calibrated(record: Mapping[str, Any]) -> str:
    """Return what a round's record says of the final model's temperature; empty where nothing was asked."""
    found = record.get("calibration")
    if found is None:
        return ""
    if "factor" not in found:
        return "It was not calibrated: no client answered for images that it keeps out of training."
    return (
        f"Its probabilities are those of logits times {found['factor']:.3g}, which makes the "
        f"{plural(found['images'], 'image')} that clients keep out of training most likely: a loss of "
        f"{found['scaled_loss']:.3f} nats instead of {found['loss']:.3f}."
    )


def _balanced(facts: RunData, measured: Measurement) -> str:
    """Return what balanced accuracy is, and which classes it leaves out."""
    text = "the same if every class counts alike, however rare"
    missing = (
        [c.name for c in facts.class_facts(measured) if not c.test] if measured.confusion.examples else []
    )
    return f"{text}; without {listed(missing)}, of which there are no images" if missing else text


def _tail(facts: RunData) -> str:
    """Return what the recall of the tail is a recall of; empty where no class is rarer than another."""
    rare = [c.name for c in facts.class_facts(None) if c.group == "tail"]
    what = "recall" if facts.rare_score == "recall" else f"mean {facts.rare_score}"
    if len(rare) > 4:
        return f"{what} of the {len(rare)} rarest {facts.kinds}"
    return f"{what} of the rarest {facts.kinds}: {', '.join(rare)}" if rare else ""


def _data(facts: RunData) -> str:
    if not facts.clients:
        return ""
    others = sum(one.counted for one in facts.idle)
    more = f" and {others} more without a part" if others else ""
    who = plural(facts.clients, "client") + more + (" keeps" if facts.clients == 1 and not more else " keep")
    if not facts.totals.any() and facts.withheld:
        return f"{who} images and do not say how many of each {facts.kind}."
    images = ("" if facts.exact else "about ") + whole(int(facts.totals.sum()))
    text = f"{who} {images} training images of {plural(len(facts.totals), 'class', 'es')}"
    if facts.own_counts:  # of a task of one's own it is not known what is counted
        kinds = plural(len(facts.totals), "class", "es")
        counted = f"{images} pixels" if facts.of_pixels else f"class counts of {images}"
        counted = f"{images} boxes" if facts.config.task.use == "detection" else counted
        text = f"{who} images with {counted} in all, of {kinds}"
    if facts.several_labels:  # an image is counted for each of its labels
        text = f"{who} images with {images} labels in all, of {plural(len(facts.totals), 'kind')}"
    frequent, rare = (facts.class_facts(None)[place] for place in (0, -1))
    if frequent.train == rare.train:
        return text + (", equally many of each: none is rare." if len(facts.totals) > 1 else ".")
    most = f"{whole(frequent.train)} of {frequent.name}, the most frequent one"
    return f"{text}: {most}, and {whole(rare.train)} of {rare.name}, the rarest."


def _result(facts: RunData) -> str:
    measured = facts.best_view
    if measured is not None and measured.scores.get("mean_ap") is not None:
        return _labels(facts, measured)
    if measured is not None and measured.pixels and measured.scores.get("mean_iou") is not None:
        return _pixels(facts, measured)
    if measured is not None and facts.own_counts and measured.scores:
        first = list(measured.scores.items())[:3]
        scores = " and ".join(f"{score_name(key)} is {percent(value)}" for key, value in first)
        return f"After round {measured.round}, on {measured_on(measured)}, {scores}."
    if measured is None or measured.scores.get("accuracy") is None:
        if facts.status == "finished":
            return "Nothing was measured: there were no images for it."
        return "Nothing has been measured yet."
    right = f"{_of_100(measured.scores['accuracy'] or 0.0)} {measured_on(measured)}"
    subject, they = (
        ("personal models name", "they know") if measured.personal else ("the model names", "it knows")
    )
    text = f"After round {measured.round} {subject} {right} rightly"
    known = [c for c in facts.class_facts(measured) if c.recall is not None]
    if len(known) < 2:
        return text + "."
    best, worst = max(known, key=_recall), min(known, key=_recall)
    return (
        f"{text}; {they} {best.name} best ({percent(best.recall)}) and {worst.name} least "
        f"({percent(worst.recall)})."
    )


def _of_100(share: float) -> str:
    """Return a share in words; all and none are said only where it is all or none."""
    rounded = round(100 * share)
    if rounded == 100 and share < 1:
        return "more than 99 of 100"
    return "fewer than 1 of 100" if rounded == 0 < share else f"{rounded} of 100"


def _labels(facts: RunData, measured: Measurement) -> str:
    text = (
        f"After round {measured.round} the mean average precision over labels is "
        f"{percent(measured.scores['mean_ap'])} on {measured_on(measured)}"
    )
    known = [(c.ap, c.name) for c in facts.class_facts(measured) if c.ap is not None]
    if len(known) < 2:
        return text + "."
    (high, best), (low, worst) = max(known), min(known)
    return f"{text}; it finds {best} best ({percent(high)}) and {worst} least well ({percent(low)})."


def _pixels(facts: RunData, measured: Measurement) -> str:
    text = (
        f"After round {measured.round} the mean IoU of classes is {percent(measured.scores['mean_iou'])} on "
        f"{measured_on(measured)}"
    )
    known = [(c.iou, c.name) for c in facts.class_facts(measured) if c.iou is not None]
    if len(known) < 2:
        return text + "."
    (high, best), (low, worst) = max(known), min(known)
    return f"{text}; it finds {best} best ({percent(high)}) and {worst} least well ({percent(low)})."


def _ending(facts: RunData) -> str:
    where = f"{facts.done} of {plural(facts.config.rounds, 'round')}"
    if facts.status == "finished":
        return ""
    if facts.status == "unfinished":
        return f"The run has recorded {where}; it is still going on, or was killed."
    reason = facts.summary.get("error")
    return f"The run {facts.status} after {where}{f': {reason}' if reason else '.'}"


def _recall(facts: ClassFacts) -> float:
    return facts.recall or 0.0
