"""What server and client agree on before anything is trained: one table of plain values, sent with the run.

The server names the experiment, its digest and the facts of its images; no code travels. A client of another
protocol, or one that read another text than was sent, says so in one sentence instead of training.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from fedvision import __version__
from fedvision.config import ExperimentConfig
from fedvision.errors import MALFORMED, ConfigError

PROTOCOL = 8
"""Raised whenever an older client or server could misunderstand the other."""


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """What a client receives of a run."""

    run: str
    """The run's key: the same when the server is started again to go on with it."""
    experiment: str
    """Canonical TOML."""
    classes: tuple[str, ...]
    """Class names [C] in the order of their labels."""
    image: tuple[int, int, int]
    """Height, width and channels of every image."""
    frozen: str = ""
    """Digest of the tensors that stay as they began; empty where there are none."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the files of weights of which clients need a copy, as not all of their tensors are sent, by
    the name of the part of the network; an empty name is the whole."""

    constant_bytes: int = 0
    """Bytes of the tensors that come with the run's first training message and stay the same."""

    @property
    def config(self) -> ExperimentConfig:
        """The experiment.

        Raises:
            ConfigError: It holds a key that this version does not know.
        """
        return ExperimentConfig.from_toml(self.experiment)

    def to_table(self) -> dict[str, str | int]:
        """Return the facts as Flower's run config has them: plain values only."""
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "run": self.run,
            "experiment": self.experiment,
            "digest": digest(self.experiment),
            "classes": json.dumps(self.classes),
            "image": json.dumps(self.image),
            "frozen": self.frozen,
            "weights": json.dumps(self.weights),
            "constant_bytes": self.constant_bytes,
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> RunManifest:
        """Read what a server sent of a run.

        Raises:
            ConfigError: It has another protocol, or the text is not the one that was sent.
        """
        # Another version may train otherwise: then nobody could say what the model rests on.
        if table.get("protocol") != PROTOCOL or table.get("version") != __version__:
            raise ConfigError(
                f"the server speaks protocol {table.get('protocol', 'unknown')} (fedvision "
                f"{table.get('version', 'unknown')}) and this client protocol {PROTOCOL} (fedvision "
                f"{__version__}); install the same fedvision on both"
            )
        try:
            facts = cls(
                run=str(table["run"]),
                experiment=str(table["experiment"]),
                classes=tuple(str(name) for name in json.loads(table["classes"])),
                image=tuple(int(size) for size in json.loads(table["image"])),  # type: ignore[arg-type]
                frozen=str(table["frozen"]),
                weights={str(name): str(sha256) for name, sha256 in json.loads(table["weights"]).items()},
                constant_bytes=int(table["constant_bytes"]),
            )
        except MALFORMED as error:
            raise ConfigError("the server's description of the run is incomplete") from error
        if digest(facts.experiment) != table.get("digest"):
            raise ConfigError("the experiment that arrived is not the one that the server sent")
        if not facts.run.isalnum() or len(facts.image) != 3:
            raise ConfigError("the server's description of the run is damaged")
        return facts


def digest(text: str) -> str:
    """Return the SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def build_fab() -> bytes:
    """Return the app that Flower wants with a run: a table of contents and no code.

    Nobody executes it: the server command is the run's ServerApp itself, and our clients take no bundle. What
    it names for Flower's own clients is installed with fedvision there.
    """
    empty = RunManifest(run="", experiment="", classes=(), image=(0, 0, 0)).to_table()
    page = {
        "project": {"name": "fedvision-run", "version": "1.0.0", "description": "A fedvision experiment"},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedvision",
                    "components": {
                        "serverapp": "fedvision.server.server_app:build",
                        "clientapp": "fedvision.deployment.client.supernode:app",
                    },
                    "config": {key: type(value)() for key, value in empty.items()},
                }
            }
        },
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        text = tomli_w.dumps(page)
        listed = f"pyproject.toml,{digest(text)},{8 * len(text.encode())}"
        for name, content in {"pyproject.toml": text, ".info/CONTENT": listed}.items():
            # A fixed date: the same bundle is the same bytes, and Flower stores it once.
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content)
    return packed.getvalue()
