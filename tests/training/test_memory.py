"""What clients keep: the newest before a round, the same again for a repeated round, nothing piled up."""

from __future__ import annotations

from pathlib import Path

import torch

from fedvision.training.memory import ClientMemory


def groups(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"objective": {"layer/w": torch.tensor([value])}, "personal": {}}


def value(memory: ClientMemory, client: int, round: int) -> float | None:
    kept = memory.load(client, round)
    return float(kept["objective"]["layer/w"]) if kept else None


def test_a_round_reads_what_was_kept_before_it(tmp_path: Path) -> None:
    memory = ClientMemory(tmp_path)
    assert memory.load(3, 1) == {}
    memory.save(3, 2, groups(2.0))
    assert value(memory, 3, 2) is None
    assert value(memory, 3, 3) == value(memory, 3, 9) == 2.0
    assert value(memory, 4, 9) is None


def test_a_round_that_is_run_again_starts_from_the_same_memory(tmp_path: Path) -> None:
    memory = ClientMemory(tmp_path)
    for round in (1, 2):
        memory.save(0, round, groups(float(round)))
    assert value(memory, 0, 2) == 1.0
    memory.save(0, 2, groups(20.0))
    assert value(memory, 0, 3) == 20.0


def test_nothing_is_written_where_nothing_is_kept(tmp_path: Path) -> None:
    ClientMemory(tmp_path / "none").save(0, 1, {"objective": {}})
    assert not (tmp_path / "none").exists()


def test_old_files_go_but_not_those_a_killed_run_falls_back_to(tmp_path: Path) -> None:
    memory = ClientMemory(tmp_path, checkpoint_every=5)
    for round in range(1, 9):
        memory.save(0, round, groups(float(round)))
    # The last checkpoint may be round 5: rounds 6, 7, 8 may be run again, from what was kept at 5.
    assert [value(memory, 0, round) for round in (6, 7, 8, 9)] == [5.0, 6.0, 7.0, 8.0]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
    memory.save(0, 6, groups(60.0))
    assert value(memory, 0, 9) == 60.0
