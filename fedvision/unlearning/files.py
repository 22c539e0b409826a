"""The files that take a request for a client's sums to its machine, and the sums back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedvision.algorithms.snapshot import restore
from fedvision.deployment.server.deployment import FILE, manifest_of
from fedvision.deployment.sums_files import ClientSums, SumsRequest
from fedvision.errors import ConfigError
from fedvision.files import read_json, write_new
from fedvision.flower.strategy import layers
from fedvision.formatting import listed
from fedvision.runs.member_register import Member
from fedvision.types import State
from fedvision.unlearning.old_run import OldRun, closed_form


def write_request(old: OldRun, client: str, out: Path | None) -> Path:
    """Write the request for a client's sums and return the file; see ``request_sums``."""
    member = _member(old, client)
    path = out or old.path.with_name(f"{old.path.name}-request-{member.name}.safetensors")
    try:
        write_new(path, [_request(old, member).to_bytes()])
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be written: {error.strerror or error}; name another") from error
    return path


def read_sums(old: OldRun, files: Sequence[Path]) -> dict[int, State]:
    """Return clients' sums by their numbers.

    Raises:
        ConfigError: A file holds no sums, those of another run or other constants, a client's a second time,
            or of other images than it reported to the run.
    """
    found: dict[int, State] = {}
    wanted: SumsRequest | None = None
    for file in files:
        answer = ClientSums.read(file)
        if answer.client in found:
            raise ConfigError(f"{file}: client {answer.name} is named twice; leave one file out")
        member = old.folder.members().members.get(answer.client)
        if member is None or member.name != answer.name:
            raise ConfigError(f"{file}: client {answer.name} is none of {old.path}; name a file for this run")
        # All but the client is the same in all requests of a run.
        wanted = _request(old, member) if wanted is None else wanted
        if replace(wanted, client=member.client, name=member.name).sha256 != answer.request:
            raise ConfigError(
                f"{file}: it answers the request of another run, or of other constants; let `fedvision "
                "request-sums` write one for this run"
            )
        counts = tuple(answer.sums["count"].tolist())
        if member.sharing == "plain" and member.counts not in (None, counts):
            raise ConfigError(
                f"{file}: client {answer.name} computed its sums over other images than it reported to the "
                "run; restore them there"
            )
        found[answer.client] = answer.sums
    return found


def _member(old: OldRun, client: str) -> Member:
    """Return the client of a name or number.

    Raises:
        ConfigError: There is none.
    """
    members = old.folder.members().members.values()
    for member in members:
        if client in (member.name, str(member.client)):
            return member
    names = listed([member.name for member in members])
    raise ConfigError(f"{old.path}: there is no client {client!r} in its register; name one of {names}")


def _request(old: OldRun, member: Member) -> SumsRequest:
    built = old.build()
    for name, layer in layers(built.strategy).items():
        restore(layer, old.checkpoint.tensors.get(name, {}), old.checkpoint.values[name])
    model = old.checkpoint.tensors["model"]
    return SumsRequest(
        manifest=manifest_of(built, str(read_json(old.path / FILE)["run"])),
        client=member.client,
        name=member.name,
        round=old.checkpoint.round,
        # The head has no part in the sums, and changes with every client that is taken out.
        model={name: tensor for name, tensor in model.items() if not name.startswith("head.")},
        query=closed_form(built).constants,
    )
