"""``fedvision explain RUN [IMAGES...]``: which pixels a model's decisions rest on."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision import registry
from fedvision.errors import ConfigError, RunError, RunFolderError
from fedvision.formatting import listed, plural
from fedvision.streams import complain, show

if TYPE_CHECKING:
    from fedvision.explanation.result import Explanations
    from fedvision.trained_model import TrainedModel

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_MOST = 24
"""Images that are explained where nobody says how many."""


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("explain", description="show which pixels a model's decisions rest on")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="as of predict; without any, the wrongly named test images that the run keeps",
    )
    parser.add_argument(
        "--client", type=Path, metavar="CLIENT", help="this machine's own images, by its TOML file"
    )
    parser.add_argument(
        "--method",
        default="auto",
        help="auto, grad-cam, hires-cam, attention-rollout or integrated-gradients (default: by the network)",
    )
    parser.add_argument(
        "--class", dest="label", metavar="NAME", help="class to explain (default: the predicted one)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write (default: RUN/explanations/...)"
    )
    parser.add_argument(
        "--limit", type=int, default=_MOST, metavar="N", help=f"most images (default: {_MOST})"
    )
    parser.add_argument("--device", default="auto", help="auto (cuda, mps or cpu) or a torch device")
    parser.add_argument("--threads", type=int, default=1, help="threads of the arithmetic (default: 1)")
    parser.set_defaults(call=_explain, more="images")


def _explain(options: argparse.Namespace) -> None:
    from fedvision.cli.model import load_model
    from fedvision.reporting.explanations import MISTAKES, table, write_explanations

    if options.client and options.images:
        raise ConfigError("--client explains that machine's own images; name either it or IMAGES")
    if options.limit < 1:
        raise ConfigError(f"--limit must be >= 1, not {options.limit}")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out {options.out}: this is no folder; name another one")
    model = load_model(options)
    if options.client:
        found, place, whose = _of_client(model, options), Path("explanations", "client"), "own images"
    elif options.images:
        found = model.explain(options.images, method=options.method, label=options.label, limit=options.limit)
        place, whose = Path("explanations", "images"), "images"
    else:
        found, place, whose = _of_mistakes(model, options), MISTAKES, "mistakes"
    for notice in found.notices:
        complain(f"note: {notice}")
    page = write_explanations(
        options.out or options.run / place,
        found,
        title=f"{options.run.resolve().name}: {whose}",
        model=model.description.sha256,
    )
    if not options.out and place == MISTAKES:
        _renew_report(options.run)
    show(f"{table(found)}\npage: {page}", recorded=str(page))
    if lost := found.unreadable:
        for name, why in lost.items():
            complain(f"{name}: {why}")
        raise RunError(
            f"{plural(len(lost), 'image')} cannot be read: {listed(list(lost))}; the others are explained"
        )


def _of_mistakes(model: TrainedModel, options: argparse.Namespace) -> Explanations:
    """Explain wrongly named test images that the run keeps, those that its report shows first.

    Raises:
        RunFolderError: It keeps none.
    """
    from fedvision.runs.misclassified import Misclassified

    file = options.run / "mistakes.safetensors"
    kept = Misclassified.decode(file) if file.is_file() else None
    if kept is None or not len(kept.images):
        raise RunFolderError(f"{options.run}: it keeps no wrongly named test images; name IMAGES to explain")
    found = model.explain(kept.images, method=options.method, label=options.label, limit=options.limit)
    true = [int(label) for label in kept.labels[: len(found)]]
    return replace(found, true=true, names=[f"mistake {place + 1}" for place in range(len(found))])


def _of_client(model: TrainedModel, options: argparse.Namespace) -> Explanations:
    """Explain some of this machine's own images, drawn by chance, as its own file decodes and labels them."""
    import numpy as np

    from fedvision import seeding
    from fedvision.data.sources.inputs import encoded
    from fedvision.data.sources.unlabelled import UnlabelledImages
    from fedvision.deployment.client.config import ClientMachineConfig
    from fedvision.deployment.client.local_data import open_own, under_classes
    from fedvision.explanation.explainer import explain_all

    registry.allow_folder(options.client.parent)
    config = ClientMachineConfig.load(options.client)
    own = encoded(
        under_classes(open_own(config), config, model.classes).train, model.description.model.inputs
    )
    chosen = np.sort(seeding.numpy_stream(0, "explained", len(own)).permutation(len(own))[: options.limit])
    images = own.images[chosen]
    found = explain_all(
        model.scored,
        UnlabelledImages(images, model.description.image.shape, None, batch_size=len(images)),
        classes=model.classes,
        rows=lambda names: (
            None if own.further is None else own.further[chosen[[int(name) for name in names]]]
        ),
        method=options.method,
        name=options.label,
    )
    one = own.labels.ndim == 1
    return replace(
        found,
        names=[own.names[place] if own.names else f"image {place + 1}" for place in chosen.tolist()],
        true=[int(label) for label in own.labels[chosen]] if one else [],
    )


def _renew_report(run: Path) -> None:
    """Write the run's report anew, which shows what was explained of its mistakes."""
    from fedvision.reporting.html import write_report
    from fedvision.runs.folder import RunFolder

    if (run / "config.toml").is_file():
        write_report(RunFolder.read(run))
