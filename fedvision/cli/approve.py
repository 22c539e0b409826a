"""``fedvision approve CLIENT.toml [EXPERIMENT]``: what a client's owner says to an experiment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.errors import ConfigError
from fedvision.streams import show

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("approve", description="approve an experiment that a server asked a client for")
    parser.add_argument("client", type=Path, metavar="CLIENT", help="the client's TOML file")
    parser.add_argument(
        "requested", nargs="?", metavar="EXPERIMENT", help="name or digest (default: list what was asked for)"
    )
    parser.add_argument("--refuse", action="store_true", help="refuse it instead")
    parser.set_defaults(call=_approve)


def _approve(options: argparse.Namespace) -> None:
    from fedvision.deployment.client.approvals import Approvals, Status
    from fedvision.deployment.client.config import ClientMachineConfig

    config = ClientMachineConfig.load(options.client)
    approvals = Approvals(Path(config.state))
    if options.requested is None:
        if options.refuse:
            raise ConfigError("--refuse: name the experiment")
        asked = [f"{one.status:<9} {one.text}  {approvals.path(one)}" for one in approvals.all()]
        show("\n".join(asked or [f"no server has asked {config.name} for an experiment"]))
        return
    request = approvals.find(options.requested)
    status: Status = "refused" if options.refuse else "approved"
    approvals.decide(request, status)
    show(f"{config.name}: {request.text} is {status}")
    if not config.policy.ask:
        show("policy.ask is not set in the client's file, so nobody waits for this")
