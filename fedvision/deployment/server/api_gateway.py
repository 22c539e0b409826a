"""The public side of the server, as an ASGI application: only Fleet calls of known keys, within limits.

Every check here happens before Flower sees a byte of the body, and who calls is settled before a byte of it
is read: a public key is no secret, and only its holder can sign the time. That the call's node is the key's
is Flower's own check; that the messages in it are this node's is one of ours.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Mapping, Set
from time import monotonic

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedvision.deployment.server import server_log
from fedvision.deployment.server.keyring import fingerprint
from fedvision.deployment.server.limits import LITTLE, Held, Limits, MemoryBudget, TokenBuckets, peer_name
from fedvision.deployment.transport import internals_superlink
from fedvision.deployment.transport.internals_bundle import FLEET
from fedvision.deployment.transport.internals_message_objects import EMPTY_HEADER

HEALTH = "/health"
_LONG_S = 3600.0
_START = 1 << 16
_TICK_S = 1.0
"""How often a body that rests is looked at."""
_BRINGS = {internals_superlink.PUSH_MESSAGES, internals_superlink.PUSH_OBJECT, FLEET}
"""The calls with large bodies; all others are questions."""
UNKNOWN_KEY = (
    "The server does not know this client's key; send the .pub file to the server's administrator, who puts "
    "it into the server's folder of client keys."
)
REMOVED_KEY = (
    "This client was removed from the federation: its key is no longer in the server's folder of client "
    "keys. It comes back only with a new key; ask the server's administrator."
)
NOT_SIGNED = (
    "Invalid SuperNode authentication: the call is not signed with its key, or this machine's clock is far "
    "from the server's."
)
log = logging.getLogger("fedvision.deployment")


class Refusal(Exception):
    """A request that is not passed on.

    Args:
        status: HTTP status.
        reason: One sentence for the log and the peer.
        code: Flower's error code, which its clients print with the sentence.
        detail: What the log adds for the server's administrator.
    """

    def __init__(self, status: int, reason: str, code: int = 0, detail: str = "") -> None:
        self.status, self.reason, self.code, self.detail = status, reason, code, detail
        super().__init__(reason)


class ApiGateway:
    """Pass the Fleet calls of clients whose key is known, and ``/health``; refuse everything else.

    Which connections come here is decided by the socket that accepted them, not by anything in the request.

    Args:
        app: Flower's application.
        known: Returns the public keys (PEM) that may call, and their clients' names; called at every request.
        limits: Limits of one peer.
        clock: Seconds that only rise.
        redeliver: As ``internals_superlink.redeliver`` on the SuperLink's state.
        owner: As ``internals_superlink.owner`` on the SuperLink's state.
        announced: As ``internals_superlink.announced`` on the SuperLink's state.
        removed: Returns the public keys that were known once, and their clients' names.
    """

    def __init__(
        self,
        app: ASGIApp,
        known: Callable[[], Mapping[bytes, str]],
        limits: Limits,
        clock: Callable[[], float] = monotonic,
        redeliver: Callable[[int, float], int] = lambda node, seconds: 0,
        owner: Callable[[str], int | None] = lambda message: None,
        announced: Callable[[str], Set[str] | None] = lambda message: None,
        removed: Callable[[], Mapping[bytes, str]] = dict,
    ) -> None:
        self._app, self._known, self._limits, self._clock = app, known, limits, clock
        self._redeliver, self._owner, self._removed = redeliver, owner, removed
        self._announced = announced
        self._addresses: dict[bytes, str] = {}
        self._paths = internals_superlink.fleet_paths() | {FLEET}
        self._buckets = TokenBuckets(limits.requests, limits.burst, clock)
        self._budget = MemoryBudget(limits.body_memory, limits.key_bodies, self._on_wait)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            # No websockets here; the lifespan is the private side's.
            return
        peer = peer_name(scope["client"][0]) if scope.get("client") else "unknown"
        try:
            if not self._buckets.take(peer):
                # 503: Flower's clients try again on it, as they would not on 429.
                raise Refusal(503, f"more than {self._limits.requests:g} requests a second; try again later")
            self._check_path(scope)
            if scope["path"] != HEALTH:
                key = self._check_key(scope)
                await self._check_signature(scope, key)
                self._note_address(key, peer)
                await self._read_and_pass(scope, key, receive, send)
                return
        except Refusal as refusal:
            key = _key_in(scope)
            client = (self._known().get(key) or self._removed().get(key, "")) if key else ""
            shown = fingerprint(key) if key else ""
            server_log.refuse(peer, refusal.reason, refusal.detail, client, shown)
            # The connection ends: what is still to come of the body is not read.
            headers = {"connection": "close"} | ({"retry-after": "1"} if refusal.status == 503 else {})
            content = {"code": refusal.code, "detail": refusal.reason}
            await JSONResponse(content, refusal.status, headers)(scope, receive, send)
            return
        await self._app(scope, internals_superlink.replay([b""], receive), send)

    async def _read_and_pass(self, scope: Scope, key: bytes, receive: Receive, send: Send) -> None:
        """Pass a request on once its body is here; a large one is read when there is room for it."""
        most = self._limits.body if scope["path"] in _BRINGS else min(self._limits.body, LITTLE)
        declared = _declared(scope)
        if (declared or 0) > most:
            raise Refusal(413, f"a body of more than {most} bytes")
        async with self._budget.take(key, most if declared is None else declared) as held:
            body = await self._body(receive, most, held)
            self._budget.shrink(held, sum(map(len, body)))
            await self._check_names(scope["path"], key, body)
            seconds = _empty_for(scope)
            if seconds is None:
                await self._app(scope, internals_superlink.replay(body, receive), send)
            else:
                await self._pass_heartbeat(scope, body, seconds, receive, send)

    def _on_wait(self, key: bytes, holders: Counter[bytes]) -> None:
        """Log who waits for room, and for whom."""
        names, removed = self._known(), "a removed client"
        listed = ", ".join(
            f"{names.get(holder, removed)} {bodies}" for holder, bodies in holders.most_common()
        )
        what = "has waited 10 s for room to send to the server"
        server_log.warn(names.get(key, removed), what, f"; bodies under way: {listed}")

    async def _pass_heartbeat(
        self, scope: Scope, body: list[bytes], seconds: float, receive: Receive, send: Send
    ) -> None:
        """Pass a heartbeat on; where Flower finds it good, the client may have again what it did not get."""
        statuses: list[int] = []
        payload = b"".join(body)

        async def watched(message: Message) -> None:
            statuses.append(message.get("status", 0))
            await send(message)

        await self._app(scope, internals_superlink.replay(body, receive), watched)
        if statuses[:1] == [200]:
            node = internals_superlink.heartbeat_node(payload)
            if again := await asyncio.to_thread(self._redeliver, node, seconds):
                log.info("node %d did not get what it was given: %d messages are given again", node, again)

    def _note_address(self, key: bytes, peer: str) -> None:
        """Log from where a client calls, unless that is known."""
        if self._addresses.get(key) != peer:
            self._addresses[key] = peer
            server_log.connected(peer, self._known().get(key, ""), fingerprint(key))

    def _check_path(self, scope: Scope) -> None:
        method, path = scope["method"], scope["path"]
        # The path as it came in must be the path that Flower will see: no %2e, no //, no ...
        plain = scope.get("raw_path", path.encode()) == path.encode()
        is_health = path == HEALTH and method == "GET"
        if not plain or not (is_health or (path in self._paths and method == "POST")):
            raise Refusal(403, "only clients' calls are served on this port")
        if is_health and _declared(scope) != 0:
            # Nobody would read it, and uvicorn would wait for its end.
            raise Refusal(413, "a question for health has no body")

    def _check_key(self, scope: Scope) -> bytes:
        """Return the key under which a call comes."""
        key = _key_in(scope)
        if key in self._known():
            return key
        # Flower's client prints the code and the sentence of a refused activation, and stops on 401.
        status = 412 if scope["path"].endswith("/activate-node") else 401
        name = self._removed().get(key)
        reason = UNKNOWN_KEY if name is None else REMOVED_KEY
        detail = f" [{fingerprint(key) if name is None else name}]"
        raise Refusal(status, reason, internals_superlink.NOT_ACTIVATED, detail)

    async def _check_signature(self, scope: Scope, key: bytes) -> None:
        """Refuse who knows a client's public key and not its private one."""
        names = (internals_superlink.TIME_HEADER, internals_superlink.SIGNATURE_HEADER)
        time, signature = (_header(scope, name) for name in names)
        # A millisecond of arithmetic, which is done beside the loop that serves everybody.
        if not await asyncio.to_thread(internals_superlink.is_signed, key, time, signature):
            raise Refusal(401, NOT_SIGNED, detail=f" [the key of {self._known().get(key)}]")

    async def _check_names(self, path: str, key: bytes, body: list[bytes]) -> None:
        """Refuse a call that names another node than the one that signed it, or that announces too much."""
        if path in internals_superlink.NAMING:
            parts = b"".join(body), self._owner, self._announced, self._limits.objects
            if wrong := await asyncio.to_thread(internals_superlink.wrong_with, path, *parts):
                raise Refusal(403, wrong, detail=f" [{self._known().get(key)}]")

    async def _body(self, receive: Receive, most: int, held: Held) -> list[bytes]:
        """Read a body of at most ``most`` bytes within the limits of time, in the room that it has.

        Returns:
            A small body as a whole; of a large one the first ``_START`` bytes or more, and the rest as it
            came, since to join 15 MiB is to copy them.
        """
        pace, size = _Pace(self._limits, self._clock, lambda: self._budget.wanted(held)), 0
        parts = [b""]
        while True:
            message = await self._next(receive, pace, size)
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the connection ended inside a body")
            part = message.get("body", b"")
            size += len(part)
            if len(parts[0]) < _START:
                parts[0] += part
            else:
                parts.append(part)
            if size > most:
                raise Refusal(413, f"a body of more than {most} bytes")
            if not message.get("more_body", False):
                return parts
            pace.check(size)

    async def _next(self, receive: Receive, pace: _Pace, size: int) -> Message:
        """Return the next part of a body; one that rests is looked at every second."""
        idle, loop = self._limits.idle_seconds, asyncio.get_running_loop()
        until = loop.time() + idle
        while True:
            try:
                return await asyncio.wait_for(receive(), min(_TICK_S, idle))
            except TimeoutError:
                if loop.time() >= until:
                    raise Refusal(408, f"no byte of the body in {idle:g} seconds") from None
                pace.check(size)


class _Pace:
    """How fast a body comes, from its beginning and from the moment when others wait for its room."""

    def __init__(self, limits: Limits, clock: Callable[[], float], wanted: Callable[[], bool]) -> None:
        self._limits, self._clock, self._wanted = limits, clock, wanted
        self._began = clock()
        self._mark: tuple[float, int] | None = None

    def check(self, size: int) -> None:
        """Refuse a body of which ``size`` bytes are here if it is too slow."""
        limits, now = self._limits, self._clock()
        if now - self._began > limits.header_seconds + size / limits.body_rate:
            raise Refusal(408, f"a body slower than {limits.body_rate:g} bytes a second")
        if not self._wanted():
            self._mark = None
            return
        since, before = self._mark = self._mark or (now, size)
        if now - since > limits.header_seconds + (size - before) / limits.busy_rate:
            # 503: its client tries again, and perhaps nobody waits then.
            raise Refusal(503, f"a body slower than {limits.busy_rate:g} bytes a second while others wait")


def _key_in(scope: Scope) -> bytes:
    """Return the public key (PEM) that a call bears, nothing where it is none."""
    try:
        return b64decode(_header(scope, internals_superlink.PUBLIC_KEY_HEADER), validate=True)
    except binascii.Error:
        return b""


def _header(scope: Scope, name: bytes) -> bytes:
    """Return a header's value, nothing where it is missing or there are several: it is not ours to guess."""
    found = [value for header, value in scope["headers"] if header == name]
    return found[0] if len(found) == 1 else b""


def _declared(scope: Scope) -> int | None:
    """Return the body's length as declared, 0 where there is none, None where only its end shows it."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    return int(headers.get(b"content-length", b"0"))  # h11 lets digits alone through


def _empty_for(scope: Scope) -> float | None:
    """Return for how many seconds a client has had no message in hand, None where it does not send that."""
    if not scope["path"].endswith("/send-node-heartbeat"):
        return None
    declared = dict(scope["headers"]).get(EMPTY_HEADER.encode(), b"")
    try:
        seconds = float(declared)
    except ValueError:
        return None
    return seconds if 0 <= seconds < _LONG_S else None
