"""What clients keep: the newest before a round, the same again for a repeated round, nothing piled up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fedvision.training.client_state import ClientStateStore


def groups(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"algorithm": {"layer/w": torch.tensor([value])}, "personal": {}}


def value(memory: ClientStateStore, client: int, round: int) -> float | None:
    loaded = memory.load(client, round)
    return float(loaded["algorithm"]["layer/w"]) if loaded else None


def test_a_round_reads_what_was_kept_before_it(tmp_path: Path) -> None:
    memory = ClientStateStore(tmp_path)
    assert memory.load(3, 1) == {}
    memory.save(3, 2, groups(2.0))
    assert value(memory, 3, 2) is None
    assert value(memory, 3, 3) == value(memory, 3, 9) == 2.0
    assert value(memory, 4, 9) is None


def test_a_round_that_is_run_again_starts_from_the_same_memory(tmp_path: Path) -> None:
    memory = ClientStateStore(tmp_path)
    for round in (1, 2):
        memory.save(0, round, groups(float(round)))
    assert value(memory, 0, 2) == 1.0
    memory.save(0, 2, groups(20.0))
    assert value(memory, 0, 3) == 20.0


def test_nothing_is_written_where_nothing_is_kept(tmp_path: Path) -> None:
    ClientStateStore(tmp_path / "none").save(0, 1, {"algorithm": {}})
    assert not (tmp_path / "none").exists()


def test_old_files_go_but_not_those_a_killed_run_falls_back_to(tmp_path: Path) -> None:
    memory = ClientStateStore(tmp_path, checkpoint_every=5)
    for round in range(1, 9):
        memory.save(0, round, groups(float(round)))
    # The last checkpoint may be round 5: rounds 6, 7, 8 may be run again, from what was kept at 5.
    assert [value(memory, 0, round) for round in (6, 7, 8, 9)] == [5.0, 6.0, 7.0, 8.0]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
    memory.save(0, 6, groups(60.0))
    assert value(memory, 0, 9) == 60.0


def test_no_folder_grows_with_the_clients(tmp_path: Path) -> None:
    memory = ClientStateStore(tmp_path)
    clients = [*range(40), 999, 1000, 1001, 16_000_000]
    for client in clients:
        memory.save(client, 1, groups(float(client)))
    assert [value(memory, client, 2) for client in clients] == [float(client) for client in clients]
    assert len(list(tmp_path.iterdir())) == 3
    assert all(len(list(folder.iterdir())) <= 1000 for folder in tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc lists what is mapped")
def test_a_state_is_mapped_and_not_read_until_it_is_used(tmp_path: Path) -> None:
    memory = ClientStateStore(tmp_path)
    memory.save(7, 1, {"algorithm": {"w": torch.ones(1 << 20)}})
    loaded = memory.load(7, 2)
    assert "000000007/round-0000001" in Path("/proc/self/maps").read_text()
    # What is mapped outlives its file, and what training does to it does not reach the file.
    loaded["algorithm"]["w"].mul_(2)
    assert float(memory.load(7, 2)["algorithm"]["w"].sum()) == 1 << 20
    memory.save(7, 2, {"algorithm": {"w": torch.zeros(1)}})
    memory.save(7, 3, {"algorithm": {"w": torch.zeros(1)}})
    assert float(loaded["algorithm"]["w"].sum()) == 2 << 20


def test_a_file_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    memory = ClientStateStore(tmp_path)
    memory.save(0, 1, groups(1.0))
    (file,) = tmp_path.rglob("*.safetensors")
    file.with_name("round-0000002.tmp").write_bytes(b"half")
    assert value(memory, 0, 9) == 1.0


def test_an_algorithm_starts_from_what_the_server_knows_of(tmp_path: Path) -> None:
    """Rounds 2 and 3 are trained and lost: round 4 starts from round 1's, though newer files are there."""
    memory = ClientStateStore(tmp_path)
    both = {"personal": {"w": torch.tensor([7.0])}, "residual": {"0.w": torch.tensor([9.0])}}
    memory.save(0, 1, groups(1.0) | {"residual": {"0.w": torch.tensor([8.0])}})
    memory.save(0, 2, groups(2.0) | both)
    memory.save(0, 3, groups(3.0) | both, silent_since=2)
    assert value(memory, 0, 4) == 3.0
    again = memory.load(0, 4, silent_since=2)
    assert float(again["algorithm"]["layer/w"]) == 1.0
    assert float(again["personal"]["w"]) == 7.0
    assert float(again["residual"]["0.w"]) == 8.0
    memory.save(0, 4, groups(4.0), silent_since=2)
    assert memory.load(0, 5, silent_since=1).get("algorithm") is None
    assert value(memory, 0, 5) == 4.0
    # Once round 4 was used, what was before it is needed no more.
    memory.save(0, 5, groups(5.0))
    memory.save(0, 6, groups(6.0))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_a_run_that_falls_back_restores_its_replies(tmp_path: Path) -> None:
    """Round 5 is lost and its checkpoint says so; rounds 6 and 7 are used, then the run falls back to 5."""
    memory = ClientStateStore(tmp_path, checkpoint_every=5)
    memory.save(0, 3, groups(3.0))
    memory.save(0, 5, groups(5.0))
    memory.save(0, 6, groups(6.0), silent_since=5)
    memory.save(0, 7, groups(7.0))
    assert float(memory.load(0, 6, silent_since=5)["algorithm"]["layer/w"]) == 3.0
