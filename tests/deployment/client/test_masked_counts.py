"""What a client keeps of its masked sums: one answer for one group, and no to what would unmask it."""

from __future__ import annotations

import stat
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision.deployment.certificates import make
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.masked_counts import MaskedCounts
from fedvision.errors import ConfigError

NAMES = ["north", "south", "west", "east"]
COUNTS = {"north": [3, 0, 1], "south": [0, 5, 0], "west": [2, 2, 2], "east": [0, 0, 9]}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    make(folder, hosts=["localhost"], clients=NAMES)
    return folder


def config(pki: Path, name: str, **share: str) -> ClientMachineConfig:
    own = pki / "clients" / name
    return ClientMachineConfig.from_dict(
        {
            "name": name,
            "superlink": {
                "address": "localhost:1",
                "key": str(own / "client.key"),
                "root_certificate": str(own / "ca.crt"),
            },
            "data": {"use": "digits"},
            "share": {"counts": "masked", "certificate": str(own / "client.crt"), **share},
        }
    )


def group(pki: Path, folder: Path, names: list[str], run: str = "r1") -> dict[str, MaskedCounts]:
    return {name: MaskedCounts(folder / name / f"{run}.json", run, config(pki, name)) for name in names}


def tables(masks: dict[str, MaskedCounts]) -> list[dict[str, str]]:
    return [one.card().to_table() for one in masks.values()]


def sum_of(masked_rows: list[Any]) -> list[int]:
    with np.errstate(over="ignore"):
        return list(np.sum(np.array(masked_rows, np.int64), axis=0))


def test_four_clients_counts_add_up_and_none_of_them_shows(four: Path, tmp_path: Path) -> None:
    masks = group(four, tmp_path, NAMES)
    masked_rows = [one.mask_counts(tables(masks), COUNTS[name]) for name, one in masks.items()]
    assert sum_of(masked_rows) == [5, 7, 12]
    assert all(abs(number) > 2**40 for row in masked_rows for number in row)
    assert len({one.group for one in masks.values()}) == 1


def test_the_same_group_gets_the_same_counts_after_a_restart(four: Path, tmp_path: Path) -> None:
    masks = group(four, tmp_path, NAMES)
    cards = tables(masks)
    first = masks["north"].mask_counts(cards, COUNTS["north"])
    again = group(four, tmp_path, NAMES)["north"]
    # Two vectors under one mask would reveal their difference.
    assert again.mask_counts(cards[::-1], [9, 9, 9]) == first


def test_overlapping_groups_are_refused_whatever_the_order(four: Path, tmp_path: Path) -> None:
    """Four groups of three of four clients give four equations for four clients' counts."""
    for first in range(4):
        masks = group(four, tmp_path / str(first), NAMES)
        groups = [names for names in combinations(NAMES, 3)]
        complete = 0
        for names in [*groups[first:], *groups[:first], tuple(NAMES)]:
            cards_of, masked_rows = tables({name: masks[name] for name in names}), []
            for name in names:
                with suppress(ConfigError):
                    masked_rows.append(masks[name].mask_counts(cards_of, COUNTS[name]))
            complete += len(masked_rows) == len(names)
        assert complete == 1


def test_a_second_group_is_refused_with_both_named(four: Path, tmp_path: Path) -> None:
    masks = group(four, tmp_path, NAMES)
    cards = tables(masks)
    masks["north"].mask_counts(cards, COUNTS["north"])
    with pytest.raises(
        ConfigError, match=r"for a sum over east, north, south, west; a sum over north, south"
    ):
        group(four, tmp_path, NAMES)["north"].mask_counts(cards[:3], COUNTS["north"])


def test_agreement_without_obligation(four: Path, tmp_path: Path) -> None:
    masks = group(four, tmp_path, NAMES)
    cards = tables(masks)
    assert masks["north"].agree(cards) == []
    masks["north"].mask_counts(cards[:3], COUNTS["north"])
    assert masks["north"].agree(cards) == cards[:3]
    with pytest.raises(ConfigError, match="3 are needed"):
        masks["north"].agree(cards[:2])


def test_confusion_counts_are_masked_anew_for_every_question(four: Path, tmp_path: Path) -> None:
    masks = group(four, tmp_path, NAMES)
    for name, one in masks.items():
        one.mask_counts(tables(masks), COUNTS[name])
    confusion = {name: np.full((3, 3), place, np.int64) for place, name in enumerate(NAMES)}
    masked_rows = {name: one.hide(confusion[name], b"round 1") for name, one in masks.items()}
    assert np.array_equal(sum_of(list(masked_rows.values())), np.full((3, 3), 6))
    assert not np.array_equal(masks["north"].hide(confusion["north"], b"round 2"), masked_rows["north"])
    mixed = [*list(masked_rows.values())[:-1], masks["east"].hide(confusion["east"], b"round 2")]
    assert not np.array_equal(sum_of(mixed), np.full((3, 3), 6))


def test_masks_serve_for_one_answer_to_a_question(four: Path, tmp_path: Path) -> None:
    """The difference of two answers under the same masks shows bare what changed in between."""
    masks = group(four, tmp_path, NAMES)
    for name, one in masks.items():
        one.mask_counts(tables(masks), COUNTS[name])
    numbers = np.arange(4)
    first = masks["north"].hide(numbers, b"round 1")
    for north in (masks["north"], group(four, tmp_path, NAMES)["north"]):
        assert np.array_equal(north.hide(numbers, b"round 1"), first), "the same answer is the same"
        with pytest.raises(ConfigError, match="counted otherwise before"):
            north.hide(numbers + 1, b"round 1")
        north.hide(numbers + 1, b"round 2")


def test_groups_that_would_unmask_this_client_are_refused(four: Path, tmp_path: Path) -> None:
    masks = group(four, tmp_path, NAMES)
    cards, others = tables(masks), group(four, tmp_path / "other", NAMES)
    strange = {**masks, "north": others["north"]}
    doubled = [*cards[:3], {**others["west"].card().to_table()}]
    wrong = [
        (cards[:2], "a sum over 2 masked clients hides too little; 3 are needed"),
        (tables(strange), "that lacks this client"),
        (doubled, "named a client twice"),
        ([*cards[:3], cards[2]], "named a client twice"),
        ([*cards[:3], {}], "is damaged"),
    ]
    for cards_of, sentence in wrong:
        with pytest.raises(ConfigError, match=sentence):
            masks["north"].mask_counts(cards_of, COUNTS["north"])
    assert masks["north"].group == ""


def test_a_server_that_invents_clients_learns_nothing(four: Path, strangers: Path, tmp_path: Path) -> None:
    masks = group(four, tmp_path, ["north"])
    stranger = MaskedCounts(
        tmp_path / "stranger.json",
        "r1",
        config(strangers, "stranger", certificate=f"{strangers}/clients/stranger/client.crt"),
    )
    invented = [masks["north"].card().to_table(), stranger.card().to_table(), stranger.card().to_table()]
    with pytest.raises(ConfigError, match=r"stranger's certificate .* not of this federation's authority"):
        masks["north"].mask_counts(invented, COUNTS["north"])


def test_the_key_of_a_run_is_its_owners_alone_and_no_other_runs(four: Path, tmp_path: Path) -> None:
    one, other = (group(four, tmp_path, ["north"], run)["north"] for run in ("r1", "r2"))
    assert one.card().public != other.card().public
    assert stat.S_IMODE((tmp_path / "north/r1.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "north").stat().st_mode) == 0o700
