"""The verb that makes images with a run's generator, and measures how near they are to training images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.errors import ConfigError
from fedvision.streams import show

if TYPE_CHECKING:
    from fedvision.generated import Leakage

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    generate = verbs.add_parser("generate", description="make images of each class with a run's generator")
    generate.add_argument("run", type=Path, metavar="RUN", help="run folder, of strategy.use = 'fedgan'")
    generate.add_argument(
        "--each", type=int, default=100, metavar="N", help="images of each class (default: 100)"
    )
    generate.add_argument("--seed", type=int, default=0, help="another one makes other images (default: 0)")
    generate.add_argument(
        "--out", type=Path, metavar="FILE", help='write them as an .npz file that `use = "npz"` reads'
    )
    generate.add_argument(
        "--leakage",
        action="store_true",
        help="compare their distances to the nearest training image with those of unseen real images",
    )
    generate.set_defaults(call=_generate, again="the same command begins anew")


def _generate(options: argparse.Namespace) -> None:
    import io

    import numpy as np

    from fedvision.cli.model import check_writable
    from fedvision.files import replace_file
    from fedvision.generated import ImageGenerator, leakage_of_run

    if not (options.out or options.leakage):
        raise ConfigError("there is nothing to do; name a file with --out, or measure with --leakage")
    if options.each < 1 or options.seed < 0:
        raise ConfigError("--each must be >= 1 and --seed >= 0")
    check_writable(options.out, "--out")
    if options.out:
        images, labels = ImageGenerator(options.run).images(options.each, seed=options.seed)
        content = io.BytesIO()
        np.savez_compressed(content, train_images=images, train_labels=labels)
        replace_file(options.out, content.getvalue())
        show(f"{options.out}: {len(labels):,} images", recorded=str(options.out))
    if options.leakage:
        show(_table(leakage_of_run(options.run, each=options.each, seed=options.seed)))


def _table(found: list[Leakage]) -> str:
    """Return a row a class; distances in units of the pixels' range."""
    rows = [("class", "trained on", "generated", "held-out", "ratio", "nearer")]
    rows += [
        (
            one.name,
            f"{one.training:,}",
            f"{one.generated:.3f}",
            f"{one.held_out:.3f}",
            f"{one.ratio:.2f}",
            f"{100 * one.nearer:.0f}%",
        )
        for one in found
    ]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(wide[k]) if k else cell.ljust(wide[k]) for k, cell in enumerate(row))
        for row in rows
    ]
    return "\n".join(
        [
            *lines,
            "generated, held-out: median distance to the nearest training image of the class; a ratio well "
            "below 1",
            "(nearer well above 50%) means that training images may be reproduced",
        ]
    )
