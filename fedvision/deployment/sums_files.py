"""Files by which a client's sums come to a server that no run connects them with any more.

The server writes a request, the client computes its sums with the run's constants and writes an answer;
files are carried as the owner likes. Both are safetensors: tensors, and one JSON text in the header. An
answer names the digest of the request, so it serves for no other run, client or constants. Nothing is
unpickled.

==========  ==============================================================================================
request     the run's manifest, whose sums are wanted, ``model.NAME`` what the backbone has of the run, and
            ``query.NAME`` the constants
answer      whose sums they are, ``count`` [C], ``sum`` [C, D] and ``product`` [D (D + 1) / 2], int64
==========  ==============================================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvision.deployment.run_manifest import RunManifest
from fedvision.errors import MALFORMED, ConfigError

if TYPE_CHECKING:
    from fedvision.types import State

_KEY = "fedvision"
_REQUEST, _ANSWER = "request for sums", "sums of a client"
_MODEL, _QUERY = "model.", "query."
_SUMS = frozenset({"count", "sum", "product"})


@dataclass(frozen=True, kw_only=True)
class SumsRequest:
    """What a client needs to compute its sums once more."""

    manifest: RunManifest
    """The run."""
    client: int
    """The client's number in it."""
    name: str
    """The client's name."""
    round: int
    """The run's last round."""
    model: State
    """Tensors of the backbone that the run shares."""
    query: State
    """The constants with which sums are made."""

    def to_bytes(self) -> bytes:
        """Return the file, the same for the same request."""
        facts = {"client": self.client, "name": self.name, "round": self.round}
        tensors = {f"{_MODEL}{name}": tensor for name, tensor in self.model.items()}
        tensors |= {f"{_QUERY}{name}": tensor for name, tensor in self.query.items()}
        return _packed(_REQUEST, {**facts, "manifest": self.manifest.to_table()}, tensors)

    @property
    def sha256(self) -> str:
        """Return the file's SHA-256, hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> SumsRequest:
        """Read a file.

        Raises:
            ConfigError: It cannot be read, or is no request that this version understands.
        """
        facts, tensors = _unpacked(path, _REQUEST)
        try:
            return cls(
                manifest=RunManifest.from_table(facts["manifest"]),
                client=int(facts["client"]),
                name=str(facts["name"]),
                round=int(facts["round"]),
                model=_level(tensors, _MODEL),
                query=_level(tensors, _QUERY),
            )
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        except MALFORMED as error:
            raise ConfigError(f"{path}: it is incomplete; let the server write it again") from error


@dataclass(frozen=True, kw_only=True)
class ClientSums:
    """A client's answer to a request."""

    client: int
    """Its number in the run."""
    name: str
    """Its name."""
    request: str
    """SHA-256 of the request, hexadecimal."""
    sums: State
    """``count``, ``sum`` and ``product``, int64."""

    def to_bytes(self) -> bytes:
        """Return the file."""
        facts = {"client": self.client, "name": self.name, "request": self.request}
        return _packed(_ANSWER, facts, self.sums)

    @classmethod
    def read(cls, path: Path) -> ClientSums:
        """Read a file.

        Raises:
            ConfigError: It cannot be read, or holds no client's sums.
        """
        facts, tensors = _unpacked(path, _ANSWER)
        wrong = next((t.dtype for t in tensors.values() if str(t.dtype) != "torch.int64"), None)
        if tensors.keys() != _SUMS or wrong is not None:
            raise ConfigError(f"{path}: it does not hold a client's sums as whole numbers; write it again")
        try:
            return cls(
                client=int(facts["client"]),
                name=str(facts["name"]),
                request=str(facts["request"]),
                sums=tensors,
            )
        except MALFORMED as error:
            raise ConfigError(f"{path}: it does not say whose sums it holds; write it again") from error


def _packed(kind: str, facts: Mapping[str, Any], tensors: State) -> bytes:
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One text: the order of several is not the same each time.
    data: bytes = save(whole, {_KEY: json.dumps({"kind": kind, **facts}, sort_keys=True)})
    return data


def _unpacked(path: Path, kind: str) -> tuple[dict[str, Any], State]:
    """Return what a file says and its tensors.

    Raises:
        ConfigError: It cannot be read, or is of another kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        tensors: State = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"][_KEY])
        if facts["kind"] != kind:
            raise ConfigError(f"{path}: this is a {facts['kind']}, not a {kind}; name the other file")
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read: {error.strerror or error}") from error
    except (SafetensorError, *MALFORMED) as error:
        raise ConfigError(
            f"{path}: this is no file with a {kind}, or it is damaged; copy it again"
        ) from error
    return facts, tensors


def _level(tensors: State, prefix: str) -> State:
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}
