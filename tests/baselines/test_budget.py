"""The budget of baselines: images are seen as often as in the federated run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.baselines.budget import Work, central_budget, local_budget
from fedvision.config import TrainingConfig

TWO = TrainingConfig(epochs=2)


def test_work_is_summed_over_rounds() -> None:
    records = [{"clients": [0, 2], "examples": 30}, {"clients": [], "examples": 0}]
    assert Work.of(records) == Work(rounds=2, trainings=2, images=30)


def test_whoever_works_in_all_rounds_trains_alone_in_all_of_them() -> None:
    work = Work(rounds=4, trainings=12, images=4 * 60)  # 3 clients with 60 images
    alone = local_budget(TWO, work, clients=3, images=60)
    assert (alone.rounds, alone.training) == ((1, 2, 3, 4), TWO)
    together = central_budget(TWO, work, images=60)
    assert (together.rounds, together.training) == ((1, 2, 3, 4), TWO)
    assert together.passes(60) == 4 * 2 * 60


def test_a_fifth_of_the_clients_a_round_is_a_fifth_of_the_rounds_spread_over_the_schedule() -> None:
    work = Work(rounds=10, trainings=20, images=10 * 20)  # 10 clients with 10 images, two of them a round
    assert local_budget(TWO, work, clients=10, images=100).rounds == (3, 8)
    assert central_budget(TWO, work, images=100).rounds == (3, 8)


def test_there_is_one_round_at_least() -> None:
    work = Work(rounds=3, trainings=3, images=30)
    assert local_budget(TWO, work, clients=100, images=1000).rounds == (2,)


def test_a_set_number_of_steps_is_counted_in_trainings() -> None:
    training = TrainingConfig(steps=5, batch_size=8)
    work = Work(rounds=4, trainings=8, images=999)  # two of four clients a round
    alone = local_budget(training, work, clients=4, images=40)
    assert (alone.rounds, alone.training.steps) == ((2, 4), 5)
    together = central_budget(training, work, images=40)
    assert (together.rounds, together.training.steps) == ((1, 2, 3, 4), 10)  # those of both clients
    assert together.passes(40) == 8 * 5 * 8 == 4 * alone.passes(10)


def test_images_that_many_clients_share_take_more_epochs_in_one_place() -> None:
    work = Work(rounds=2, trainings=20, images=2 * 10 * 30)  # 10 clients a round, of whom each has all 30
    together = central_budget(TWO, work, images=30)
    assert (together.rounds, together.training.epochs) == ((1, 2), 20)


@given(rounds=st.integers(1, 40), share=st.floats(0.05, 1), epochs=st.integers(1, 3))
def test_passes_are_those_of_the_federated_run_but_for_a_round(
    rounds: int, share: float, epochs: int
) -> None:
    training = TrainingConfig(epochs=epochs)
    work = Work(rounds=rounds, trainings=rounds, images=round(rounds * share * 1000))
    together = central_budget(training, work, images=1000)
    assert list(together.rounds) == sorted(set(together.rounds))
    assert set(together.rounds) <= set(range(1, rounds + 1))
    federated = work.images * epochs
    assert together.passes(1000) == pytest.approx(federated, abs=1000 * epochs)
