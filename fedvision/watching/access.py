"""Who may see the page: this machine's users, or whoever has the token.

On a loopback address everybody on this machine may look, as the run folder itself decides who may read it.
A page of a foreign site could still reach it by a name of its own that resolves to 127.0.0.1 (DNS rebinding),
so the Host header must name this machine. On any other address a token is demanded, as a bearer token or as
a cookie that ``/?token=...`` sets. The cookie is made of the token and is not the token.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import Scope

from fedvision.deployment.server.limits import TokenBuckets, peer_name
from fedvision.deployment.transport.proxies import is_loopback
from fedvision.errors import ConfigError

SHORTEST = 16
"""Characters of a token at least."""
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""On every answer. Attributes of style are allowed, as widths of bars and pictures have them; no style sheet
and no script but the page's own."""
_TRIES, _TRIES_A_SECOND = 10.0, 0.2


def read_token(file: Path) -> str:
    """Return the token in a file.

    Raises:
        ConfigError: It cannot be read, others can read it too, or it is no token.
    """
    try:
        mode = stat.S_IMODE(os.stat(file).st_mode)
        text = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        text, mode = "", 0
    except OSError as error:
        raise ConfigError(f"--token-file {file}: it cannot be read: {error.strerror}") from error
    if mode & 0o077 and os.name == "posix":
        raise ConfigError(
            f"--token-file {file}: it can be read by other users of this machine (mode {mode:o}): chmod 600"
        )
    if len(text) < SHORTEST or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(
            f"--token-file {file}: it must hold one word of at least {SHORTEST} ASCII characters, such as "
            "`openssl rand -hex 16` prints"
        )
    return text


class Guard:
    """Looks at each request before it is answered.

    Args:
        token: What a viewer must know; None lets everybody on this machine look.
        loopback: Whether the page is on a loopback address.
        port: Its port: cookies do not know ports, so their name has it.
        secure: Whether it is served over TLS.
    """

    def __init__(self, *, token: str | None, loopback: bool, port: int, secure: bool) -> None:
        self._token, self._loopback, self._secure = token, loopback, secure
        self._name = f"fedvision-watch-{port}"
        key = (token or "").encode()
        self._cookie = hmac.new(key, b"fedvision watch", hashlib.sha256).hexdigest()
        self._tries = TokenBuckets(_TRIES_A_SECOND, _TRIES)

    def refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that gets no page; None where it may have it."""
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse(
                "This page can only be read.\n", status_code=405, headers={"allow": "GET, HEAD"}
            )
        if self._loopback and not is_loopback(_host(headers.get("host", ""))):
            return PlainTextResponse(
                "This page is for this machine alone: open it as localhost or 127.0.0.1.\n", status_code=421
            )
        if self._token is None:
            return None
        return self._without_token(scope, headers)

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        if hmac.compare_digest(_cookie(headers, self._name).encode(), self._cookie.encode()):
            return self._clean() if scope["path"] == "/" and b"token=" in scope["query_string"] else None
        kind, _, given = headers.get("authorization", "").partition(" ")
        bearer = kind.lower() == "bearer"
        if not bearer:
            given = _queried(scope)
        if not given:
            return _unknown("it needs its token")
        if not self._tries.take(peer_name(scope["client"][0])):
            return PlainTextResponse(
                "There were too many tries with a wrong token; try again in a minute.\n",
                status_code=429,
                headers={"retry-after": "60"},
            )
        if not hmac.compare_digest(given.strip().encode(), (self._token or "").encode()):
            return _unknown("the token is wrong")
        return None if bearer else self._welcome()

    def _clean(self) -> Response:
        return RedirectResponse("/", status_code=303)

    def _welcome(self) -> Response:
        """Return the way to the address without the token, which then stands in no history."""
        answer = self._clean()
        answer.set_cookie(self._name, self._cookie, httponly=True, secure=self._secure, samesite="lax")
        return answer


def _unknown(why: str) -> Response:
    return PlainTextResponse(
        f"This page cannot be shown: {why}. Open it with /?token=TOKEN, or send `Authorization: Bearer "
        "TOKEN`.\n",
        status_code=401,
        headers={"www-authenticate": "Bearer"},
    )


def _host(header: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _queried(scope: Scope) -> str:
    if scope["path"] != "/":
        return ""
    return next(iter(parse_qs(scope["query_string"].decode("latin-1")).get("token", ())), "")
