"""Long polling: a client polls once a second and gets its messages at once.

Asking ten times a second cost a tenth of a core for every client, and a message still waited for the next
question. Here a question that would find nothing is held until something was sent. A client's question is
then answered with nothing, and its next one, sent at once, takes the message: had the request itself taken
it, a message would be lost whenever a link breaks, for a waiting client always has a question under way.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedvision.deployment.transport.internals_bundle import FLEET, RUNTIME
from fedvision.deployment.transport.internals_superlink import MEDIA_TYPE, PUBLIC_KEY_HEADER

TASK_REQUESTED, TASK_SENT = "/v1/fleet/pull-messages", "/v1/runtime/push-messages"
REPLY_REQUESTED, REPLY_SENT = "/v1/runtime/pull-messages", "/v1/fleet/push-messages"
OBJECT_SENT = "/v1/fleet/push-object"
_CLIENT_S, _SERVER_S, _SURELY_S = 1.0, 0.5, 5.0
"""How long a client's question and the server's are held, and after which time a client's is passed on."""
_SMALL = 1 << 16
"""A reply's last objects are smaller than this."""


class Notifier:
    """Wakes all who wait."""

    def __init__(self) -> None:
        self.rung = 0
        """How often it was rung."""
        self._news = asyncio.Event()

    def ring(self) -> None:
        """Wake everybody."""
        self.rung += 1
        self._news.set()
        self._news = asyncio.Event()

    async def wait(self, since: int, seconds: float) -> None:
        """Return when it was rung more often than ``since``, or after some seconds."""
        if self.rung == since:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), seconds)


class LongPolling:
    """Hold requests for messages, which ``app`` answers, until there is one (ASGI)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._tasks, self._replies = Notifier(), Notifier()
        self._empty_polls: dict[bytes, tuple[int, float]] = {}
        self._last_rung = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope.get("path")
        if path == TASK_REQUESTED:
            await self._client(scope, receive, send)
        elif path == REPLY_REQUESTED:
            await self._server(scope, receive, send)
        else:
            await self._app(scope, receive, send)
            if path in (TASK_SENT, RUNTIME):
                self._tasks.ring()
            elif path in (REPLY_SENT, FLEET) or (path == OBJECT_SENT and _size(scope) < _SMALL):
                self._replies.ring()

    async def _client(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold a client's request if the last one found nothing and nothing was sent since."""
        key = next((value for name, value in scope["headers"] if name == PUBLIC_KEY_HEADER), b"")
        now = asyncio.get_running_loop().time()
        rung, since = self._empty_polls.get(key, (-1, now))
        if rung == self._tasks.rung and now - since < _SURELY_S:
            await self._tasks.wait(rung, _CLIENT_S)
            # No message: a message of Flower's without a field has no bytes.
            await Response(media_type=MEDIA_TYPE)(scope, receive, send)
            return
        rung, answered = self._tasks.rung, False

        async def watched(message: Message) -> None:
            nonlocal answered
            # Only an answer without a message: where there was one there may be another.
            answered = answered or (message.get("status") == 200 and _size(message) == 0)
            await send(message)

        self._empty_polls.pop(key, None)
        await self._app(scope, receive, watched)
        if answered:
            self._empty_polls[key] = (rung, now)

    async def _server(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold the server's request for a moment; it is always passed on, as errors wake nothing."""
        await self._replies.wait(self._last_rung, _SERVER_S)
        self._last_rung = self._replies.rung
        await self._app(scope, receive, send)


def _size(message: Message) -> int:
    """Return the length that the headers of a request or a response declare, 0 where they do not."""
    return int(next((value for name, value in message["headers"] if name == b"content-length"), b"0"))
