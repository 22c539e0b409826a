"""What a program is busy with: told with the time so far, where somebody follows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fedvision import stages
from fedvision.stages import stage


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    stages.unfollow()


def test_a_stage_is_told_with_the_seconds_since_it_was_followed() -> None:
    told, times = list[str](), iter([100.0, 103.25, 112.5])
    stages.follow(told.append, lambda: next(times))
    stage("reading")
    stage("building")
    assert told == ["  3.2 s  reading", " 12.5 s  building"]


def test_a_stage_that_is_repeated_is_told_once() -> None:
    told = list[str]()
    stages.follow(told.append, lambda: 0.0)
    for text in ("building", "building", "starting", "building"):
        stage(text)
    assert [line.split("  ")[-1] for line in told] == ["building", "starting", "building"]


def test_one_follower_at_a_time_and_none_in_the_end() -> None:
    first, second = list[str](), list[str]()
    stages.follow(first.append)
    stages.follow(second.append)
    stage("reading")
    stages.unfollow()
    stage("building")
    assert (len(first), len(second)) == (0, 1)
