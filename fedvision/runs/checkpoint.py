"""Checkpoints from which a killed run goes on to the bit.

::

    checkpoint/latest.json            {"folder": "round-00007", "sha256": digest of its state.json}
    checkpoint/round-00007/           model.safetensors, strategy.safetensors, ...: one file for each group
                                      state.json: round, values, the files' digests, the logs' lengths

A checkpoint is a folder of its own, complete on the disk before ``latest.json`` names it in one rename; the
older one goes last. At every instant ``latest.json`` names a complete checkpoint. The lengths of the logs say
where they stood: loading cuts off rounds that were recorded after it, so that none is there twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvision.errors import RunFolderError
from fedvision.files import PART, read_json, recording, replace_file, sync_folder, write_new
from fedvision.runs.tensor_file import pieces

if TYPE_CHECKING:
    from fedvision.types import State


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a run stood at the end of a round."""

    round: int
    """Last finished round; 0 before the first."""
    tensors: Mapping[str, State] = field(default_factory=dict)
    """Named groups of tensors, such as ``{"model": ..., "strategy": ...}``, on the CPU."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Whatever JSON holds."""


def encode_state(state: State) -> bytes:
    """Return tensors as safetensors: the same bits for the same tensors, NaN payloads included.

    Tensors that share memory (tied weights) are written twice: the format knows no sharing.
    """
    return b"".join(pieces(state))


def decode_state(data: bytes) -> State:
    """Return the tensors that ``encode_state`` wrote, on the CPU."""
    from safetensors.torch import load

    return load(data)


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: Where they are kept; made when the first one is saved.
        logs: The files whose lengths belong to a checkpoint.
    """

    def __init__(self, folder: Path, logs: Sequence[Path]) -> None:
        self._folder, self._logs = folder, tuple(logs)

    def save(self, round: int, tensors: Mapping[str, State], values: Mapping[str, Any]) -> None:
        """Write a checkpoint after the round's line was recorded, and drop the older one.

        Args:
            round: Last finished round, >= 0.
            tensors: Named groups of tensors, on any device.
            values: What JSON holds; a float comes back to the bit, infinities and NaN too.

        Raises:
            RecordError: The disk is full or refuses; the last checkpoint is intact.
            ValueError: A group's name is no plain word.
        """
        for group in tensors:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", group):
                raise ValueError(
                    f"a group of tensors must be named by letters, digits, - and _, not {group!r}"
                )
        with recording(f"the checkpoint of round {round}", self._folder):
            self._folder.mkdir(exist_ok=True)
            target = self._free_folder(round)
            try:
                digest = self._fill(target, round, tensors, values)
                latest = {"folder": target.name, "sha256": digest}
                replace_file(self._folder / "latest.json", json.dumps(latest) + "\n")
            except OSError:
                if self._current() != target.name:
                    shutil.rmtree(target, ignore_errors=True)
                raise
            self._clean(keep=target.name)

    def load(self) -> Checkpoint | None:
        """Return the last checkpoint, or None where there is none, and cut the logs to where they stood.

        Only a run that goes on may call this: recorded rounds after the checkpoint are gone afterwards.

        Raises:
            RunFolderError: A file of the checkpoint or a log is missing or damaged.
            RecordError: A log cannot be cut.
        """
        latest = read_json(self._folder / "latest.json")
        if not latest:
            self._cut_logs({})
            return None
        source = self._folder / str(latest.get("folder"))
        state = json.loads(_verified(source / "state.json", str(latest.get("sha256"))))
        data = {name: _verified(source / name, digest) for name, digest in state["files"].items()}
        self._cut_logs(state["lengths"])
        tensors = {Path(name).stem: decode_state(content) for name, content in data.items()}
        return Checkpoint(round=state["round"], tensors=tensors, values=state["values"])

    def _current(self) -> str | None:
        return read_json(self._folder / "latest.json").get("folder")

    def _free_folder(self, round: int) -> Path:
        """Return a new empty folder that is not the one in use, even where a round is saved twice."""
        name = f"round-{round:05d}"
        target = self._folder / (name if name != self._current() else f"{name}-again")
        if target.exists():  # a save that was killed
            shutil.rmtree(target)
        target.mkdir()
        return target

    def _fill(self, target: Path, round: int, tensors: Mapping[str, State], values: Mapping[str, Any]) -> str:
        """Write every file of a checkpoint and return the digest of its state.json."""
        files = {}
        for group, state in tensors.items():
            digest = hashlib.sha256()
            write_new(target / f"{group}.safetensors", _through(digest, pieces(state)))
            files[f"{group}.safetensors"] = digest.hexdigest()
        lengths = {log.name: log.stat().st_size if log.exists() else 0 for log in self._logs}
        facts = {"round": round, "files": files, "lengths": lengths, "values": values}
        page = json.dumps(facts, indent=2).encode()
        write_new(target / "state.json", [page])
        sync_folder(target)
        sync_folder(self._folder)
        return hashlib.sha256(page).hexdigest()

    def _clean(self, keep: str) -> None:
        for old in self._folder.iterdir():
            if old.is_dir() and old.name != keep:
                shutil.rmtree(old, ignore_errors=True)
            elif old.name.endswith(PART):
                old.unlink(missing_ok=True)

    def _cut_logs(self, lengths: Mapping[str, int]) -> None:
        for log in self._logs:
            size, wanted = log.stat().st_size if log.exists() else 0, lengths.get(log.name, 0)
            if size < wanted:
                raise RunFolderError(
                    f"{log}: it has {size} bytes and the checkpoint was made with {wanted}; the file is "
                    "damaged, start again in another folder with --out"
                )
            if size > wanted:
                with recording("the cut to the last checkpoint", log):
                    os.truncate(log, wanted)


def _through(digest: hashlib._Hash, data: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Yield pieces as they are, each taken into a digest on its way."""
    for piece in data:
        digest.update(piece)
        yield piece


def _verified(path: Path, digest: str) -> bytes:
    """Return a file's bytes if they are those that were written.

    Raises:
        RunFolderError: The file is missing, unreadable or has other bytes.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunFolderError(
            f"{path}: a file of the checkpoint cannot be read ({error.strerror}); start again in "
            "another folder with --out"
        ) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise RunFolderError(
            f"{path}: the file is damaged, its digest is not the recorded one; start again in another folder "
            "with --out"
        )
    return data
