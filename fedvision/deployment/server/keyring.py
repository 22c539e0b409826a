"""Who may join: a folder with one public key a client, read again while the server runs.

The folder is the whole list. A file that is put there lets its client in within seconds; one that is removed
shuts it out. Flower keeps removed keys in its database and takes none of them again: a client that shall come
back needs a new key.
"""

from __future__ import annotations

import logging
import os
from base64 import b64encode
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
    ssh_key_fingerprint,
)

from fedvision.deployment.transport import internals_superlink
from fedvision.errors import ConfigError

if TYPE_CHECKING:
    from fedvision.deployment.transport.internals_superlink import LinkState

log = logging.getLogger("fedvision.deployment")


def read_public_key(path: Path) -> bytes:
    """Read an OpenSSH public key of a NIST curve, as ``ssh-keygen -t ecdsa`` writes it, and return it as PEM.

    Raises:
        ConfigError: The file cannot be read or holds another kind of key.
    """
    try:
        key = load_ssh_public_key(path.read_bytes().strip())
    except OSError as error:
        raise ConfigError(f"{path}: this key cannot be read: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(
            f"{path}: this is no public ECDSA key (ecdsa-sha2-nistp384 ...); put the client's .pub file here"
        )
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: bytes) -> str:
    """Return the fingerprint of a public key (PEM) as ``ssh-keygen -lf NAME.pub`` prints it."""
    try:
        digest = ssh_key_fingerprint(load_pem_public_key(key), SHA256())  # type: ignore[arg-type]
    except (ValueError, UnsupportedAlgorithm):
        return "no key"
    return "SHA256:" + b64encode(digest).decode().rstrip("=")


class Keyring:
    """The keys of a folder, and the same keys in Flower's state.

    Args:
        folder: Holds ``NAME.pub`` for each client.
        state: Flower's state.

    Raises:
        ConfigError: The folder is missing, a file holds no key, two hold the same, or one was removed before.
    """

    def __init__(self, folder: Path, state: LinkState) -> None:
        self._folder, self._state = folder, state
        self._seen: dict[Path, tuple[int, int, int]] = {}
        self.known: Mapping[bytes, str] = {}
        """Public key (PEM) -> the name of its client."""
        self.removed: Mapping[bytes, str] = {}
        """The same of clients that were shut out, for good."""
        for problem in self.sync():
            raise ConfigError(problem)

    def sync(self) -> list[str]:
        """Bring Flower's state up to the folder's; return what is wrong with files that are passed over.

        A file that holds no key at the moment lets nobody in and shuts nobody out.

        Raises:
            ConfigError: The folder cannot be read.
        """
        try:
            names = sorted(name for name in os.listdir(self._folder) if name.endswith(".pub"))
            stats = {self._folder / name: (self._folder / name).stat() for name in names}
            seen = {path: (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size) for path, stat in stats.items()}
        except OSError as error:
            raise ConfigError(
                f"{self._folder}: the folder of client keys cannot be read: {error.strerror}; name a folder "
                "with one NAME.pub a client"
            ) from error
        if seen == self._seen:
            return []
        wanted, unread, problems = self._read(seen)
        here = internals_superlink.keys(self._state)
        wanted |= {key: unread[node.name] for key, node in here.items() if node.name in unread}
        problems += list(self._admit(wanted, here))
        for key in here.keys() - wanted.keys():
            internals_superlink.remove_key(self._state, here[key].node_id)
            name = self.known.get(key) or here[key].name
            log.warning("client %s is shut out: its key is no longer in %s", name, self._folder)
        self.known, self._seen = {key: path.stem for key, path in wanted.items()}, seen
        removed = internals_superlink.keys(self._state, removed=True)
        self.removed = {key: node.name for key, node in removed.items()}
        return problems

    def _read(self, files: Iterable[Path]) -> tuple[dict[bytes, Path], dict[str, Path], list[str]]:
        """Return the files by key, those that hold none by client, and what is wrong with the latter."""
        keys: dict[bytes, Path] = {}
        unread: dict[str, Path] = {}
        problems = []
        for path in files:
            try:
                first = keys.setdefault(read_public_key(path), path)
            except ConfigError as error:
                # Its client stays: a file that is being copied is not removed, and no key comes back.
                unread[path.stem] = path
                problems.append(str(error))
            else:
                if first is not path:
                    problems.append(f"{path}: this is the key of {first.name} too; every client has its own")
        return keys, unread, problems

    def _admit(self, wanted: dict[bytes, Path], here: Container[bytes]) -> Iterator[str]:
        for key, path in list(wanted.items()):
            if key in here:
                continue
            try:
                internals_superlink.register_key(self._state, key, path.stem)
            except ValueError:
                del wanted[key]
                yield f"{path}: this key was removed once and cannot come back; make a new one for the client"
            else:
                log.info("client %s may join", path.stem)
