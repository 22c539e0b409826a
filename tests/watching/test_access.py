"""Who may see the page, and with which headers it goes out."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from fedvision.errors import ConfigError
from fedvision.watching.access import Guard, read_token
from fedvision.watching.app import application
from fedvision.watching.followed_run import FollowedRun
from fedvision.watching.live import LivePage
from tests.watching.sample import WrittenRun

TOKEN = "correct-horse-battery"


def client(
    tmp_path: Path, *, token: str | None = None, loopback: bool = True, base: str = "http://127.0.0.1:8050"
) -> httpx.AsyncClient:
    guard = Guard(token=token, loopback=loopback, port=8050, secure=not loopback)
    app = application(LivePage(FollowedRun(tmp_path / "run")), guard)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base)


async def _every_answer_has_a_strict_policy(tmp_path: Path) -> None:
    async with client(tmp_path) as browser:
        for path, status in (("/", 200), ("/watch.js", 200), ("/metrics", 200), ("/nothing", 404)):
            answer = await browser.get(path)
            assert answer.status_code == status
            assert answer.headers["cache-control"] == "no-store"
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"


async def _only_this_machines_names_reach_a_loopback_page(tmp_path: Path) -> None:
    async with client(tmp_path) as browser:
        for host in ("localhost", "localhost:9000", "127.0.0.1:8050", "[::1]:8050", "LOCALHOST:1"):
            assert (await browser.get("/", headers={"host": host})).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example:8050", "0.0.0.0:8050", ""):
            answer = await browser.get("/", headers={"host": host})
            assert answer.status_code == 421
            assert "this machine alone" in answer.text


async def _the_page_can_only_be_read(tmp_path: Path) -> None:
    async with client(tmp_path) as browser:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            answer = await browser.request(method, "/")
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        assert (await browser.head("/")).status_code == 200


async def _a_token_opens_the_page_once_and_then_a_cookie(tmp_path: Path) -> None:
    async with client(tmp_path, token=TOKEN, loopback=False, base="https://fl.example:8050") as browser:
        refused = await browser.get("/")
        assert refused.status_code == 401
        assert "it needs its token" in refused.text
        assert (await browser.get("/metrics")).status_code == 401
        assert (await browser.get("/events")).status_code == 401
        welcome = await browser.get(f"/?token={TOKEN}")
        assert (welcome.status_code, welcome.headers["location"]) == (303, "/")
        cookie = welcome.headers["set-cookie"]
        assert TOKEN not in cookie
        for word in ("HttpOnly", "Secure", "SameSite=lax"):
            assert word in cookie
        assert (await browser.get("/")).status_code == 200  # with the cookie
        again = await browser.get(f"/?token={TOKEN}")
        assert again.headers["location"] == "/"  # the address is made clean all the same


async def _a_bearer_token_is_for_programs(tmp_path: Path) -> None:
    async with client(tmp_path, token=TOKEN, loopback=False) as browser:
        right = {"authorization": f"Bearer {TOKEN}"}
        assert (await browser.get("/metrics", headers=right)).status_code == 200
        for wrong in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer ", TOKEN):
            assert (await browser.get("/metrics", headers={"authorization": wrong})).status_code == 401
        assert (
            await browser.get(f"/metrics?token={TOKEN}")
        ).status_code == 401  # an address is no place for it
        assert (await browser.get("/", headers={"cookie": "fedvision-watch-8050=; a"})).status_code == 401


async def _who_tries_tokens_is_held_up_and_who_has_the_cookie_is_not(tmp_path: Path) -> None:
    async with client(tmp_path, token=TOKEN, loopback=False, base="https://fl.example:8050") as browser:
        await browser.get(f"/?token={TOKEN}")
        cookies = dict(browser.cookies)
        browser.cookies.clear()
        tries = [
            (await browser.get("/", headers={"authorization": f"Bearer {n}"})).status_code for n in range(12)
        ]
        assert tries[:9] == [401] * 9
        assert tries[-1] == 429
        assert (await browser.get(f"/?token={TOKEN}")).status_code == 429  # not even the right one tells
        browser.cookies.update(cookies)
        assert (await browser.get("/")).status_code == 200


async def _every_address_has_what_the_page_asks_of_it(tmp_path: Path) -> None:
    async with client(tmp_path) as browser:
        assert (await browser.get("/clients?text=site")).text == "", "there is no run yet"
        run = WrittenRun(tmp_path / "run", clients=6, machines=True)
        run.begin()
        run.round()
        found = (await browser.get("/clients?text=SITE-0003")).text
        assert "site-0003" in found
        assert "site-0002" not in found
        assert (await browser.get("/clients?text=%20")).text == ""
        nobody = (await browser.get("/clients?text=%3Cb%3E")).text
        assert nobody.strip() == "<p>No client has “&lt;b&gt;” in its name.</p>"
        style = await browser.get("/watch.css")
        assert (style.status_code, style.headers["content-type"]) == (200, "text/css; charset=utf-8")
        assert "{" in style.text
        beginning = await browser.head("/events")
        assert (beginning.status_code, beginning.text) == (200, "")
        assert beginning.headers["content-type"].startswith("text/event-stream")


async def _a_damaged_cookie_opens_nothing(tmp_path: Path) -> None:
    async with client(tmp_path, token=TOKEN, loopback=False, base="https://fl.example:8050") as browser:
        answer = await browser.get("/", headers={"cookie": "a,b=1; fedvision-watch-8050=x"})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    "check",
    [
        _every_address_has_what_the_page_asks_of_it,
        _a_damaged_cookie_opens_nothing,
        _every_answer_has_a_strict_policy,
        _only_this_machines_names_reach_a_loopback_page,
        _the_page_can_only_be_read,
        _a_token_opens_the_page_once_and_then_a_cookie,
        _a_bearer_token_is_for_programs,
        _who_tries_tokens_is_held_up_and_who_has_the_cookie_is_not,
    ],
)
def test_access(check: object, tmp_path: Path) -> None:
    import asyncio

    asyncio.run(check(tmp_path))  # type: ignore[operator]


def test_a_token_file_is_for_its_owner_and_holds_one_long_word(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match=r"other users of this machine \(mode 644\): chmod 600"):
        read_token(file)
    file.chmod(0o600)
    assert read_token(file) == TOKEN
    for text in (b"short", b"two words that are long", "größe-größe-größe".encode(), b"\xff" * 20, b""):
        file.write_bytes(text)
        with pytest.raises(ConfigError, match="one word of at least 16"):
            read_token(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")
