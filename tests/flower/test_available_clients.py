"""Available clients: the members without some, in order, however many there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedvision.flower.available_clients import AvailableClients, AvailableNodes, Excluding
from fedvision.flower.client_registry import SimulatedClientRegistry
from tests.flower.test_strategy import Members, Nodes


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(-5, 70)))
def test_it_is_the_sequence_without_them(clients: set[int], excluded: set[int]) -> None:
    expected = sorted(clients - excluded)
    found = Excluding(sorted(clients), excluded)
    assert (list(found), len(found)) == (expected, len(expected))
    assert found[1:-1:2] == expected[1:-1:2]
    if expected:
        assert found[-1] == expected[-1]


def test_more_than_fit_into_memory_are_not_unrolled() -> None:
    clients = 10**15
    found = Excluding(range(clients), {3, 500_000, clients - 1})
    assert (len(found), found[3], found[499_998], found[499_999], found[-1]) == (
        clients - 3,
        4,
        499_999,
        500_001,
        clients - 2,
    )


def test_a_view_of_available_clients() -> None:
    client_registry = AvailableClients(SimulatedClientRegistry(clients=5, counts=(2, 3)))
    assert client_registry.present(Nodes()) == range(5)
    client_registry.excluded = frozenset({1, 4})
    assert list(client_registry.present(Nodes())) == [0, 2, 3]
    assert (
        len(client_registry),
        client_registry.counts,
        client_registry.client(1003),
        client_registry.node(3),
    ) == (5, (2, 3), 3, 1003)


def test_a_stock_strategy_sees_available_nodes() -> None:
    nodes = AvailableNodes(Nodes(), Members(Nodes.clients), frozenset({0, 1}))
    assert list(nodes.get_node_ids()) == [100, 102]
    assert [node.node_id for node in nodes.get_nodes()] == [100, 102]
    assert list(AvailableNodes(Nodes(), Members(Nodes.clients), frozenset()).get_node_ids()) == [
        100,
        101,
        102,
        103,
    ]
