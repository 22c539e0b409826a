"""``fedvision doctor CLIENT.toml [--experiment EXPERIMENT]``: is this machine ready to join?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision import registry
from fedvision.errors import RunError
from fedvision.streams import show

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("doctor", description="check a client's machine before it joins")
    parser.add_argument("client", type=Path, metavar="CLIENT", help="the client's TOML file")
    parser.add_argument(
        "--experiment", dest="trains", type=Path, metavar="EXPERIMENT", help="what it shall train"
    )
    parser.add_argument(
        "--set",
        dest="client_overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the client's file, such as superlink.address=host:8443",
    )
    parser.set_defaults(call=_examine)


def _examine(options: argparse.Namespace) -> None:
    from fedvision.config import ExperimentConfig
    from fedvision.deployment.client.config import ClientMachineConfig

    registry.allow_folder(options.client.parent)
    config = ClientMachineConfig.load(options.client, options.client_overrides)
    experiment = ExperimentConfig.load(options.trains) if options.trains else None
    # Both files are right: only now is it worth seconds to load what trains.
    from fedvision.deployment.client.doctor import run_check
    from fedvision.flower.internals import quiet

    quiet()
    found = run_check(config, experiment)
    show(found.text())
    if found.failures:
        lines = "1 line says" if found.failures == 1 else f"{found.failures} lines say"
        raise RunError(f"{options.client}: {lines} FAIL; this machine is not ready to join")
