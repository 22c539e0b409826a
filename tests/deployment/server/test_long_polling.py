"""Questions that wait: nothing is missed, nothing is taken by a question that waited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fedvision.deployment.server import long_polling
from fedvision.deployment.server.long_polling import LongPolling


@pytest.fixture(autouse=True)
def held_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is held for much longer than what is answered at once takes on a busy machine."""
    monkeypatch.setattr(long_polling, "_CLIENT_S", 40.0)
    monkeypatch.setattr(long_polling, "_SERVER_S", 40.0)


class SuperLink:
    """An application with messages for clients; a question takes one."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.requested: list[str] = []
        self.status = 200

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requested.append(scope["path"])
        body = b""
        if scope["path"] == long_polling.TASK_SENT:
            self.messages.append(b"task")
        elif scope["path"] == long_polling.TASK_REQUESTED and self.messages:
            body = self.messages.pop()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def send_request(app: LongPolling, path: str, key: bytes = b"k", size: int = 10) -> tuple[int, bytes]:
    """Return status and body of the answer to one request."""
    got: list[Any] = []

    async def send(message: Any) -> None:
        got.append(message)

    headers = [(long_polling.PUBLIC_KEY_HEADER, key), (b"content-length", str(size).encode())]
    await app({"type": "http", "path": path, "headers": headers}, None, send)  # type: ignore[arg-type]
    return got[0]["status"], got[1]["body"]


def play(scene: Callable[[LongPolling, SuperLink], Awaitable[None]]) -> SuperLink:
    link = SuperLink()

    async def run() -> None:
        await scene(LongPolling(link), link)

    asyncio.run(asyncio.wait_for(run(), 60))
    return link


async def prompt(question: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(question, 10)


def test_a_message_wakes_a_client_whose_next_question_takes_it() -> None:
    async def scene(app: LongPolling, link: SuperLink) -> None:
        assert await prompt(send_request(app, long_polling.TASK_REQUESTED)) == (200, b"")
        waiting = asyncio.create_task(send_request(app, long_polling.TASK_REQUESTED))
        await asyncio.sleep(0.1)
        assert not waiting.done(), "nothing was sent since"
        await send_request(app, long_polling.TASK_SENT)
        assert await prompt(waiting) == (200, b"")
        assert link.messages == [b"task"], "a question that waited takes nothing"
        assert await prompt(send_request(app, long_polling.TASK_REQUESTED)) == (200, b"task")
        assert await prompt(send_request(app, long_polling.TASK_REQUESTED)) == (200, b""), (
            "there may be another"
        )

    assert play(scene).requested == [
        long_polling.TASK_REQUESTED,
        long_polling.TASK_SENT,
        *[long_polling.TASK_REQUESTED] * 2,
    ]


def test_a_message_between_two_questions_is_not_missed() -> None:
    async def scene(app: LongPolling, link: SuperLink) -> None:
        await send_request(app, long_polling.TASK_REQUESTED)
        await send_request(app, long_polling.TASK_SENT)
        assert await prompt(send_request(app, long_polling.TASK_REQUESTED)) == (200, b"task")

    play(scene)


def test_each_client_waits_for_itself() -> None:
    async def scene(app: LongPolling, link: SuperLink) -> None:
        await send_request(app, long_polling.TASK_REQUESTED, b"one")
        assert await prompt(send_request(app, long_polling.TASK_REQUESTED, b"two")) == (200, b"")

    play(scene)


def test_a_refused_client_is_answered_every_time() -> None:
    async def scene(app: LongPolling, link: SuperLink) -> None:
        link.status = 401
        for _ in range(3):
            assert (await prompt(send_request(app, long_polling.TASK_REQUESTED)))[0] == 401

    play(scene)


def test_now_and_then_a_question_is_passed_on_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_polling, "_CLIENT_S", 0.05)
    monkeypatch.setattr(long_polling, "_SURELY_S", 1e9)

    async def scene(app: LongPolling, link: SuperLink) -> None:
        await send_request(app, long_polling.TASK_REQUESTED)
        link.messages.append(b"without a sound")
        for _ in range(2):
            assert await prompt(send_request(app, long_polling.TASK_REQUESTED)) == (200, b"")
        monkeypatch.setattr(long_polling, "_SURELY_S", 0.0)
        assert await prompt(send_request(app, long_polling.TASK_REQUESTED)) == (200, b"without a sound")

    play(scene)


@pytest.mark.parametrize(
    ("path", "size", "wakes"),
    [
        (long_polling.REPLY_SENT, 10, True),
        (long_polling.OBJECT_SENT, 900, True),
        (long_polling.OBJECT_SENT, 1 << 20, False),
    ],
)
def test_the_server_is_woken_by_a_reply_and_its_last_objects(path: str, size: int, wakes: bool) -> None:
    async def scene(app: LongPolling, link: SuperLink) -> None:
        waiting = asyncio.create_task(send_request(app, long_polling.REPLY_REQUESTED))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await send_request(app, path, size=size)
        if wakes:
            await prompt(waiting)
        else:
            await asyncio.sleep(0.1)
            assert not waiting.done()
            await send_request(app, long_polling.REPLY_SENT)
            await prompt(waiting)
        assert link.requested[-1] == long_polling.REPLY_REQUESTED, "it is always passed on"

    play(scene)


def test_other_calls_pass_at_once() -> None:
    async def scene(app: LongPolling, link: SuperLink) -> None:
        for path in ("/v1/fleet/send-node-heartbeat", "/v1/runtime/get-nodes"):
            await prompt(send_request(app, path))

    assert len(play(scene).requested) == 2
