"""Trying again: pauses that grow, a line a minute, an end where one is set."""

from __future__ import annotations

import logging
import re

import pytest

from fedvision.deployment.client.retry import RetryBackoff
from fedvision.errors import RunError


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.pauses = 100.0, list[float]()

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_pauses_grow_to_the_longest_and_begin_anew(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    patience = RetryBackoff(longest=4.0, clock=time.clock, sleep=time.sleep)
    for _ in range(7):
        patience.wait("down")
    assert all(a * 0.8 <= p <= a * 1.2 for a, p in zip([0.25, 0.5, 1, 2, 4, 4, 4], time.pauses, strict=True))
    patience.success()
    time.now += 9
    patience.wait("down")
    assert time.pauses[-1] >= 3.2, "a link that held for 9 s only is no better than before"
    patience.success()
    time.now += 10.5
    patience.wait("down")
    assert time.pauses[-1] <= 0.3


def test_notices_at_growing_intervals(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    patience = RetryBackoff(clock=time.clock, sleep=time.sleep)
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        while time.now < 100 + 410:
            patience.wait("the server is away")
        assert len(caplog.messages) == 3, "at 0, 60 and 180 s, not yet at 420; pauses are up to 12 s"
        assert caplog.messages[0] == "the server is away; trying again"
        assert re.search(r"trying again since (6\d|7[0-2]) s", caplog.messages[1])
        assert re.search(r"trying again since (1[89]\d|20\d) s", caplog.messages[2])
        patience.success()
        assert re.fullmatch(r"the server is there again after 4[12]\d s", caplog.messages[-1])


def test_a_link_that_comes_and_goes_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    patience = RetryBackoff(clock=time.clock, sleep=time.sleep)
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        assert patience.success(), "the first time there is something to log"
        worth_saying = 0
        while time.now < 100 + 118:
            patience.wait("the link broke")
            worth_saying += patience.success()
            time.now += 2
    assert worth_saying == 2
    logged = [message for message in caplog.messages if message.startswith("the link broke")]
    assert len(logged) == 2
    assert re.search(r"trying again \(\d+ more failures since this was last logged\)", logged[1])
    assert len(caplog.messages) == 4, "two failures, and twice that it is there again"


def test_log_lines_of_a_long_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A long outage is a dozen lines and the next failure is logged at once."""
    time = Time()
    patience = RetryBackoff(clock=time.clock, sleep=time.sleep)
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        while time.now < 100 + 8 * 3600:
            patience.wait("away")
        assert len(caplog.messages) == 13, "at 0, 1, 3, 7, 15, 31 and 63 minutes, then every hour"
        patience.success()
        time.now += 100
        for _ in range(12):
            patience.wait("away")
    again = [message for message in caplog.messages[14:] if message.startswith("away; trying again (")]
    assert len(again) == 1


def test_it_is_given_up_after_the_limit() -> None:
    time = Time()
    patience = RetryBackoff(limit=30, clock=time.clock, sleep=time.sleep)
    with pytest.raises(RunError, match=r"away; given up after \d+ s \(superlink.retry_for is 30\)"):
        _for_ever(patience)
    assert 30 <= time.now - 100 < 45


def _for_ever(patience: RetryBackoff) -> None:
    while True:
        patience.wait("away")
