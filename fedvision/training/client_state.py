"""What a client keeps between rounds (control variates, personal tensors): atomic files on its machine.

A file belongs to one (client, round). Training round r reads the newest file of a round before r, so a
message that is delivered twice, or a round that is run again after a crash, starts from the same memory and
ends in the same one: exactly one training per (round, client) counts.

What an algorithm keeps has its counterpart at the server, as SCAFFOLD's c_i is part of the server's c; so
has what was left out of an update. Once a reply was lost or refused, the server sends since which round it
used none of the client's, and both start from what was kept before that round: from what the server knows of.

Nothing of a client that does not work now is in this process: no tensor, no name, no list of clients. A file
is mapped into memory when its client works, so its pages come from the disk once somebody reads them. Each
client has a folder of its few files and a thousand clients share one above it, so loading and saving take the
same time whether ten clients or a million have something to keep.
"""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedvision.types import State

ALGORITHM, PERSONAL, RESIDUAL, MODEL = "algorithm", "personal", "residual", "personal-model"
"""Groups of what a client keeps: what its algorithm returned, its tensors that do not travel, what transforms
left out of its update, and, in the place of the first, what its personal model is made of."""
_SHARED = (ALGORITHM, RESIDUAL)
"""Groups that have their counterpart at the server, in the answers that it used."""
_SEPARATOR = "/"
_CLIENTS_A_FOLDER = 1000
_SINCE = "silent-since"
_PREFIX, _SUFFIX = "round-", ".safetensors"


class ClientStateStore:
    """The memory of all clients that one machine hosts.

    Args:
        folder: Where the files go; created when something is first kept.
        checkpoint_every: Rounds between the run's checkpoints, back to which a killed run may fall.
    """

    def __init__(self, folder: Path, checkpoint_every: int = 1) -> None:
        self._folder, self._checkpoint_every = folder, checkpoint_every

    def load(self, client: int, round: int, silent_since: int | None = None) -> dict[str, State]:
        """Return the groups of tensors that a client kept before a round; empty at first.

        Args:
            client: Whose.
            round: The round that begins.
            silent_since: First round since which the server used no answer of the client, if there is one:
                what has its counterpart there is of before that.
        """
        if not os.path.isdir(self._folder):  # in most runs nobody keeps anything
            return {}
        before = [saved for saved in self._rounds(client) if saved < round]
        if not before:
            return {}
        groups = self._read(client, before[-1])
        if silent_since is not None and before[-1] >= silent_since:
            earlier = [saved for saved in before if saved < silent_since]
            then = self._read(client, earlier[-1]) if earlier else {}
            groups = {k: state for k, state in groups.items() if k not in _SHARED}
            groups |= {k: state for k, state in then.items() if k in _SHARED}
        return groups

    def _read(self, client: int, round: int) -> dict[str, State]:
        groups: dict[str, State] = {}
        for key, tensor in load_file(self._file(client, round)).items():
            group, _, name = key.partition(_SEPARATOR)
            groups.setdefault(group, {})[name] = tensor
        return groups

    def save(
        self, client: int, round: int, groups: dict[str, State], silent_since: int | None = None
    ) -> None:
        """Keep groups of tensors for a client as of a round; nothing is written where there are none.

        Raises:
            OSError: The folder cannot be written; what was kept before is intact.
        """
        tensors = {
            f"{group}{_SEPARATOR}{name}": tensor.contiguous()
            for group, state in groups.items()
            for name, tensor in state.items()
        }
        if not tensors:
            return
        target = self._file(client, round)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".tmp")
        save_file(tensors, temporary, {_SINCE: str(silent_since)} if silent_since is not None else None)
        os.replace(temporary, target)
        self._forget(client, round)

    def _forget(self, client: int, round: int) -> None:
        """Drop what no run can come back to: all before the newest file at or before the last checkpoint.

        A run that falls back to the checkpoint may not have that file's reply: then it is sent again,
        as when a later file was written, and what was saved before the silent rounds is needed.
        """
        checkpoint = (round - 1) // self._checkpoint_every * self._checkpoint_every
        rounds = self._rounds(client)
        settled = [saved for saved in rounds if saved <= checkpoint]
        silences = [self._since(client, saved) for saved in rounds if checkpoint < saved <= round]
        needed = set(settled[-1:])
        for since in filter(None, silences):
            needed |= set([saved for saved in settled if saved < since][-1:])
        for past in (set(settled) - needed) | {saved for saved in rounds if saved > round}:
            self._file(client, past).unlink()

    def _since(self, client: int, round: int) -> int | None:
        """Return since when no answer had been used when a file was written, if there was such a round."""
        with safe_open(self._file(client, round), "pt") as file:
            since = (file.metadata() or {}).get(_SINCE)
        return None if since is None else int(since)

    def _rounds(self, client: int) -> list[int]:
        """Return the rounds of which a client has a file, rising."""
        try:
            names = os.listdir(self._of(client))
        except FileNotFoundError:
            return []
        return sorted(int(name[len(_PREFIX) : -len(_SUFFIX)]) for name in names if name.endswith(_SUFFIX))

    def _file(self, client: int, round: int) -> Path:
        return self._of(client) / f"{_PREFIX}{round:07d}{_SUFFIX}"

    def _of(self, client: int) -> Path:
        return self._folder / f"{client // _CLIENTS_A_FOLDER:06d}" / f"{client:09d}"
