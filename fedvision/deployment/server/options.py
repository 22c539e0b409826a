"""Options of the SuperLink: where it listens, whom it lets in, what it keeps."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedvision.deployment.server.limits import Limits
from fedvision.deployment.transport.proxies import is_loopback
from fedvision.errors import ConfigError
from fedvision.files import replace_file


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
    state: Path
    """Folder of its database, objects, log and secret."""
    insecure: bool = False
    """Speak plain text on both sides; clients must sign their calls all the same."""
    client_certificates: bool = False
    """Require a client certificate of the same authority (mutual TLS)."""
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

    def to_text(self) -> str:
        """Return this as JSON, for the SuperLink's process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_text(cls, text: str) -> SuperlinkOptions:
        """Read what ``to_text`` wrote."""
        table = json.loads(text)
        paths = {name: Path(table[name]) for name in ("tls", "clients", "state") if table[name]}
        return cls(**{**table, **paths, "limits": Limits(**table["limits"])})

    @property
    def roots(self) -> Path | None:
        """The authority that signed the server's certificate."""
        return self.tls / "ca.crt" if self.tls else None

    @property
    def database(self) -> Path:
        """The file of runs, nodes and messages."""
        return self.state / "superlink.db"

    @property
    def objects(self) -> Path:
        """The folder in which it keeps the tensors of messages."""
        return self.state / "superlink.objects"

    @property
    def log(self) -> Path:
        """Its log file; beside it lie those that are full."""
        return self.state / "superlink.log"

    def secret(self) -> bytes:
        """Return what a process must know to be a run's ServerApp; made at the first call.

        Raises:
            ConfigError: The folder cannot be written.
        """
        path = self.state / "secret"
        try:
            self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.state.chmod(0o700)  # who claimed the folder made it for everybody's eyes
            if not path.exists() or not path.stat().st_size:
                replace_file(path, secrets.token_hex(32), mode=0o600)
            return path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"--state {self.state}: it cannot be written: {error.strerror}; name another folder"
            ) from error

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
