"""A client's start kit: one archive with its keys, its own file, a systemd unit and a page of commands.

The archive holds what belongs to one client and nothing of another: neither the authority's key nor anyone
else's. Its bytes follow from its content alone: files are sorted, without times and owners, and only their
owner can read them (mode 0600).
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from fedvision import __version__
from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError
from fedvision.files import replace_file

KITS = "kits"
"""The folder of the archives, beside ``clients``."""
PORT = 8443
"""The port of a server that was given none."""
EXPERIMENT = "experiment.toml"
"""A kit's copy of what the machine shall train."""
_IMAGE = (224, 3)
"""Side and channels of images where no experiment says them."""
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^][:/@\s]+)(?::(\d{1,5}))?")
_FILES = ("ca.crt", "client.crt", "client.key", "client.pub")
_TLS = ("tls.crt", "tls.key")

_CLIENT = """\
# This machine's own file: it never leaves it, and no server can change it.
name = {name}
device = "auto"                    # or "cpu", "cuda:0"

[superlink]
address = {address}
key = "keys/client.key"            # relative to this file
root_certificate = "keys/ca.crt"
{tls}
[data]                             # the images, in the size that the experiment has
use = "image-folder"               # one sub-folder a class; or "manifest" (a CSV file), "npz"
path = "images"
size = {size}
channels = {channels}

[share]
counts = "none"                    # class counts; or "plain", "noisy", "masked"
certificate = "keys/client.crt"    # for "masked"

# [policy]                         # when this machine takes part, and in what; without it always
# experiments = ["long-tail*"]
# hours = "20:00-06:00"
"""
_TLS_LINES = 'client_certificate = "keys/tls.crt"\nclient_key = "keys/tls.key"\n'

UNIT = """\
# /etc/systemd/system/fedvision-client.service; this folder is /var/lib/fedvision
[Unit]
Description=fedvision client {name}
Wants=network-online.target
After=network-online.target

[Service]
User=fedvision
StateDirectory=fedvision
WorkingDirectory=/var/lib/fedvision
Environment=FEDVISION_CACHE=/var/lib/fedvision/cache
ExecStart=/opt/fedvision/bin/fedvision client /var/lib/fedvision/client.toml
Restart=on-failure
RestartSec=5
# 2 is a wrong file or option: trying again mends nothing. 130 is a run that was told to stop.
RestartPreventExitStatus=2
SuccessExitStatus=130
TimeoutStopSec=30
UMask=0077
NoNewPrivileges=true
ProtectSystem=strict
ReadOnlyPaths=/var/lib/fedvision/keys
PrivateTmp=true

[Install]
WantedBy=multi-user.target
"""
"""The service of a client whose folder is ``/var/lib/fedvision``."""

_README = """\
# Client {name} of {address}

`keys/client.key` is this machine's alone: whoever has it can take part as {name}. Before the first command:

* install fedvision {version}, the server's version;
* put the images into `images`, one folder a class, or correct `[data]` in `client.toml`.

Check this machine, in this folder:

    fedvision doctor client.toml{experiment}

Join. The process stays, serves one run after the other, and ends on Ctrl-C:

    fedvision client client.toml

As a service, once there is a user `fedvision`, who owns this folder as `/var/lib/fedvision`, and fedvision is
installed in `/opt/fedvision`:

    sudo cp fedvision-client.service /etc/systemd/system/ && sudo systemctl enable --now fedvision-client
"""


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What all kits of a federation have in common."""

    folder: Path
    """As ``certificates.make`` made it."""
    address: str
    """``HOST:PORT`` under which clients reach the server."""
    experiment: Path | None = None
    """A file that the owner can check the machine with; its image size goes into the client's file."""

    def write(self, client: str) -> Path:
        """Write a client's archive and return its path.

        Raises:
            ConfigError: The client's keys or the experiment cannot be read, or the archive cannot be written.
        """
        path = self.folder / KITS / f"{client}.tar.gz"
        content = archive(client, self._content(client))
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.unlink(missing_ok=True)  # one that is there may be readable by others
            replace_file(path, content, mode=0o600)
        except OSError as error:
            raise ConfigError(f"{path}: it cannot be written: {error.strerror}") from error
        return path

    def _content(self, client: str) -> dict[str, bytes]:
        own = self.folder / "clients" / client
        try:
            keys = {f"keys/{name}": (own / name).read_bytes() for name in _FILES}
            if (own / _TLS[0]).exists():
                keys |= {f"keys/{name}": (own / name).read_bytes() for name in _TLS}
            experiment = self.experiment.read_bytes() if self.experiment else b""
        except OSError as error:
            raise ConfigError(f"{error.filename}: it cannot be read: {error.strerror}") from error
        size, channels = self._image()
        text = _CLIENT.format(
            name=json.dumps(client),
            address=json.dumps(self.address),
            tls=_TLS_LINES if "keys/tls.key" in keys else "",
            size=size,
            channels=channels,
        )
        command = f" --experiment {EXPERIMENT}" if experiment else ""
        page = _README.format(name=client, address=self.address, version=__version__, experiment=command)
        return {
            **keys,
            **({EXPERIMENT: experiment} if experiment else {}),
            "client.toml": text.encode(),
            "fedvision-client.service": UNIT.format(name=client).encode(),
            "README.md": page.encode(),
        }

    def _image(self) -> tuple[int, int]:
        """Return side and channels of the experiment's images, or usual ones where no file says them."""
        if self.experiment is None:
            return _IMAGE
        data = ExperimentConfig.load(self.experiment).data.args
        found = (data.get("size", data.get("height")), data.get("channels", _IMAGE[1]))
        return found if all(type(number) is int for number in found) else _IMAGE


def archive(name: str, content: Mapping[str, bytes]) -> bytes:
    """Return a .tar.gz with one folder of files that only their owner can read; equal content, equal bytes.

    Args:
        name: The folder's.
        content: Relative path -> bytes.
    """
    folders = {str(parent) for path in content for parent in Path(path).parents}
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as file,
    ):
        for folder in sorted(folders):
            entry = tarfile.TarInfo(name if folder == "." else f"{name}/{folder}")
            entry.type, entry.mode = tarfile.DIRTYPE, 0o700
            file.addfile(entry)
        for path, data in sorted(content.items()):
            entry = tarfile.TarInfo(f"{name}/{path}")
            entry.size, entry.mode = len(data), 0o600
            file.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def server_address(folder: Path, hosts: list[str], address: str | None) -> str:
    """Return ``HOST:PORT`` of the server: as it is given, or the first name of its certificate.

    Args:
        folder: As ``certificates.make`` made it.
        hosts: Of a certificate that was just made; its first name goes before.
        address: What a person gave: a name, or a name with a port.

    Raises:
        ConfigError: There is no name, or it is no address.
    """
    if address is None:
        host = hosts[0] if hosts else _first_name(folder / "server/server.crt")
        return f"[{host}]:{PORT}" if ":" in host else f"{host}:{PORT}"
    found = _ADDRESS.fullmatch(address)
    port = int(found[2] or PORT) if found else 0
    if found is None or not 0 < port < 65536:
        raise ConfigError(
            f"--address {address!r} is no HOST:PORT such as fl.example.org:8443; an IPv6 address stands in "
            "brackets"
        )
    return f"{found[1]}:{port}"


def _first_name(certificate: Path) -> str:
    """Return the first name that a server's certificate was made for."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return str(next(iter(names)).value)
    except (OSError, ValueError, x509.ExtensionNotFound, StopIteration) as error:
        raise ConfigError(
            f"{certificate}: there is no server's certificate that says where the server is; name it with "
            "--address HOST:PORT"
        ) from error
