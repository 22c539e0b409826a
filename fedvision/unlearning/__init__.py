"""Take clients out of a model in closed form, or into it: their sums are subtracted or added.

A run with ``strategy.use = "closed-form"`` keeps the exact sums over its clients in its checkpoint. A
client's own sums are not kept: they are computed again from its images with the run's constants, and
subtracted. What is left has the bits of the sums over the other clients, so the model is the one that these
would have made with the same constants. A client that was not selected, did not answer in time or was taken
out before is taken in alike.

Clients of a simulation are computed here. One with a machine of its own gets a request in a file
(``request_sums``), and its sums come back in another (``deployment.sums_files``).

The constants stay as they are: mean and deviation of the features, the weights of the classes and the
regularization or shrinkage, which all clients determined together. The old run folder stays, too: who wants
the clients forgotten deletes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedvision.api import RunResult
from fedvision.errors import ConfigError
from fedvision.unlearning.changes import Change, Given, changed
from fedvision.unlearning.files import read_sums, write_request
from fedvision.unlearning.old_run import OldRun


def unlearn(
    run: str | Path,
    clients: Sequence[int] = (),
    *,
    sums: Sequence[str | Path] = (),
    out: str | Path | None = None,
    threads: int = 1,
) -> RunResult:
    """Write a new run folder whose model rests on the other clients alone.

    Args:
        run: Folder of a finished run with ``strategy.use = "closed-form"``; it stays as it is.
        clients: Numbers of the clients of a simulation to take out.
        sums: Files with the sums of the clients of a run across machines to take out.
        out: The new folder; ``RUN-without-K`` by default.
        threads: Threads of the arithmetic, >= 1.

    Raises:
        ConfigError: The run is of another kind, a client is not in its model, or none would be left; a file
            holds no sums, or those of another run.
        RunFolderError: There is no such run, its data are others now, or the new folder is not empty.
        RunError: The sums do not fit the run's.
    """
    old, given = _opened(run, clients, sums)
    gone = sorted(given)
    if strange := [client for client in gone if client not in old.inside]:
        raise ConfigError(
            f"{old.path}: client {strange[0]} is not in its model; name one of {len(old.inside)} that are"
        )
    if len(gone) == len(old.inside):
        raise ConfigError(f"{old.path}: no client would be left; leave at least one")
    return changed(old, Change(without=gone, sums=given), out, threads)


def include(
    run: str | Path,
    clients: Sequence[int] = (),
    *,
    sums: Sequence[str | Path] = (),
    out: str | Path | None = None,
    threads: int = 1,
) -> RunResult:
    """Write a new run folder whose model rests on further clients of the experiment, too.

    Args:
        run: As ``unlearn`` takes it.
        clients: Numbers of the clients of a simulation to take in, which are not in the model.
        sums: Files with the sums of the clients of a run across machines to take in.
        out: The new folder; ``RUN-with-K`` by default.
        threads: Threads of the arithmetic, >= 1.

    Raises:
        ConfigError: The run is of another kind, or a client is in its model or not in its experiment; a file
            holds no sums, or those of another run.
        RunFolderError: There is no such run, its data are others now, or the new folder is not empty.
        RunError: The sums do not fit the run's.
    """
    old, given = _opened(run, clients, sums)
    if known := sorted(set(given).intersection(old.inside)):
        raise ConfigError(f"{old.path}: client {known[0]} is in its model already; name one that is not")
    return changed(old, Change(including=sorted(given), sums=given), out, threads)


def request_sums(run: str | Path, client: str, *, out: str | Path | None = None) -> Path:
    """Write the file with which a client of a run across machines computes its sums again.

    Args:
        run: Folder of a finished run across machines with ``strategy.use = "closed-form"``.
        client: The client's name, or its number in the run.
        out: The new file; ``RUN-request-NAME.safetensors`` by default.

    Returns:
        The file.

    Raises:
        ConfigError: The run is of another kind, there is no such client, or the file cannot be written.
        RunFolderError: There is no such run, or its data are others now.
    """
    old = OldRun.read(run)
    if not old.deployed:
        raise ConfigError(
            f"{old.path}: its clients are simulated here, and nobody needs to be asked; name them to "
            "`fedvision unlearn` with --client"
        )
    return write_request(old, client, None if out is None else Path(out))


def _opened(run: str | Path, clients: Sequence[int], sums: Sequence[str | Path]) -> tuple[OldRun, Given]:
    """Return a run, and the clients that are named with their sums, where these come from files.

    Raises:
        ConfigError: They are named in the way of the other kind of run.
    """
    old = OldRun.read(run)
    if clients and old.deployed:
        raise ConfigError(
            f"{old.path}: its clients are on machines of their own; let `fedvision request-sums` and, there, "
            "`fedvision sums` write a client's sums to a file, and name that with --sums"
        )
    if sums and not old.deployed:
        raise ConfigError(f"{old.path}: its clients are simulated here; name them with --client")
    if not clients and not sums:
        raise ConfigError(f"{old.path}: no client is named")
    if sums:
        return old, read_sums(old, [Path(file) for file in sums])
    return old, dict.fromkeys(clients)
