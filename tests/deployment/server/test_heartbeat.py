"""Silence of a server towards its SuperLink, whatever stood still."""

from __future__ import annotations

from fedvision.deployment.server.heartbeat import Heartbeat
from fedvision.deployment.transport.internals_message_objects import LinkDown, LinkRefused


class Link:
    """Answers as the test sets."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.known = True

    def beat(self) -> bool:
        if self.error:
            raise self.error
        return self.known


def test_a_silence_ends_with_the_next_sign_of_life_that_arrives() -> None:
    link, running, wall = Link(), [100.0], [1000.0]
    heartbeat = Heartbeat(link, (lambda: running[0], lambda: wall[0]))  # type: ignore[arg-type]
    running[0] += 20
    wall[0] += 20
    assert heartbeat.silence == 20
    for link.error in (LinkDown("away"), LinkRefused("no")):
        heartbeat.once()
        assert heartbeat.silence == 20
    link.error = None
    heartbeat.once()
    assert heartbeat.silence == 0
    wall[0] += 90  # the machine slept, and the clock of its processes with it
    assert heartbeat.silence == 90


def test_a_beat_for_a_run_that_was_given_up_ends_no_silence() -> None:
    """Flower answers it, without success: after a sleep this may come before the next request for replies."""
    link, running = Link(), [100.0]
    heartbeat = Heartbeat(link, (lambda: running[0],))  # type: ignore[arg-type]
    running[0], link.known = 190.0, False
    heartbeat.once()
    assert heartbeat.silence == 90
