"""The hours of a policy, on a wall clock, and what is no policy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.deployment.client.participation_config import Hours, PolicyConfig
from fedvision.errors import ConfigError

BERLIN = ZoneInfo("Europe/Berlin")


def opens_in(hours: str, now: datetime, zone: str = "Europe/Berlin") -> float:
    found = Hours.of(PolicyConfig(hours=hours, zone=zone))
    assert found is not None
    return found.opens_in(now)


def test_an_opening_that_clocks_set_back_pass_twice_is_asked_for_again() -> None:
    """In 2010 Newfoundland's clocks went from 0:01 back to 23:01: midnight was there, and came again."""
    now = datetime(2010, 11, 7, 2, 45, tzinfo=UTC)
    assert now.astimezone(ZoneInfo("America/St_Johns")).strftime("%d %H:%M") == "06 23:15"
    assert opens_in("00:00-06:00", now, "America/St_Johns") == 60


@pytest.mark.parametrize(
    ("hours", "clock", "hours_left"),
    [
        ("20:00-06:00", "20:00", 0),
        ("20:00-06:00", "23:59", 0),
        ("20:00-06:00", "00:00", 0),
        ("20:00-06:00", "05:59", 0),
        ("20:00-06:00", "06:00", 14),
        ("20:00-06:00", "19:30", 0.5),
        ("08:30-17:00", "08:30", 0),
        ("08:30-17:00", "16:59", 0),
        ("08:30-17:00", "17:00", 15.5),
        ("08:30-17:00", "07:30", 1),
        ("00:00-24:00", "23:59", 0),
        ("18:00-24:00", "00:00", 18),
    ],
)
def test_when_hours_are_open(hours: str, clock: str, hours_left: float) -> None:
    hour, minute = map(int, clock.split(":"))
    now = datetime(2026, 7, 1, hour, minute, tzinfo=BERLIN)
    assert opens_in(hours, now) == hours_left * 3600
    assert opens_in(hours, now.astimezone(UTC)) == hours_left * 3600


def test_a_day_on_which_clocks_are_set_is_an_hour_shorter() -> None:
    """On 29 March 2026 Berlin's clocks go from 02:00 to 03:00."""
    evening = datetime(2026, 3, 28, 22, 0, tzinfo=BERLIN)
    assert opens_in("08:00-09:00", evening) == 9 * 3600
    assert opens_in("08:00-09:00", evening - timedelta(days=1)) == 10 * 3600


@given(minute=st.integers(0, 3 * 1440), begin=st.integers(0, 1439), length=st.integers(1, 1439))
def test_when_it_opens_it_is_open_and_not_a_minute_before(minute: int, begin: int, length: int) -> None:
    end = (begin + length) % 1440
    hours = Hours(begin=begin, end=end, zone=ZoneInfo("UTC"))
    now = datetime(2026, 7, 1, tzinfo=UTC) + timedelta(minutes=minute)
    left = hours.opens_in(now)
    assert left < 24 * 3600
    assert hours.opens_in(now + timedelta(seconds=left)) == 0
    assert (left == 0) == ((minute - begin) % 1440 < length)
    if left:
        assert hours.opens_in(now + timedelta(seconds=left - 60)) == 60


def test_no_hours_are_none() -> None:
    assert Hours.of(PolicyConfig()) is None


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"hours": "20-06"}, "policy.hours"),
        ({"hours": "20:00-20:00"}, "policy.hours"),
        ({"hours": "25:00-06:00"}, "policy.hours"),
        ({"hours": "20:00-24:01"}, "policy.hours"),
        ({"hours": "20:00-06:00", "zone": "Europe/Nowhere"}, "policy.zone"),
        ({"hours": "20:00-06:00", "zone": "../secret"}, "policy.zone"),
        ({"zone": "Europe/Berlin"}, "policy.zone"),
        ({"max_rounds": -1}, "policy.max_rounds"),
        ({"min_clients": -1}, "policy.min_clients"),
        ({"experiments": ("",)}, "policy.experiments"),
        ({"experiments": ("sha256:12",)}, "policy.experiments"),
    ],
)
def test_what_is_no_policy_is_refused_with_its_key(wrong: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        PolicyConfig(**wrong)  # type: ignore[arg-type]
