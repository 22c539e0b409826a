"""A client's connection, as its own file describes it."""

from __future__ import annotations

import logging
from pathlib import Path

from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.connectivity import read_key, tls_context
from fedvision.deployment.transport.internals_fleet import FleetLink
from fedvision.deployment.transport.self_check import client_shortcuts

log = logging.getLogger("fedvision.deployment")


def connect(config: ClientMachineConfig) -> FleetLink:
    """Return the connection to the server, which begins with the first call.

    Raises:
        ConfigError: A key or certificate cannot be used; the sentence names its file.
    """
    link = config.superlink
    if not link.insecure:
        tls_context(link)  # says which file is wrong
    mutual = (link.client_certificate, link.client_key) if link.client_certificate else None
    if slower := client_shortcuts():
        log.warning("%s", slower)
    return FleetLink(
        link.address,
        read_key(link.key),
        roots=Path(link.root_certificate) if link.root_certificate else None,
        insecure=link.insecure,
        certificate=mutual,
        slower=bool(slower),
    )
