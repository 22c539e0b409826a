"""Starting Ray: what goes wrong is one sentence, and the process keeps its own way with signals."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import ray

from fedvision.engines.ray import engine as engine
from fedvision.errors import RunError


def test_a_ray_that_cannot_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk its processes end at once, and what Ray raises then is a bare ``Exception``."""

    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen.\nAnd more.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunError) as caught, engine._connected(None, 1):
        pass
    message = str(caught.value)
    assert message.startswith(
        "could not start Ray on this machine: The current node timed out during startup."
    )
    assert " GB in " in message
    assert "--engine serial" in message
    assert "\n" not in message


def test_rays_own_signal_handlers_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def ours(number: int, frame: object) -> None:
        """Stand in for what the command line has set."""

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with engine._connected(None, 1):
            assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
