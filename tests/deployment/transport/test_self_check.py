"""Under a version of flwr that is none of those tested shortcuts are left out, or nothing starts.

Such a version is the installed one with a name taken away or changed, and another number.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Message

from fedvision.deployment.server.options import SuperlinkOptions
from fedvision.deployment.server.superlink_process import SuperlinkProcess
from fedvision.deployment.transport import (
    internals_bundle,
    internals_fast_path,
    internals_message_objects,
    internals_store,
    internals_superlink,
    self_check,
)
from fedvision.deployment.transport.internals_fleet import FleetLink
from fedvision.errors import ConfigError
from tests.deployment.transport.test_internals_link import content, key, running, value

NUMBER = """
from importlib import metadata
found = metadata.version
metadata.version = lambda name: "1.43.0" if name == "flwr" else found(name)
"""
WITHOUT_LINKSTATE = """
import flwr.superlink.main, flwr.superlink.dependencies.linkstate as linkstate
del linkstate.get_linkstate
"""
WITHOUT_CLIENT = """
import flwr.supernode.fleet_http_client as client
del client.FleetHttpClient
"""


@pytest.fixture
def other_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose ``sitecustomize.py`` every Python process that starts from now on runs first."""
    folder = tmp_path / "other"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_the_installed_version_fits() -> None:
    self_check.require_transport("internals_fleet", "internals_run", "internals_superlink")
    assert self_check.server_shortcuts() == ""
    assert self_check.client_shortcuts() == ""


@pytest.mark.parametrize(
    ("module", "name", "changed"),
    [
        (internals_message_objects, "HEAD_BODY_DIVIDER", b"|"),
        (internals_message_objects, "get_object_tree", lambda message: None),
        (internals_superlink, "verify_signature", lambda key, time, signature: False),
        (internals_superlink, "fleet_paths", lambda: frozenset({"/v2/fleet/push-messages"})),
    ],
    ids=["divider", "tree", "signature", "paths"],
)
def test_a_change_of_what_messages_need_is_refused(
    module: object, name: str, changed: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, changed)
    with pytest.raises(ConfigError, match=r"flwr 1\.4\d.* cannot be used .*install one of these"):
        self_check.require_transport("internals_fleet")


@pytest.mark.parametrize(
    ("module", "name", "changed"),
    [
        (internals_fast_path, "check_abort", lambda run_id: None),
        (internals_fast_path.fleet_handlers, "pull_messages", lambda request, linkstate: None),
        (internals_fast_path.LinkState, "store_traffic", lambda self, run_id, sent, received: None),
        (internals_store, "get_object_id", lambda content: "md5"),
        (internals_store.InMemoryObjectStore, "delete_objects_in_run", lambda self, run: None),
    ],
    ids=["check", "handler", "traffic", "digest", "store"],
)
def test_a_change_of_what_shortcuts_need_leaves_them_out(
    module: object, name: str, changed: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, changed)
    assert "Flower's own way" in self_check.server_shortcuts()
    self_check.require_transport("internals_fleet")


def test_changed_object_format_disables_the_clients_shortcut(
    monkeypatch: pytest.MonkeyPatch, pki: Path
) -> None:
    """A change of how objects are written leaves the client's shortcut out."""
    monkeypatch.setattr(internals_bundle, "varint", lambda size: size.to_bytes(4, "big"))
    assert "Flower's own way" in self_check.client_shortcuts()
    link = FleetLink("localhost:1", key(pki), roots=pki / "ca.crt", slower=True)
    assert not link._bulk.direct
    link.close()


@pytest.mark.slow
def test_messages_travel_without_shortcuts(other_version: Path, pki: Path, tmp_path: Path) -> None:
    """A real SuperLink of a version that lacks a name; one with shortcuts used its folder before.

    It keeps its number: Flower itself refuses a peer of another minor version.
    """
    (other_version / "sitecustomize.py").write_text(WITHOUT_LINKSTATE)
    state, server = tmp_path / "superlink", pki / "server"
    objects = state / "superlink.objects"
    objects.mkdir(parents=True)
    (objects / "boot").write_text("an earlier one")
    requested_place = SuperlinkOptions(
        tls=server, clients=server / "clients", state=state, public="127.0.0.1:0", private="127.0.0.1:0"
    )
    process = SuperlinkProcess(requested_place)
    place = process.open()
    try:
        assert "messages go Flower's own way" in process.notice
        assert "get_linkstate" in process.notice
        client = FleetLink(place.public, key(pki), roots=pki / "ca.crt")
        with running(place, client, objects=place.objects) as (link, node):
            (sent,) = link.push([Message(content(2.0), node, "train")])
            received = client.receive()
            assert received is not None
            incoming = client.incoming(received)
            assert value(incoming) == 2.0
            client.answer(Message(content(3.0), reply_to=incoming.head), 0.1)
            client.confirm(incoming)
            (back,) = link.pull([sent])
            assert value(back) == 3.0
            link.confirm(back)
        client.close()
        assert not list(objects.glob("*")), "nothing is kept in files"
    finally:
        process.stop()


def test_a_client_of_such_a_version_ends_with_a_sentence(other_version: Path, tmp_path: Path) -> None:
    (other_version / "sitecustomize.py").write_text(NUMBER + WITHOUT_CLIENT)
    program = (
        "from fedvision.deployment.transport.self_check import require_transport as check\n"
        "from fedvision.errors import ConfigError\n"
        "try:\n    check('internals_fleet')\nexcept ConfigError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("flwr 1.43.0 cannot be used for a deployment (ImportError: cannot import")
    assert "tested with flwr 1.41 and 1.42" in done.stdout
