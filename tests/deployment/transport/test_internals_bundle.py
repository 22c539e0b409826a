"""Objects that travel together: whole, or refused before anything is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.state.schema.corestate_models import ObjectPushSession
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from fedvision.deployment.transport import internals_bundle
from fedvision.deployment.transport.internals_bundle import (
    FLEET,
    Bundle,
    BundleResponse,
    bundles,
    push_small,
    store_together,
)
from fedvision.deployment.transport.internals_message_objects import LinkDown
from fedvision.deployment.transport.internals_superlink import superlink
from tests.deployment.transport.links import close
from tests.deployment.transport.test_internals_store import RUN, message

# Flower's set-up of its database warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")


def request(number: int, content: bytes, node: int = 5) -> PushObjectRequest:
    return PushObjectRequest(
        node=Node(node_id=node), run_id=7, object_id=str(number), object_content=content, session_id="s"
    )


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6), st.data())
def test_a_bundle_comes_back_and_half_of_one_does_not(contents: list[bytes], data: st.DataObject) -> None:
    (sent,) = bundles(request(number, content) for number, content in enumerate(contents))
    body = sent.SerializeToString()
    assert Bundle.FromString(body) == sent
    cut = data.draw(st.integers(0, len(body) - 1))
    with contextlib.suppress(DecodeError):
        assert len(Bundle.FromString(body[:cut]).requests) < len(contents), "it was cut between two objects"


@pytest.mark.parametrize("nodes", [[5, 6], [6, 5], [6], []])
def test_a_bundle_has_one_sender(nodes: list[int]) -> None:
    sent = Bundle(node=Node(node_id=5), requests=[request(1, b"a", node=node) for node in nodes])
    with pytest.raises(ValueError, match="one sender"):
        store_together(None, RUN, sent)  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", [[], [True], [True] * 3])
def test_each_object_is_answered_for(stored: list[bool]) -> None:
    client = SimpleNamespace(_unary_unary=lambda **_: BundleResponse(stored=stored))
    requests = [request(1, b"a"), request(2, b"b")]
    with pytest.raises(LinkDown, match="an answer for each object"):
        list(push_small(client, FLEET, requests))
    stored[:] = [True, False]
    assert list(push_small(client, FLEET, requests)) == list(zip(requests, stored, strict=True))


def test_what_is_much_goes_in_several_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals_bundle, "_FULL", 10)
    requests = [request(number, b"x" * 6) for number in range(5)]
    made = list(bundles(requests))
    assert [len(one.requests) for one in made] == [2, 2, 1]
    assert [one for part in made for one in part.requests] == requests
    assert list(bundles([])) == []


class Waiting:
    """A SuperLink's state with a database, which waits for the objects of a message.

    Args:
        folder: Where the database goes.
    """

    def __init__(self, folder: Path) -> None:
        _, self.state = superlink(host="", port=1, database=folder / "link.db", tls=None, secret=b"s")
        self._session = self.state.start_session(RUN)
        self.tree, self.objects = message(1.0)
        self.state.preregister_object_tree(self.tree, self._session)

    def bundle(self, **instead: bytes) -> Any:
        """Return all objects in the order of sending, some with another content."""
        node = Node(node_id=5)
        named = {"run_id": RUN, "session_id": self._session}
        requests = [
            PushObjectRequest(node=node, object_id=name, object_content=instead.get(name, content), **named)
            for name, content in self.objects.items()
        ]
        return Bundle(node=node, requests=requests)

    def held(self) -> dict[str, bytes | None]:
        return {name: self.state.get_object(RUN, name) for name in self.objects}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Waiting]:
    made = Waiting(tmp_path)
    yield made
    close(made.state)


def test_a_bundle_is_kept_once_and_nothing_is_waited_for_any_more(here: Waiting) -> None:
    assert store_together(here.state, RUN, here.bundle()) == [True] * len(here.objects)
    assert here.held() == here.objects
    assert store_together(here.state, RUN, here.bundle()) == [False] * len(here.objects)
    with here.state.session() as session:
        assert session.scalars(select(ObjectPushSession.session_id)).all() == []


def test_who_sees_the_last_object_may_have_them_all_forgotten(
    here: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = here.state.object_store
    put = store.put

    def seen(name: str, content: bytes) -> None:
        put(name, content)
        if name == list(here.objects)[-1]:
            store.delete(here.tree.object_id)

    monkeypatch.setattr(store, "put", seen)
    assert store_together(here.state, RUN, here.bundle()) == [True] * len(here.objects)


@pytest.mark.parametrize("place", [0, 2, -1])
def test_object_that_is_not_taken(here: Waiting, place: int) -> None:
    """An object that is not taken is still waited for and the others are kept."""
    names = list(here.objects)
    forged = here.bundle(**{names[place]: b"another"})
    assert store_together(here.state, RUN, forged) == [name != names[place] for name in names]
    assert store_together(here.state, RUN, here.bundle()) == [name == names[place] for name in names]
    assert here.held() == here.objects
