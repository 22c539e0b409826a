"""The order of work: longest first, shares that shrink, every task once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedvision.engines.ray.task_queue import LEAST, SHARES, TaskQueue


@given(
    costs=st.lists(st.floats(0.1, 100), max_size=60),
    workers=st.integers(1, 5),
    most=st.integers(1, 10),
    lost=st.integers(0, 3),
)
def test_every_task_is_taken_once_even_after_it_was_put_back(
    costs: list[float], workers: int, most: int, lost: int
) -> None:
    queue = TaskQueue(costs, most)
    done: list[int] = []
    while len(queue):
        batch = queue.take(workers)
        assert 1 <= len(batch) <= most
        if lost:
            lost -= 1
            queue.put_back(batch)
        else:
            done += batch
    assert sorted(done) == list(range(len(costs)))


def test_the_longest_goes_first_and_alone_where_it_is_more_than_a_share() -> None:
    queue = TaskQueue([1.0, 50.0, 4.0, 3.0, 42.0], most=10)
    assert queue.take(2) == [1]
    assert queue.take(2) == [4]
    assert queue.take(2) == [2, 3]  # a worker's least share: 15 % of half of all, 7.5
    assert queue.take(2) == [0]
    assert queue.take(2) == []


def test_a_share_is_filled_with_what_still_fits() -> None:
    queue = TaskQueue([30.0, 20.0, 9.0, 6.0, 1.0, 34.0], most=10)
    assert queue.take(1) == [5, 2, 3, 4]  # half of 100: 34, not 30, not 20, and 9, 6, 1
    assert queue.take(1) == [0]
    assert queue.take(1) == [1]


def test_many_small_tasks_go_in_few_batches() -> None:
    queue = TaskQueue([1.0] * 3000, most=3000)
    sizes = []
    while len(queue):
        sizes.append(len(queue.take(2)))
    assert sizes[0] == int(3000 / (SHARES * 2))
    assert len(sizes) < 20
    assert sizes[-1] <= 3000 * LEAST / 2


def test_suspects_are_taken_alone() -> None:
    queue = TaskQueue([1.0, 1.0], most=10)
    queue.put_back(queue.take(1), alone=True)
    assert len(queue) == 2 or queue.take(1)
    assert queue.take_alone() is not None
