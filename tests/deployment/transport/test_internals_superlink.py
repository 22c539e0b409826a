"""Contract tests of the non-public Flower names that internals_superlink.py leans on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedvision.deployment.transport import internals_superlink as names
from tests.deployment.transport.links import close

DATABASE = pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")


def test_client_paths_require_signatures() -> None:
    """The paths of clients are Flower's and all behind its check of signatures."""
    from flwr.superlink.routers.fleet.router import router

    paths = names.fleet_paths()
    assert paths == {route.path for route in router.routes}  # type: ignore[attr-defined]
    assert {"/v1/fleet/activate-node", "/v1/fleet/pull-object", names.GET_RUN} <= paths


def test_signed_headers_are_what_flower_verifies() -> None:
    from types import SimpleNamespace

    from cryptography.hazmat.primitives.asymmetric import ec
    from fastapi import HTTPException
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.superlink.routers.fleet.node_auth import authenticate_node
    from starlette.datastructures import Headers

    key, other = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    call = ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()))

    def verify(headers: dict[str, str]) -> None:
        state = SimpleNamespace(protobuf_request=call)
        authenticate_node(SimpleNamespace(headers=Headers(headers), state=state))  # type: ignore[arg-type]

    good = names.signed_headers(key)
    verify(good)
    assert names.PUBLIC_KEY_HEADER.decode() in {name.lower() for name in good}
    with pytest.raises(HTTPException):
        verify(names.signed_headers(other))


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """A SuperLink's application and its state."""
    app, state = names.superlink(host="127.0.0.1", port=1, database=tmp_path / "sl.db", tls=None, secret=b"s")
    yield app, state
    close(state)


@DATABASE
def test_only_the_state_holds_the_database_open(superlink: tuple[Any, Any], tmp_path: Path) -> None:
    """Flower's own store of objects, which files replace, has let go of it."""
    _, state = superlink
    close(state)
    links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert [link for link in links if link.startswith(str(tmp_path / "sl.db"))] == []


@DATABASE
def test_the_superlink_requires_signed_requests(superlink: tuple[Any, Any]) -> None:
    app, state = superlink
    assert app.state.enable_supernode_auth is True
    assert names.keys(state) == {}


@DATABASE
def test_keys_are_registered_listed_and_removed_for_good(superlink: tuple[Any, Any]) -> None:
    _, state = superlink
    names.register_key(state, b"one", "north")
    node = names.keys(state)[b"one"].node_id
    assert [info.name for info in state.get_node_info(node_ids=[node])] == ["north"]
    with pytest.raises(ValueError, match="already in use"):
        names.register_key(state, b"one", "again")
    names.remove_key(state, node)
    assert names.keys(state) == {}


@DATABASE
def test_owner_of_messages_and_replies(tmp_path: Path) -> None:
    """A message belongs to the node it went to and a reply to the one that sent it."""
    from flwr.server.superlink.linkstate import SqlLinkState
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
    from flwr.supercore.utils import uint64_to_int64
    from flwr.superlink.federation import NoOpFederationManager

    north, south = 2**64 - 5, 6
    store = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME).store()
    state = SqlLinkState(str(tmp_path / "sl.db"), NoOpFederationManager(), store)
    state.initialize()
    with state.session() as session:
        session.add(MessageIns(message_id="asked", dst_node_id=uint64_to_int64(north), created_at=0.0))
        session.add(MessageRes(message_id="told", src_node_id=south))
    assert [names.owner(state, message) for message in ("asked", "told", "none")] == [north, south, None]
    state._engine.dispose()  # type: ignore[union-attr]
