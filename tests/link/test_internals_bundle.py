"""Objects that travel together: whole, or refused before anything is kept."""

from __future__ import annotations

import pytest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from hypothesis import given
from hypothesis import strategies as st

from fedvision.link import internals_bundle
from fedvision.link.internals_bundle import Bundle, Told, bundles


def request(number: int, content: bytes, node: int = 5) -> PushObjectRequest:
    return PushObjectRequest(
        node=Node(node_id=node), run_id=7, object_id=str(number), object_content=content, session_id="s"
    )


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6), st.data())
def test_a_bundle_comes_back_and_half_of_one_does_not(contents: list[bytes], data: st.DataObject) -> None:
    sent = Bundle(tuple(request(number, content) for number, content in enumerate(contents)))
    body = sent.SerializeToString()
    assert Bundle.FromString(body) == sent
    cut = data.draw(st.integers(0, len(body) - 1))
    try:
        assert len(Bundle.FromString(body[:cut]).requests) < len(contents), "it was cut between two objects"
    except ValueError:
        pass


def test_a_bundle_has_one_sender() -> None:
    both = Bundle((request(1, b"a", node=5), request(2, b"b", node=6)))
    with pytest.raises(ValueError, match="one sender"):
        Bundle.FromString(both.SerializeToString())
    with pytest.raises(ValueError, match="one sender"):
        Bundle.FromString(b"")


@given(st.lists(st.booleans(), max_size=9))
def test_each_object_is_answered_for(stored: list[bool]) -> None:
    told = Told()
    told.ParseFromString(Told(stored).SerializeToString())
    assert list(told.stored) == stored


def test_what_is_much_goes_in_several_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals_bundle, "_FULL", 10)
    requests = [request(number, b"x" * 6) for number in range(5)]
    made = list(bundles(requests))
    assert [len(one.requests) for one in made] == [2, 2, 1]
    assert [one for part in made for one in part.requests] == requests
    assert list(bundles([])) == []
