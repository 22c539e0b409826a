"""Progress: lines in a log, bars on a terminal, nothing when silent."""

from __future__ import annotations

import io
from typing import Any

import pytest

from fedvision.runs.progress import Progress, Silent


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _record(measured: bool = True, **changes: Any) -> dict[str, Any]:
    scores = {"accuracy": 0.5, "balanced_accuracy": 0.4, "tail": 0.125}
    facts = {"train_loss": 1.25, "clients": [1, 2], "server": {"scores": scores} if measured else None}
    return {**facts, **changes}


def test_a_log_gets_a_line_a_round_with_the_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock) as progress:
        progress.start(10, 1)
        for client in range(4):
            progress.client_done(1, client + 1, 4)
        clock.now = 5
        progress.round_done(1, _record(), {"train": 3.0, "total": 4.0})
        clock.now = 8
        items = [{"kind": kind} for kind in ("failed", "refused", "failed")]
        progress.round_done(2, _record(False, train_loss=1.0, refused=items), {"train": 2.0, "server": 1.0})
        progress.note("a [red]notice[/red]")
    assert stream.getvalue().splitlines() == [
        "round  1/10  loss 1.250  accuracy 50.0%  balanced 40.0%  tail 12.5%  2 clients  4.00 s, 45.0 s left",
        "round  2/10  loss 1.000  accuracy 50.0%  balanced 40.0%  tail 12.5%  2 clients  1 refused  2 "
        "failed  3.00 s, 32.0 s left",
        "a [red]notice[/red]",
    ]


def test_figures_of_an_earlier_rounds_model() -> None:
    """Figures of an earlier round's model are labelled and never replace the server's."""
    stream, clients = io.StringIO(), {"scores": {"accuracy": 0.75}}
    for server in (None, {"scores": {"accuracy": 0.5}}):
        with Progress(stream, Clock()) as progress:
            progress.start(3, 1)
            progress.round_done(1, {"server": server}, {})
            progress.round_done(2, {"received": {"round": 1, **clients}}, {})
            progress.round_done(3, {"local": clients}, {})
    texts = [line.rpartition("  ")[0].rstrip() for line in stream.getvalue().splitlines()]
    assert texts == [
        "round 1/3",
        "round 2/3  accuracy 75.0%  after round 1",
        "round 3/3  accuracy 75.0%",
        "round 1/3  accuracy 50.0%",
        "round 2/3  accuracy 50.0%",
        "round 3/3  accuracy 75.0%",
    ]


def test_a_resumed_run_counts_only_its_own_rounds() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock) as progress:
        progress.start(4, 3)
        clock.now = 10
        progress.round_done(3, {}, {})
        clock.now = 20
        progress.round_done(4, {"local": {"scores": {"accuracy": None}}}, {"total": 10.0})
    assert stream.getvalue().splitlines() == [
        "going on at round 3 of 4",
        "round 3/4    0.00 s, 10.0 s left",
        "round 4/4    10.0 s, done",
    ]


def test_a_finished_run_is_a_notice() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.start(4, 5)
    assert stream.getvalue() == "all rounds are done\n"


def test_a_terminal_gets_bars_and_keeps_its_last_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with Progress(stream) as progress:
        progress.start(2, 1)
        progress.client_done(1, 1, 3)
        progress.round_done(1, _record(), {"total": 1.0})
        progress.note("said [b]aloud[/b]")
        progress.round_done(2, _record(), {"total": 1.0})
    shown = stream.getvalue()
    assert "2/2" in shown
    assert "1/3" in shown
    assert "loss 1.250  accuracy 50.0%  balanced 40.0%  tail 12.5%  2 clients" in shown
    assert "said [b]aloud[/b]" in shown
    assert "done" in shown


def test_an_error_leaves_the_screen_in_order() -> None:
    stream = Terminal()

    def interrupted() -> None:
        with Progress(stream) as progress:
            progress.start(2, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    with Silent() as progress:
        progress.start(2, 2)
        progress.client_done(2, 1, 1)
        progress.round_done(2, _record(), {"total": 1.0})
        progress.note("nothing")
    assert capfd.readouterr() == ("", "")


def test_a_figure_without_test_images_is_not_shown() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.start(1, 1)
        scores = {"accuracy": 0.5, "balanced_accuracy": 0.4, "tail": float("nan")}
        progress.round_done(1, _record(server={"scores": scores}), {"total": 1.0})
    assert "accuracy 50.0%  balanced 40.0%  2 clients" in stream.getvalue()
    assert "nan" not in stream.getvalue()
