"""Options of the server's process: where it listens, whom it lets in, what it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedvision.deployment.server.limits import Limits
from fedvision.deployment.transport.proxies import is_loopback
from fedvision.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SuperlinkOptions:
    """Where a SuperLink listens, whom it lets in, and what it keeps."""

    public: str = "0.0.0.0:8443"
    """``HOST:PORT`` that clients reach; port 0 takes a free one."""
    private: str = "127.0.0.1:8000"
    """``HOST:PORT`` of everything else; a loopback address."""
    tls: Path | None = None
    """Folder with ``ca.crt``, ``server.crt`` and ``server.key``; None only with ``insecure``."""
    clients: Path
    """Folder with ``NAME.pub`` of each client that may join."""
    database: Path | None = None
    """File of runs, nodes and messages; None keeps them in memory."""
    insecure: bool = False
    """Speak plain text on both sides; clients must sign their calls all the same."""
    client_certificates: bool = False
    """Require a client certificate of the same authority (mutual TLS)."""
    isolation: Literal["subprocess", "process"] = "subprocess"
    """Start the process that runs server apps, or wait for one that is started apart (it survives us)."""
    secret: Path | None = None
    """File with the secret that such a process must know; without it any user of the machine can be one."""
    limits: Limits = field(default_factory=Limits)
    """Limits of one peer on the public side."""

    def __post_init__(self) -> None:
        if self.insecure and (self.tls or self.client_certificates):
            raise ConfigError(
                "--insecure speaks plain text, but certificates are named; leave one of them out"
            )
        if not self.insecure and self.tls is None:
            raise ConfigError(
                "--tls: name the folder with ca.crt, server.crt and server.key, such as `fedvision "
                "certificates` makes; --insecure does without, for trials on one machine"
            )
        split(self.public)
        if not is_loopback(split(self.private)[0]):
            raise ConfigError(
                f"--private {self.private}: everyone who reaches this side can run code here; it must be a "
                "loopback address such as 127.0.0.1:8000"
            )

    def files(self) -> dict[str, Path] | None:
        """Return TLS files by name, each readable, or None for plain text.

        Raises:
            ConfigError: One cannot be read.
        """
        if self.tls is None:
            return None
        found = {"ca": "ca.crt", "certificate": "server.crt", "key": "server.key"}
        files = {name: self.tls / file for name, file in found.items()}
        for path in files.values():
            try:
                path.open("rb").close()
            except OSError as error:
                raise ConfigError(
                    f"{path}: it cannot be read: {error.strerror}; `fedvision certificates` makes it"
                ) from error
        return files


def split(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; an IPv6 address stands in brackets.

    Raises:
        ConfigError: It is no such text.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{address!r} is no HOST:PORT, such as 0.0.0.0:8443 or [::]:8443")
    return host.removeprefix("[").removesuffix("]"), int(port)
