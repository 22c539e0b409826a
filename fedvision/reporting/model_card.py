"""The model card of a run, as Hugging Face's hub reads it: Markdown with YAML in front.

Mitchell et al. 2019, "Model Cards for Model Reporting", arXiv 1810.03993. The front matter's ``model-index``
has the scores as the run recorded them, to the last digit; the text has them rounded. What only people know,
such as what the model is for, is left to the owner and marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedvision.formatting import duration, ends, in_order, number, percent, plural, score_name, size, whole
from fedvision.reporting.baselines import gain_sentences
from fedvision.reporting.card_loading import loading
from fedvision.reporting.markdown import code, escaped, table, yaml
from fedvision.reporting.personal_models import OWN
from fedvision.reporting.run_data import VIEWS, Measurement, RunData
from fedvision.reporting.summary_sentences import calibrated, clients_of, measured_on, trust

OWNER = "**To be filled in by the owner.**"
"""Marks what a run cannot know."""
CLASSES_SHOWN = 100
"""Up to so many classes have a row each; of more, the rarest."""
FEW = 30
"""Images of a class below which its recall is hardly known, and training images below which it is rare."""
_METRICS: Mapping[str, tuple[str, str]] = {
    "accuracy": ("accuracy", "Accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "micro_f1": ("f1", "Micro F1"),
    "mean_ap": ("average_precision", "Mean average precision"),
    "macro_auroc": ("roc_auc", "Mean AUROC"),
}
"""Types of the hub's metrics, and names, by score."""


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What a run does not know of its model."""

    name: str = ""
    """The model's name; the experiment's where it is left out."""
    license: str = ""
    """Identifier of the licence, such as ``"apache-2.0"``; the card leaves it to the owner without."""


def model_card(facts: RunData, options: CardOptions) -> str:
    """Return the card of a run.

    Args:
        facts: The run.
        options: What it does not know.
    """
    name = options.name or facts.config.name
    sections = {
        "": _head(facts),
        "Intended use": [
            f"{OWNER} Who is to use the model, for what, and on which images; for what it must not be used."
        ],
        "Data": _data(facts),
        "Results": _results(facts),
        "Beside training alone": _baselines(facts),
        "Privacy": _privacy(facts),
        "How to load it": loading(facts.path),
        "What it cost": _cost(facts),
        "How it was made": _made(facts),
        "Licence": [_licence(options)],
        "Limitations": _limitations(facts),
    }
    parts = [f"---\n{yaml(_front(facts, options))}\n---", f"# {escaped(name)}"]
    for title, paragraphs in sections.items():
        if paragraphs:
            parts += [f"## {title}"] * bool(title) + paragraphs
    return "\n\n".join(parts) + "\n"


def _front(facts: RunData, options: CardOptions) -> dict[str, Any]:
    """Return the YAML in front."""
    name = options.name or facts.config.name
    tags = ["federated-learning", "fedvision", "vision"]
    front: dict[str, Any] = {"license": options.license} if options.license else {}
    front |= {"library_name": "fedvision", "pipeline_tag": "image-classification", "tags": tags}
    # The card is the global model's.
    views = [one for view in VIEWS if view != OWN and (one := facts.measurement(view))]
    results = [one for found in views for one in _entries(facts, found)]
    if results:
        front["metrics"] = list(dict.fromkeys(metric["type"] for one in results for metric in one["metrics"]))
        front["model-index"] = [{"name": name, "results": results}]
    return front


def _entries(facts: RunData, found: Measurement) -> list[dict[str, Any]]:
    """Return the results of one measurement as the hub's model index has them."""
    metrics = []
    for key in in_order({key for key, value in found.scores.items() if value is not None}):
        kind, label = _METRICS.get(key, (key, score_name(key, facts.kinds)))
        metrics.append({"type": kind, "value": found.scores[key], "name": label})
    if not metrics:
        return []
    split = "test" if found.view == "server" else "held out by clients"
    dataset = {"type": facts.config.data.use, "name": facts.config.data.use, "split": split}
    task = {"type": "image-classification", "name": "Image classification"}
    if facts.of_pixels:
        task = {"type": "image-segmentation", "name": "Image segmentation"}
    return [{"task": task, "dataset": dataset, "metrics": metrics}]


def _head(facts: RunData) -> list[str]:
    config, classes = facts.config, len(facts.classes)
    data = "" if config.data.use == "elsewhere" else f" on `{code(config.data.use)}`"
    status = "" if facts.status == "finished" else f" The run {facts.status} before its last round."
    what = "A segmentation network" if facts.of_pixels else "An image classifier"
    return [
        f"{what} of {plural(classes, facts.kind, facts.kinds[len(facts.kind) :])}, trained by "
        f"federated learning{data}: {plural(facts.clients, 'client')}, "
        f"{facts.done} of {plural(config.rounds, 'round')}, strategy `{code(config.strategy.use)}`, network "
        f"`{code(config.model.use)}`, loss `{code(config.loss.use)}`, seed {config.seed}.{status}"
    ]


def _data(facts: RunData) -> list[str]:
    """Return who has what: images, classes and clients, in summary."""
    if not facts.totals.any():
        return [f"How many images of each {facts.kind} there are is not known to the server. {OWNER}"]
    totals, counts = facts.totals, facts.counts
    about = "" if facts.exact else "about "
    lines = [
        f"{plural(facts.clients, 'client')} with {about}{whole(int(totals.sum()))} training images in all."
    ]
    if facts.several_labels:
        lines = [f"{plural(facts.clients, 'client')} with {about}{whole(int(totals.sum()))} labels in all."]
    if facts.of_pixels:
        lines = [f"{plural(facts.clients, 'client')} with {about}{whole(int(totals.sum()))} training pixels."]
    if totals.min() > 0:
        factor = number(float(totals.max() / totals.min()), 1)
        counted = "pixels" if facts.of_pixels else "images"
        most, least = int(totals.argmax()), int(totals.argmin())
        ends_of = [f"{escaped(facts.classes[c])}, {whole(int(totals[c]))}" for c in (most, least)]
        lines.append(
            f"Long-tail factor {factor}: {counted} of the most frequent {facts.kind} ({ends_of[0]}) by those "
            f"of the rarest ({ends_of[1]})."
        )
    elif totals.max() > 0:
        lines.append(
            f"{whole(int((totals == 0).sum()))} of {len(totals)} {facts.kinds} have no training image."
        )
    if len(counts):
        images, known = counts.sum(1), (counts > 0).sum(1)
        what = "pixels" if facts.of_pixels else "labels" if facts.several_labels else "images"
        lines.append(
            f"A client has {_spread(images)} {what} (lowest, median, highest) and {_spread(known)} of the "
            f"{len(totals)} {facts.kinds}"
            + (
                f"; of {plural(len(counts), 'client')} whose counts are known."
                if len(counts) < facts.clients
                else "."
            )
        )
    if len(facts.split.get("names", ())) or facts.config.data.use == "elsewhere":
        lines.append("Clients are those of the data, not drawn by a partition.")
    elif facts.config.partition.use:
        lines.append(
            f"The images were spread over clients by the partition `{code(facts.config.partition.use)}`."
        )
    return [
        " ".join(lines),
        f"{OWNER} Where the images come from, who labelled them, and what is not among them.",
    ]


def _spread(values: Any) -> str:
    middle = float(np.median(values))
    ends_of = [whole(int(value)) for value in (values.min(), values.max())]
    return ", ".join((ends_of[0], f"{middle:,.0f}" if middle.is_integer() else f"{middle:,.1f}", ends_of[1]))


def _results(facts: RunData) -> list[str]:
    found = [one for view in VIEWS if (one := facts.measurement(view))]
    if not found:
        return ["Nothing was measured."]
    return [part for one in found for part in _measured(facts, one)] + _sure(facts)


def _measured(facts: RunData, found: Measurement) -> list[str]:
    """Return the scores of one measurement, with those of each class where it is the best one."""
    intervals = facts.intervals(found)
    examples = found.confusion.examples
    images = f" ({plural(examples, 'image')})" if examples else ""
    rows = [
        [
            score_name(key, facts.kinds),
            percent(found.scores[key]),
            *([ends(*intervals[key]) if key in intervals else "–"] if intervals else []),
        ]
        for key in in_order({key for key, value in found.scores.items() if value is not None})
    ]
    what = (
        ", with 95 % intervals in percent: where a score would be on endlessly many images of the same kind. "
        "Another seed or split may differ by more."
    )
    parts = [
        f"Measured after round {found.round} on {measured_on(found)}{images}{what if intervals else '.'}",
        table(["score", "value", *(["95 % interval"] if intervals else [])], rows),
    ]
    if found.worst:
        name, share, images_of = found.worst
        behind = "" if images_of is None else f" on {plural(images_of, 'image')}"
        among = f", of {clients_of(found)}" if found.part else ""
        parts.append(
            f"Worst client{among}: {escaped(name)}, {score_name(facts.compared_by)} {percent(share)}{behind}."
        )
    best = facts.best_view
    return parts + (_classes(facts) if best is not None and best.view == found.view else [])


def _classes(facts: RunData) -> list[str]:
    """Return the recall of each class of the best view, or IoU and Dice, and the worst one."""
    if facts.of_pixels:
        return _of_pixels(facts)
    classes = [one for one in facts.class_facts(facts.best_view) if one.recall is not None]
    if not classes or facts.own_counts:
        return []
    worst = min(classes, key=lambda one: one.recall or 0.0)
    shown = classes[-CLASSES_SHOWN:]
    curves = any(one.ap is not None for one in shown)
    rows = [
        [
            escaped(one.name),
            whole(one.train) if facts.totals.any() else "–",
            whole(one.test),
            percent(one.recall),
            ends(*one.interval) if one.interval else "–",
            *([percent(one.ap), percent(one.auroc)] if curves else []),
        ]
        for one in shown
    ]
    heads = [facts.kind, "training images", "measured images", "recall", "95 % interval"]
    left = len(classes) - len(shown)
    end = ends(*worst.interval) if worst.interval else "–"
    return [
        table([*heads, *(["AP", "AUROC"] if curves else [])], rows),
        *([f"{whole(left)} {facts.kinds} with more training images are left out."] if left else []),
        f"Worst {facts.kind}: {escaped(worst.name)}, recall {percent(worst.recall)} ({end}) on "
        f"{plural(worst.test, 'image')}.",
    ]


def _of_pixels(facts: RunData) -> list[str]:
    """Return IoU and Dice of each class of pixels, and the worst one."""
    classes = [one for one in facts.class_facts(facts.best_view) if one.iou is not None]
    if not classes:
        return []
    shown, worst = classes[-CLASSES_SHOWN:], min(classes, key=lambda one: one.iou or 0.0)
    rows = [
        [escaped(one.name), whole(one.train), whole(one.test), percent(one.iou), percent(one.dice)]
        for one in shown
    ]
    left = len(classes) - len(shown)
    return [
        table([facts.kind, "training pixels", "measured pixels", "IoU", "Dice"], rows),
        *([f"{whole(left)} {facts.kinds} with more training pixels are left out."] if left else []),
        f"Worst {facts.kind}: {escaped(worst.name)}, IoU {percent(worst.iou)} on "
        f"{plural(worst.test, 'pixel')}.",
    ]


def _sure(facts: RunData) -> list[str]:
    """Return the calibration, where it was measured."""
    found = trust(facts)
    scaled = calibrated(facts.rounds[-1] if facts.rounds else {})
    return [" ".join(text for text in (found, scaled) if text)] if found or scaled else []


def _baselines(facts: RunData) -> list[str]:
    if facts.baselines is None:
        return []
    return [escaped(sentence, 2000) for sentence in gain_sentences(facts, facts.baselines)]


def _privacy(facts: RunData) -> list[str]:
    """Return what left the clients, and which guarantee there is."""
    lines = []
    members = [one.member for one in facts.participants if one.takes_part]
    if members:
        modes = sorted({member.sharing or "none" for member in members})
        kinds = ", ".join(f"{sum((m.sharing or 'none') == mode for m in members)} {mode}" for mode in modes)
        lines.append(f"Clients sent model updates; how they shared class counts: {kinds}.")
    else:
        lines.append(
            "A simulation: all images were on one machine, and what clients of a real federation would have "
            "sent are model updates and class counts."
        )
    uses = f"{facts.config.strategy.use} {facts.config.strategy.args}"
    if "DifferentialPrivacy" in uses:
        seeded = facts.config.privacy.noise == "reproducible"
        lines.append(
            "The strategy adds noise to the model (differential privacy); no privacy budget was computed, "
            "see its parameters in the experiment."
            + (" The noise came from the experiment's seed, which is NO privacy." if seeded else "")
        )
    else:
        lines.append("Differential privacy of the model: none; no noise was added to it.")
    if any(member.sharing == "noisy" for member in members):
        lines.append("The noisy class counts have noise of the clients' own choice of epsilon.")
    lines.append(
        "This card has the names of classes, and how few images some have: see that it names nobody."
    )
    return [" ".join(lines)]


def _cost(facts: RunData) -> list[str]:
    sent, seconds = facts.sent(), facts.seconds()
    held = "".join(f", {name}: {size(held)}" for name, held in facts.memory())
    parameters = facts.summary.get("parameters")
    count = f"{plural(parameters, 'parameter')}. " if parameters else ""
    return [
        f"{count}{size(sent['down'])} sent to clients and {size(sent['up'])} by them in "
        f"{plural(facts.done, 'round')}, {duration(seconds['total'])}{held}."
    ]


def _made(facts: RunData) -> list[str]:
    there = {key: value for key, value in facts.environment.items() if key != "earlier" and value is not None}
    rows = [[escaped(key.replace("_", " ")), escaped(str(value))] for key, value in there.items()]
    digest = facts.split.get("digest")
    return [
        f"One run with seed {facts.config.seed}; the experiment in full is `config.toml` of the run folder"
        + (f", and the digest of its split `{code(str(digest))}`." if digest else "."),
        *([table(["made with", ""], rows)] if rows else []),
    ]


def _licence(options: CardOptions) -> str:
    if options.license:
        return f"`{code(options.license)}`"
    return (
        f"{OWNER} Weights that training began with, and the images, may bind it; `fedvision card` takes "
        "`--license`."
    )


def _limitations(facts: RunData) -> list[str]:
    """Return what the figures do not say, in plain words, a point each."""
    points = [
        "The scores are of one run with one seed, on images from the same source as the training images; "
        "images of other machines, places or times may give lower ones.",
    ]
    classes, best = facts.class_facts(facts.best_view), facts.best_view
    if best is not None and not facts.own_counts:
        none = [one.name for one in classes if not one.test]
        few = [one.name for one in classes if 0 < one.test < FEW]
        poor = [one.name for one in classes if one.recall is not None and one.recall < 0.5]
        if none:
            points.append(f"Never measured, as there are no images: {_names(none)}.")
        if few:
            points.append(f"Measured on fewer than {FEW} images each, so hardly known: {_names(few)}.")
        if poor:
            points.append(f"More often missed than found: {_names(poor)}.")
    if facts.totals.any():
        rare = [one.name for one in classes if one.train < FEW]
        if rare:
            counted = "pixels" if facts.of_pixels else "images"
            points.append(
                f"Trained on fewer than {FEW} {counted} each in the whole federation: {_names(rare)}."
            )
    if best is None:
        points[0] = "Nothing was measured: how good the model is, nobody knows."
    if not facts.reliability:
        points.append("How far its probabilities can be trusted was not measured.")
    points.append(
        f"It gives every {'pixel' if facts.of_pixels else 'image'} one of the classes it knows, also "
        f"{'one' if facts.of_pixels else 'an image'} of something else." * (not facts.several_labels)
    )
    return [
        "\n".join(f"- {point}" for point in points if point),
        f"{OWNER} What else is known of where it fails.",
    ]


def _names(names: list[str], longest: int = 20) -> str:
    more = f" and {whole(len(names) - longest)} more" if len(names) > longest else ""
    return ", ".join(map(escaped, names[:longest])) + more
