"""By which way a call leaves this machine: straight, or through the proxy that the environment names.

Connections to a server use this module, so that a check goes the way that the client will go. What stays on
this machine never goes through a proxy.
"""

from __future__ import annotations

import ipaddress
from base64 import b64encode
from collections.abc import MutableMapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from fedvision.errors import ConfigError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Proxy(NamedTuple):
    """A proxy that is reached by plain HTTP."""

    url: str
    """As the environment names it."""
    host: str
    port: int
    headers: dict[str, str]
    """Its credentials, where the environment holds a password."""

    @property
    def name(self) -> str:
        """Its address, without a password."""
        return f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(scheme: str, host: str) -> Proxy | None:
    """Return the proxy through which a host is reached with ``"https"`` or ``"http"``, or None.

    Raises:
        ConfigError: The environment names one that cannot be used.
    """
    found = getproxies()
    url = found.get(scheme) or found.get("all")
    if not url or is_loopback(host) or proxy_bypass(host):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port:
        raise ConfigError(
            f"{scheme.upper()}_PROXY: {parts.scheme}://{parts.hostname}: only http://HOST:PORT proxies can "
            f"be used; correct it, or put {host} into NO_PROXY"
        )
    headers = {}
    if parts.username:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["proxy-authorization"] = f"Basic {b64encode(secret.encode()).decode()}"
    return Proxy(parts.geturl(), parts.hostname, port, headers)


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Let processes that are given an environment reach this machine itself without a proxy."""
    before = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    named = [name.strip() for name in before.split(",") if name.strip()]
    if "*" not in named:
        named += [name for name in _LOOPBACK if name not in named]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(named)
