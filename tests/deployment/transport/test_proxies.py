"""Which way a call leaves the machine."""

from __future__ import annotations

import pytest

from fedvision.deployment.transport.proxies import proxy_for, spare_loopback
from fedvision.errors import ConfigError

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_what_stays_on_this_machine_goes_straight(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.1:3128")
    assert proxy_for("https", host) is None


@pytest.mark.parametrize(
    ("name", "value", "no", "way"),
    [
        ("HTTPS_PROXY", "http://192.0.2.1:3128", "", "192.0.2.1:3128"),
        ("https_proxy", "192.0.2.1:3128", "", "192.0.2.1:3128"),
        ("ALL_PROXY", "http://proxy.example", "", "proxy.example:80"),
        ("HTTP_PROXY", "http://192.0.2.1:3128", "", None),
        ("HTTPS_PROXY", "http://192.0.2.1:3128", "example.org", None),
        ("HTTPS_PROXY", "http://192.0.2.1:3128", "*", None),
        ("HTTPS_PROXY", "http://192.0.2.1:3128", "other.org", "192.0.2.1:3128"),
    ],
)
def test_the_environment_names_the_proxy_and_its_exceptions(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, no: str, way: str | None
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", no)
    found = proxy_for("https", "fl.example.org")
    assert (found.name if found else None) == way


def test_a_proxys_password_is_sent_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:p%40ss@proxy:3128")
    found = proxy_for("https", "fl.example.org")
    assert found is not None
    assert found.headers == {"proxy-authorization": "Basic YW5uOnBAc3M="}
    assert found.name == "proxy:3128"


@pytest.mark.parametrize(
    "value", ["socks5://ann:secret@proxy:1080", "https://proxy:443", "http://proxy:99999"]
)
def test_a_proxy_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ConfigError, match="only http://HOST:PORT proxies can be used") as caught:
        proxy_for("https", "fl.example.org")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "a.org, localhost"}, "a.org,localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_processes_reach_their_own_machine(before: dict[str, str], after: str) -> None:
    spare_loopback(before)
    assert before["no_proxy"] == before["NO_PROXY"] == after
