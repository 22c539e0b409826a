"""The client machine's own file: frozen dataclasses <-> one TOML; every error names file and key.

It belongs to the owner of the machine and never leaves it. What it says of paths, devices and limits holds
whatever an experiment says: a server names no file on a client and no code that ``plugins`` does not allow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvision import registry
from fedvision.config import ExperimentConfig
from fedvision.data.paths import expand_home
from fedvision.deployment.client.disclosure import ShareConfig
from fedvision.deployment.client.participation_config import PolicyConfig
from fedvision.errors import ConfigError
from fedvision.tables import Settings, at_least, require
from fedvision.training.client_plugins import client_plugins
from fedvision.types import PluginSpec

_FILES = ("root_certificate", "key", "client_certificate", "client_key")
_PATHS = {
    "": ("cache", "state"),
    "superlink": _FILES,
    "data": ("path", "root", "cache"),
    "model": ("weights",),
    "share": ("certificate", "authority"),
}
"""Keys of each table that name a file or folder."""


@dataclass(frozen=True, kw_only=True)
class SuperlinkConfig:
    """The server, and how it and this machine know each other."""

    address: str
    """``"HOST:PORT"`` of the server; an IPv6 address stands in brackets: ``"[2001:db8::1]:8443"``."""
    key: str
    """File of this client's private EC key; its public half is registered with the server."""
    root_certificate: str = ""
    """File of the authority that signed the server's certificate; empty trusts the system's authorities."""
    insecure: bool = False
    """Speak plain text: everyone on the way can read and change models. For trials on one machine."""
    client_certificate: str = ""
    """File of a certificate for a proxy that asks for one (mutual TLS); needs ``client_key``."""
    client_key: str = ""
    """File of the private key of ``client_certificate``."""
    retry_for: float = 0.0
    """Seconds to go on trying while the server cannot be reached; 0 tries for ever."""

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        good = port.isdecimal() and 0 < int(port) < 65536 and bool(bare)
        good = good and (":" not in bare or host == f"[{bare}]") and not set("/@ ") & set(host)
        require(
            good, "superlink.address", f"must be HOST:PORT such as fl.example.org:8443, not {self.address!r}"
        )
        require(bool(self.key), "superlink.key", "must name a file")
        require(
            not (self.insecure and (self.root_certificate or self.client_certificate)),
            "superlink.insecure",
            "= true speaks plain text, but certificates are named; remove it or them",
        )
        require(
            bool(self.client_certificate) == bool(self.client_key),
            "superlink.client_certificate",
            "and superlink.client_key belong together; name both or neither",
        )
        at_least(0, self, "superlink.", "retry_for")

    @property
    def host(self) -> str:
        """The server's name or address, without brackets."""
        return self.address.rpartition(":")[0].removeprefix("[").removesuffix("]")

    @property
    def port(self) -> int:
        """The server's port."""
        return int(self.address.rpartition(":")[2])

    def check_files(self) -> None:
        """Check that every named file can be read.

        Raises:
            ConfigError: One cannot; the sentence names its key.
        """
        for name in _FILES:
            if path := getattr(self, name):
                try:
                    with open(path, "rb"):
                        pass
                except OSError as error:
                    raise ConfigError(
                        f"superlink.{name}: {path} cannot be read: {error.strerror}; correct the key or copy "
                        "the file there"
                    ) from error


@dataclass(frozen=True, kw_only=True)
class OwnDataConfig(PluginSpec):
    """This machine's images: a data source as in an experiment, but of the owner's choice."""

    label_map: Mapping[str, str] = field(default_factory=dict)
    """Own label -> the experiment's class name; others keep their name. ``""`` leaves the images of a class
    out; of several labels an image it drops the label, and its images stay."""


@dataclass(frozen=True, kw_only=True)
class OwnModelConfig:
    """What this machine has of the network itself."""

    weights: str = ""
    """A copy of the file that ``model.weights`` of the experiment names on the server, or of its run folder:
    needed where a part of the network is not sent. It must be the same to the byte."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """The same for parts of the network that begin with weights of their own, by their names:
    ``{ extractor = "lite0.pth" }`` for what ``model.extractor.weights`` of the experiment names."""

    def file(self, part: str) -> str:
        """Return the file of a part, of the whole network for an empty name; empty where none is named."""
        return self.parts.get(part, "") if part else self.weights


@dataclass(frozen=True, kw_only=True)
class ClientMachineConfig(Settings):
    """One machine that joins a federation with its own images."""

    WHAT = "a client's TOML file"

    name: str
    """The client's name in logs and reports: letters, digits, ``.``, ``_`` and ``-``."""
    superlink: SuperlinkConfig
    """The server."""
    data: OwnDataConfig
    """The images: ``image-folder``, ``manifest``, ``npz``, ... or ``"module:attr"``."""
    share: ShareConfig = field(default_factory=ShareConfig)
    """What may be reported about the images."""
    model: OwnModelConfig = field(default_factory=OwnModelConfig)
    """What is here of the network."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """When this machine takes part, and in what."""
    device: str = "auto"
    """``auto`` (cuda, then mps, then cpu) or a torch device; it holds, not the experiment's."""
    threads: int = 0
    """Threads for arithmetic; 0 is torch's choice."""
    memory_limit: float = 0.0
    """Gigabytes (10^9 bytes) of memory the process may take; 0 sets no limit."""
    time_limit: float = 0.0
    """Seconds that one task of the server may take; 0 sets no limit."""
    cache: str = ""
    """Folder of decoded images; empty is $FEDVISION_CACHE, else ~/.cache/fedvision/decoded."""
    state: str = "state"
    """Folder of what this client keeps between rounds and starts."""
    retention_days: float = 365.0
    """Days without use after which this client's state of a run is removed, once another run begins; this
    client then refuses to resume the first. 0 never removes it."""
    plugins: tuple[str, ...] = ()
    """What an experiment may name beside built-ins: ``"module"``, with all it holds, or ``"module:attr"``."""

    def __post_init__(self) -> None:
        require(
            self.share.counts != "masked" or bool(self.share.authority or self.superlink.root_certificate),
            "share.authority",
            "must name the authority's ca.crt where share.counts is masked and superlink.root_certificate is "
            "empty: it proves the other clients",
        )
        good = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name)
        require(good is not None, "name", f"must be of letters, digits, '.', '_' and '-', not {self.name!r}")
        at_least(0, self, "", "threads", "memory_limit", "time_limit", "retention_days")
        for plugin in self.plugins:
            parts = plugin.replace(":", ".", 1).split(".")
            require(
                all(part.isidentifier() for part in parts),
                "plugins",
                f"must be module or module:attr, not {plugin!r}",
            )

    @classmethod
    def placed(cls, table: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return a file's table with its relative paths made absolute, as seen from the file's folder."""
        table.setdefault("state", "state")
        for part, names in _PATHS.items():
            if isinstance(own := table.get(part) if part else table, dict):
                for name in names:
                    if isinstance(text := own.get(name), str) and text:
                        own[name] = str(folder / expand_home(text))
        if isinstance(own := table.get("model"), dict) and isinstance(files := own.get("parts"), dict):
            own["parts"] = {
                name: str(folder / expand_home(text)) if isinstance(text, str) and text else text
                for name, text in files.items()
            }
        return table

    @property
    def paths(self) -> list[str]:
        """Everything that the file names as a path."""
        tables = (vars(self), vars(self.superlink), self.data.args, vars(self.model), vars(self.share))
        own = dict(zip(_PATHS, tables, strict=True))
        named = [
            str(own[part][name]) for part, names in _PATHS.items() for name in names if name in own[part]
        ]
        return named + list(self.model.parts.values())

    def permit(self, kind: str, use: str) -> None:
        """Check that the server may name this plug-in.

        Built-ins may be named. Anything else runs code, or opens files, of the server's choice: it must stand
        in ``plugins``. A module's name there allows what the module itself defines, not what it imports:
        ``"mine:os.system"`` stays refused.

        Args:
            kind: A key of ``registry.BUILTINS``.
            use: What the experiment says.

        Raises:
            ConfigError: It may not.
        """
        if registry.is_builtin(kind, use):
            return
        target = (
            use if ":" in use else registry.names(kind).get(use.lower() if kind == "optimizer" else use, "")
        )
        if kind == "optimizer" and ":" not in use and target.startswith("torch.optim:"):
            return
        if target in self.plugins:
            return
        module, _, attribute = target.partition(":")
        if target and "." not in attribute and any(_within(module, plugin) for plugin in self.plugins):
            home = getattr(registry.resolve(kind, use).call, "__module__", "")
            if any(_within(home, plugin) for plugin in self.plugins):
                return
        raise ConfigError(
            f"[{kind}] use = {use!r}: this client allows built-ins"
            f"{''.join(f', {plugin}' for plugin in self.plugins)}; if you trust its code, add "
            f"{target or use!r} to plugins in the client's file"
        )

    def permit_statistic(self, use: str) -> None:
        """Check that the owner shares a statistic's sums.

        Raises:
            ConfigError: He does not, or the server may not name it.
        """
        self.permit("statistic", use)
        self.share.check_statistic(use)

    def permit_algorithm(self, name: str, models: Iterable[str]) -> None:
        """Check that the server may name a client half and the networks that it builds.

        Raises:
            ConfigError: It may not name one of them, or the half sends class counts or a generator that the
                owner does not share.
        """
        self.permit("client_algorithm", name)
        half = registry.resolve("client_algorithm", name).call
        self.share.check_client_half(name, half)
        for use in models:
            self.permit("model", use)

    def permit_experiment(self, experiment: ExperimentConfig) -> None:
        """Check that the server may name every plug-in that a client builds for an experiment.

        Raises:
            ConfigError: It may not name one of them.
        """
        for kind, use in client_plugins(experiment):
            self.permit(kind, use)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
