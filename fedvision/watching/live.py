"""The page while it is open: the folder is looked at, and every viewer gets the sections that have changed.

Viewers are sent server-sent events (the EventSource interface of the HTML standard). Each names the version
after it; a viewer that comes back says which one it has, and gets what has changed since, or everything from
a server that was started anew. A viewer that reads slowly has no queue: it gets the newest sections when it
is ready for them. While nobody looks, nothing is read and nothing is drawn.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager

from fedvision.watching import sentences
from fedvision.watching.client_rows import client_rows
from fedvision.watching.followed_run import FollowedRun, Snapshot
from fedvision.watching.sections import (
    SECTIONS,
    drawn_sections,
    found_clients,
    page,
    state_section,
    written_sections,
)

POLL_S = 0.2
"""Seconds between two looks at the folder."""
_REST, _LONGEST_REST_S = 3.0, 0.5
"""After sections were written, so many times their processor seconds are let pass, and no longer than so many
seconds."""
_DRAWING_REST = 12.0
"""The same for pictures: where rounds follow each other faster than these, the run needs the cores."""
_AGAIN_S = 5.0
"""While a run goes on its time left is written anew so often."""
_BEAT_S = 15.0
"""Seconds of silence after which a viewer, and what lies between, is told that the connection holds."""
_RETRY_MS = 2000
VIEWERS = 32
"""Viewers at a time."""


class LivePage:
    """The sections of the page on one run, and who looks at them.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: FollowedRun) -> None:
        self.run = run
        self.viewers = 0
        """Open connections of viewers."""
        self.found: Snapshot | None = None
        """The run as it was read last."""
        self._begun = secrets.token_hex(4)
        self._version = 0
        self._sections = dict.fromkeys(SECTIONS, "")
        self._changed_in = dict.fromkeys(SECTIONS, 0)
        self._say, self._said_in, self._told = "", 0, ("", 0)
        self._written_at, self._rest = 0.0, 0.0
        self._stale, self._draw_at = False, 0.0
        self._lock, self._news = asyncio.Lock(), asyncio.Condition()
        self._closed = False

    @property
    def version(self) -> str:
        """What a viewer says who has the present sections."""
        return f"{self._begun}-{self._version}"

    async def follow(self) -> None:
        """Look at the folder for as long as somebody looks at the page; until cancelled."""
        while True:
            await asyncio.sleep(max(POLL_S, self._rest))
            if self.viewers:
                await self.refresh()

    async def refresh(self) -> None:
        """Bring the sections up to date, those with pictures last, and wake the viewers."""
        async with self._lock:
            began = time.process_time()
            await self._wake_for(self._write)
            self._rest = min(_REST * (time.process_time() - began), _LONGEST_REST_S)
            if self._stale and time.monotonic() >= self._draw_at:
                began = time.process_time()
                await self._wake_for(self._draw)
                self._draw_at = time.monotonic() + _DRAWING_REST * (time.process_time() - began)

    async def _wake_for(self, work: Callable[[], None]) -> None:
        """Do some work beside the viewers, and wake them where it has changed a section."""
        before = self._version
        await asyncio.to_thread(work)
        if self._version != before:
            await self._wake()

    async def html(self) -> str:
        """Return the page as it is now."""
        await self.refresh()
        state = self.found.state if self.found else None
        title = f"{sentences.NAMES[sentences.kind(state)]} · {state.name}" if state else "waiting · fedvision"
        return page(self._sections, title=title, version=self.version)

    async def clients(self, text: str) -> str:
        """Return the clients whose name has a text in it, as HTML."""
        await self.refresh()
        found = self.found
        if found is None:
            return ""
        machines = found.state.across_machines
        return await asyncio.to_thread(
            lambda: found_clients(client_rows(found), text, across_machines=machines)
        )

    async def events(self, since: str) -> AsyncIterator[bytes]:
        """Yield what a viewer lacks, now and whenever something changes, until the page is closed.

        Args:
            since: The version that it has; of another server, or none, all sections are sent.
        """
        begun, _, number = since.partition("-")
        has = int(number) if begun == self._begun and number.isdecimal() else 0
        yield f"retry: {_RETRY_MS}\n\n".encode()
        await self.refresh()
        while not self._closed:
            if self._version > has:
                message, has = self._message(has), self._version
                yield message
            elif not await self._wait(has):
                yield b": the connection holds\n\n"

    @contextmanager
    def viewer(self) -> Iterator[None]:
        """Count a viewer while its connection is open."""
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    async def close(self) -> None:
        """Let all viewers go."""
        self._closed = True
        await self._wake()

    def _message(self, has: int) -> bytes:
        changed = {name: self._sections[name] for name in SECTIONS if self._changed_in[name] > has}
        say = self._say if has and self._said_in > has else ""
        data = json.dumps({"sections": changed, "say": say}, ensure_ascii=False, separators=(",", ":"))
        return f"id: {self.version}\nevent: sections\ndata: {data}\n\n".encode()

    async def _wait(self, has: int) -> bool:
        """Return whether something has changed before a beat is due."""
        try:
            async with asyncio.timeout(_BEAT_S), self._news:
                await self._news.wait_for(lambda: self._closed or self._version > has)
        except TimeoutError:
            return False
        return True

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _write(self) -> None:
        """Read what is new and write the sections without pictures."""
        changed = self.run.poll() or not self._version
        if not changed and (self._over or time.monotonic() - self._written_at < _AGAIN_S):
            return
        new = {}
        if changed:
            self.found, self._stale = self.run.snapshot(), True
            new = written_sections(self.found)
        new["state"] = state_section(self.found, waits_for=str(self.run.path), problem=self.run.problem)
        if self._take(new):
            self._tell()
        self._written_at = time.monotonic()

    def _draw(self) -> None:
        self._stale = False
        self._take(drawn_sections(self.found))

    def _take(self, new: Mapping[str, str]) -> bool:
        """Put sections in place, and return whether one differs."""
        differing = [name for name, html in new.items() if html != self._sections[name]]
        if differing:
            self._version += 1
            self._sections |= new
            self._changed_in |= dict.fromkeys(differing, self._version)
        return bool(differing)

    @property
    def _over(self) -> bool:
        """Whether nothing of the page depends on the time."""
        return self.found is None or self.found.state.over

    def _tell(self) -> None:
        """Find a sentence for whoever hears the page, where a round is done or the run stands otherwise."""
        if self.found is None:
            return
        told = self.found.state.status, self.found.state.done
        if told != self._told:
            self._told, self._say, self._said_in = told, sentences.announcement(self.found), self._version
