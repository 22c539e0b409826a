"""What is behind each address of the page, as an ASGI application."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedvision.watching.access import HEADERS, Guard
from fedvision.watching.live import VIEWERS, LivePage
from fedvision.watching.metrics import CONTENT_TYPE, metrics
from fedvision.watching.sections import script, stylesheet

_STALLED_S = 60.0


def application(live: LivePage, guard: Guard) -> ASGIApp:
    """Return the application.

    Args:
        live: The page.
        guard: Who may see it.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        response = guard.refusal(scope) or await _answer(live, scope)
        response.headers.update(
            {name: text for name, text in HEADERS.items() if name not in response.headers}
        )
        with live.viewer() if isinstance(response, StreamingResponse) else nullcontext():
            await response(scope, receive, _in_time(send))

    return answer


def _in_time(send: Send) -> Send:
    """Return what gives a viewer up that takes nothing in for a minute: it holds one of few places."""

    async def send_in_time(message: Message) -> None:
        async with asyncio.timeout(_STALLED_S):
            await send(message)

    return send_in_time


async def _answer(live: LivePage, scope: Scope) -> Response:
    asked = parse_qs(scope["query_string"].decode("latin-1"))
    path = scope["path"]
    if path == "/":
        return HTMLResponse(await live.html())
    if path == "/events":
        return _events(live, scope, next(iter(asked.get("since", ())), ""))
    if path == "/clients":
        return HTMLResponse(await live.clients(next(iter(asked.get("text", ())), "")[:100]))
    if path == "/metrics":
        await live.refresh()
        return Response(metrics(live.found), headers={"content-type": CONTENT_TYPE})
    if path == "/watch.css":
        return Response(stylesheet(), media_type="text/css")
    if path == "/watch.js":
        return Response(script(), media_type="text/javascript")
    return PlainTextResponse("There is no such page.\n", status_code=404)


def _events(live: LivePage, scope: Scope, since: str) -> Response:
    if live.viewers >= VIEWERS:
        return PlainTextResponse(
            f"{VIEWERS} viewers are connected already; try again later.\n",
            status_code=503,
            headers={"retry-after": "30"},
        )
    if scope["method"] == "HEAD":
        return Response(media_type="text/event-stream")
    # A browser that comes back names the event that it had last.
    since = Headers(scope=scope).get("last-event-id") or since
    return StreamingResponse(live.events(since), media_type="text/event-stream")
