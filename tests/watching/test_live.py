"""Viewers: each gets what it lacks, once, whenever it comes and however slowly it reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from fedvision.watching import live as live_module
from fedvision.watching.access import Guard
from fedvision.watching.app import application
from fedvision.watching.followed_run import FollowedRun
from fedvision.watching.live import VIEWERS, LivePage
from fedvision.watching.sections import SECTIONS
from tests.watching.sample import WrittenRun

Check = Callable[[LivePage, WrittenRun], Awaitable[None]]


def told(frame: bytes) -> tuple[str, dict[str, Any]]:
    """Return a frame's id and data."""
    head, event, data, *rest = frame.decode().split("\n")
    assert (event, rest) == ("event: sections", ["", ""])
    table: dict[str, Any] = json.loads(data.removeprefix("data: "))
    return head.removeprefix("id: "), table


async def following(events: AsyncIterator[bytes]) -> tuple[str, dict[str, Any]]:
    """Return the next message that is no beat."""
    async with asyncio.timeout(20):
        async for frame in events:
            if frame.startswith(b"id:"):
                return told(frame)
    raise AssertionError("the stream ended")


async def _a_round_sends_what_it_changes(page: LivePage, run: WrittenRun) -> None:
    events = page.events("")
    assert (await anext(events)).startswith(b"retry: ")
    first, message = await following(events)
    sent = set(message["sections"])
    while "curves" not in sent:
        first, message = await following(events)
        sent |= set(message["sections"])
    assert sent >= {"state", "scores", "curves", "clients", "spread", "events"}
    page.viewers = 1
    follower = asyncio.create_task(page.follow())
    run.round()
    second, message = await following(events)
    assert "Round 4" in message["sections"]["state"]
    assert "curves" not in message["sections"]  # what takes longer comes behind
    assert "spread" not in message["sections"]
    assert message["say"].startswith("Round 3 of 10 is done. Balanced accuracy")
    _, message = await following(events)
    assert (list(message["sections"]), message["say"]) == (["curves"], "")
    assert first.partition("-")[0] == second.partition("-")[0]
    follower.cancel()
    await events.aclose()  # type: ignore[attr-defined]


async def _who_comes_back_gets_what_it_lacks(page: LivePage, run: WrittenRun) -> None:
    await page.html()
    had = page.version
    run.round()
    await page.refresh()
    events = page.events(had)
    _, message = await following(events)
    assert set(message["sections"]) < set(SECTIONS)
    assert "spread" not in message["sections"]
    await events.aclose()  # type: ignore[attr-defined]
    for unknown in ("", "00000000-3", "x", f"{had}x", "-"):
        events = page.events(unknown)
        assert "spread" in (await following(events))[1]["sections"]
        await events.aclose()  # type: ignore[attr-defined]


async def _a_slow_viewer_gets_the_newest_state_once(page: LivePage, run: WrittenRun) -> None:
    await page.html()
    events = page.events(page.version)
    await anext(events)
    for _ in range(5):
        run.round()
        await page.refresh()
    _, message = await following(events)
    assert "Round 8 of 10" in message["sections"]["state"]
    assert "curves" in message["sections"]
    await events.aclose()  # type: ignore[attr-defined]


async def _silence_is_filled_with_beats(page: LivePage, run: WrittenRun) -> None:
    await page.html()
    events = page.events(page.version)
    await anext(events)
    assert await anext(events) == b": the connection holds\n\n"
    await page.close()
    assert [frame async for frame in events] == []


async def _nothing_is_read_while_nobody_looks(page: LivePage, run: WrittenRun) -> None:
    polls: list[bool] = []
    poll = page.run.poll
    page.run.poll = lambda: polls.append(True) or poll()  # type: ignore[assignment,func-returns-value]
    follower = asyncio.create_task(page.follow())
    await asyncio.sleep(0.1)
    assert polls == []
    with page.viewer():
        async with asyncio.timeout(20):
            while not polls:
                await asyncio.sleep(0.01)
    assert page.viewers == 0
    follower.cancel()


async def _viewers_are_counted(page: LivePage, run: WrittenRun) -> None:
    app = application(page, Guard(token=None, loopback=True, port=1, secure=False))
    page.viewers = VIEWERS
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/events",
        "query_string": b"",
        "client": ("127.0.0.1", 1),
    }
    await app({**scope, "headers": [(b"host", b"localhost")]}, receive, send)
    assert sent[0]["status"] == 503
    assert b"32 viewers are connected already" in sent[1]["body"]


async def _who_takes_nothing_in_is_given_up(page: LivePage, run: WrittenRun) -> None:
    app = application(page, Guard(token=None, loopback=True, port=1, secure=False))

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(3600)

    async def receive() -> Message:
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/events", "query_string": b"", "client": ("::1", 1)}
    asgi = {"spec_version": "2.4"}
    with pytest.raises(ClientDisconnect):
        await app({**scope, "headers": [(b"host", b"localhost")], "asgi": asgi}, receive, send)
    assert page.viewers == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        _a_round_sends_what_it_changes,
        _who_comes_back_gets_what_it_lacks,
        _a_slow_viewer_gets_the_newest_state_once,
        _silence_is_filled_with_beats,
        _nothing_is_read_while_nobody_looks,
        _viewers_are_counted,
        _who_takes_nothing_in_is_given_up,
    ],
)
def test_viewers(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "POLL_S", 0.01)
    monkeypatch.setattr(live_module, "_BEAT_S", 0.1)
    monkeypatch.setattr(live_module, "_DRAWING_REST", 0.0)
    monkeypatch.setattr("fedvision.watching.app._STALLED_S", 0.2)
    run = WrittenRun(tmp_path / "run")
    run.begin()
    run.round()
    run.round()
    monkeypatch.setattr("fedvision.watching.followed_run.is_worked_on", lambda path: True)

    async def all_of_it() -> None:
        await check(LivePage(FollowedRun(tmp_path / "run")), run)

    asyncio.run(all_of_it())
