"""What a client keeps between rounds (control variates, personal tensors): atomic files on its machine.

A file belongs to one (client, round). Training round r reads the newest file of a round before r, so a
message that is delivered twice, or a round that is run again after a crash, starts from the same memory and
ends in the same one: exactly one training per (round, client) counts.
"""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import load_file, save_file

from fedvision.types import State

_SEPARATOR = "/"


class ClientMemory:
    """The memory of all clients that one machine hosts.

    Args:
        folder: Where the files go; created when something is first kept.
        checkpoint_every: Rounds between the run's checkpoints, back to which a killed run may fall.
    """

    def __init__(self, folder: Path, checkpoint_every: int = 1) -> None:
        self._folder, self._checkpoint_every = folder, checkpoint_every

    def load(self, client: int, round: int) -> dict[str, State]:
        """Return the groups of tensors that a client kept before a round; empty at first."""
        before = [file for file in self._files(client) if _round(file) < round]
        if not before:
            return {}
        groups: dict[str, State] = {}
        for key, tensor in load_file(before[-1]).items():
            group, _, name = key.partition(_SEPARATOR)
            groups.setdefault(group, {})[name] = tensor
        return groups

    def save(self, client: int, round: int, groups: dict[str, State]) -> None:
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
        target = self._folder / f"{client:07d}" / f"round-{round:07d}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".tmp")
        save_file(tensors, temporary)
        os.replace(temporary, target)
        self._forget(client, round)

    def _forget(self, client: int, round: int) -> None:
        """Drop what no run can come back to: all before the newest file at or before the last checkpoint."""
        checkpoint = (round - 1) // self._checkpoint_every * self._checkpoint_every
        files = self._files(client)
        settled = [file for file in files if _round(file) <= checkpoint]
        for file in settled[:-1] + [file for file in files if _round(file) > round]:
            file.unlink()

    def _files(self, client: int) -> list[Path]:
        return sorted((self._folder / f"{client:07d}").glob("round-*.safetensors"))


def _round(file: Path) -> int:
    return int(file.stem.removeprefix("round-"))
