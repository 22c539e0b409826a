"""Interruption: what a library makes of Ctrl-C stays Ctrl-C."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress

import pytest

from fedvision.interruption import Interruption


@pytest.fixture(autouse=True)
def _python_handles_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> object:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_swallowed_interrupt_is_raised_again() -> None:
    """An interrupt that was swallowed is raised before anything is written."""
    interruption = Interruption()
    with interruption:
        with suppress(KeyboardInterrupt):  # what a C extension does that reads an attribute
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interruption.check()


def _become_an_error() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ValueError("could not determine the shape") from None


def test_an_error_that_an_interrupt_became_leaves_as_the_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, Interruption():
        _become_an_error()
    assert isinstance(caught.value.__cause__, ValueError)


def test_errors_without_an_interrupt() -> None:
    """Without an interrupt errors are what they are and the handler comes back."""
    interruption = Interruption()
    interruption.check()
    with pytest.raises(ValueError, match="invalid literal"), interruption:
        int("a word")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_counts_where_the_program_treats_it_as_ctrl_c() -> None:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Interruption() as interruption:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                interruption.check()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_of_the_programs_own_is_left_alone() -> None:
    signals: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: signals.append(number))
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        interruption.check()
    assert signals == [signal.SIGINT]


def test_outside_the_main_thread_nothing_is_changed() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with Interruption() as interruption:
                interruption.check()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


def test_a_second_interrupt_waits_until_the_first_has_cleaned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("fedvision.interruption.time.monotonic", lambda: now)
    with Interruption():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        now += 9.9
        signal.raise_signal(signal.SIGINT)
        now += 0.2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_interruption_that_is_entered_twice_ends_with_the_outer_one() -> None:
    interruption = Interruption()
    with interruption:
        with interruption:
            pass
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
