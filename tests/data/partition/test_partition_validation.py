"""A plug-in's lazy sequence of clients is checked client by client; lists and tuples are checked whole."""

from __future__ import annotations

import collections
import pickle
from typing import Any

import numpy as np
import pytest

from fedvision.data.partition.partition_validation import Checked, check_number, is_lazy
from fedvision.errors import DataError, PluginError


class Lazy:
    """Client k has the images k and k + 1, but for one client that is wrong."""

    def __init__(self, clients: int = 5, wrong: Any = None) -> None:
        self.clients, self.wrong = clients, wrong

    def __len__(self) -> int:
        return self.clients

    def __getitem__(self, client: int) -> Any:
        if client == 3 and self.wrong is not None:
            return self.wrong(client) if callable(self.wrong) else self.wrong
        return np.array([client + 1, client], np.int32)


def checked(**args: Any) -> Checked:
    return Checked(source=Lazy(**args), retained=np.arange(10, 18), where="[partition] use = 'x'")


def test_a_size_is_the_sources_where_it_has_one() -> None:
    class Sized(Lazy):
        def size(self, client: int) -> int:
            return 100 + client

    assert checked().size(2) == 2
    assert Checked(source=Sized(), retained=np.arange(18), where="").size(2) == 102


def test_clients_come_sorted_as_numbers_of_the_data_set() -> None:
    clients = checked()
    assert len(clients) == 5
    assert clients[0].tolist() == [10, 11]
    assert clients[-1].tolist() == [14, 15]
    assert clients[np.int64(2)].dtype == np.int64
    assert [part[0] for part in clients] == [10, 11, 12, 13, 14]
    assert pickle.loads(pickle.dumps(clients))[1].tolist() == [11, 12]
    with pytest.raises(IndexError):
        clients[5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "left client 3 without images; each needs at least one"),
        ([0, 8], "gave client 3 images 0 to 8, not 0 to 7"),
        ([-1], "gave client 3 images -1 to -1, not 0 to 7"),
        ([1.0, 2.0], r"gave client 3 float64 \[2\]; it must be whole numbers \[n\]"),
        ([[1], [2]], r"gave client 3 int64 \[2, 1\]; it must be whole numbers \[n\]"),
        ([5, 1, 5], "gave client 3 image 5 twice; a client has an image at most once"),
    ],
)
def test_a_wrong_client_is_named_on_access(wrong: Any, message: str) -> None:
    clients = checked(wrong=wrong)
    assert clients[2].tolist() == [12, 13]
    with pytest.raises(DataError, match=rf"^\[partition\] use = 'x' {message}$"):
        clients[3]


@pytest.mark.parametrize("error", [ValueError("no idea"), IndexError("no idea"), TypeError("no idea")])
def test_a_sequence_that_fails_is_named(error: Exception) -> None:
    def fail(client: int) -> None:
        raise error

    with pytest.raises(PluginError, match=r"use = 'x' failed for client 3: no idea"):
        checked(wrong=fail)[3]


def test_what_is_lazy() -> None:
    assert is_lazy(Lazy())
    assert is_lazy(collections.deque([1]))
    for parts in ([1], (1,), "ab", b"ab", {0: 1}, np.zeros((2, 2)), None, iter([1])):
        assert not is_lazy(parts)


def test_another_number_of_clients_is_refused() -> None:
    check_number(Lazy(4), 4, "x")
    check_number([[1], [2]], 2, "x")
    message = "x must return a list of 5 index arrays, one per client, not"
    for parts, found in [(Lazy(4), 4), ([[1]], 1), ({0: 1}, "dict"), (np.zeros((5, 2)), "ndarray")]:
        with pytest.raises(DataError, match=f"{message} {found}; a lazy sequence with len and"):
            check_number(parts, 5, "x")
