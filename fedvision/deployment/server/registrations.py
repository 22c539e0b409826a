"""The clients that may join, as the SuperLink has them."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import NamedTuple

from fedvision.deployment.server.keyring import fingerprint
from fedvision.deployment.transport.internals_message_objects import HEARTBEAT_SECONDS, LinkDown
from fedvision.deployment.transport.internals_run import RunLink


class Registration(NamedTuple):
    """A client whose key is in the folder of client keys."""

    node: int
    """Flower's number of it."""
    key: str
    """Fingerprint of its public key."""
    seen: float | None
    """Seconds since it was last seen; None where it never was."""


def registered(link: RunLink) -> dict[str, Registration]:
    """Return every client that may join; nothing where the SuperLink does not answer."""
    found: dict[str, Registration] = {}
    with suppress(LinkDown):
        for node in link.nodes():
            if node.status == "unregistered":
                continue
            interval = node.heartbeat_interval or HEARTBEAT_SECONDS
            beat = node.online_until - 2 * interval if node.online_until else None
            last = node.online_until if node.status == "offline" else beat
            seen = None if beat is None else max(0.0, time.time() - (last or 0.0))
            found[node.name] = Registration(int(node.node_id), fingerprint(node.public_key), seen)
    return found
