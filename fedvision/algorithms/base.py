"""What a strategy is: who trains, with which configuration, and how the replies become the next model.

A ``RoundStrategy`` combines what clients have trained. A ``QueryStrategy`` has nobody train: it makes its
model of sums that clients compute.

A strategy works on named tensors alone. It knows no messages, no engine and no model class, so the same
object serves a simulation in one process and a federation of machines. ``combine`` is the only method it must
have.

What it remembers between rounds (moments, control variates) are plain attributes: tensors, dictionaries of
tensors, numbers. ``fedvision.algorithms.snapshot`` saves and restores them without knowing their names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from fedvision.ranges import check_range
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import ClientConfig, ClientUpdate, Query, State

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from fedvision.config import ExperimentConfig

Answer: TypeAlias = "Mapping[str, NDArray[np.float64] | NDArray[np.int64]]"
"""A statistic's sums over the clients by name: int64 where the statistic returns whole numbers."""

POPULATION = 100_000
"""Clients from which a cohort is drawn one by one: to shuffle a million takes 20 ms, to draw 1,000 0.1 ms."""


@dataclass(frozen=True, kw_only=True)
class ServerContext:
    """What the server has after a round's training, for ``RoundStrategy.refine``."""

    round: int
    """Round number, from 1."""
    rounds: int
    """Rounds of the whole run."""
    answers: Sequence[Answer]
    """What ``query`` requested, in its order: sums over the clients. Empty where it requested nothing; the
    last one is missing where no client replied to it."""
    class_counts: tuple[int, ...] | None
    """Training images of each class [C] over the federation; None where clients do not report them."""
    make_model: Callable[[State], nn.Module]
    """Returns a network of the experiment's kind on the CPU, holding a state; it is the caller's own."""
    generator: torch.Generator
    """The round's own random stream."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Takes what the round's record shall say of the strategy's work, as JSON holds it."""


class RoundStrategy(ABC):
    """One round of a federation: select, configure, combine, and perhaps query and refine.

    Args:
        fraction: Share of the clients that work in a round, 0 < fraction <= 1.
        min_clients: Clients that work in a round at least, where there are as many, >= 1.

    Raises:
        ValueError: An argument is out of range.
    """

    needs_personal: bool = False
    """Whether the method is about tensors that clients keep, which ``model.personal`` must then name."""
    trains_generic: bool = False
    """Whether what is shared is trained to predict by itself, beside each client's own part of the head."""
    client: type[ClientAlgorithm] = ClientAlgorithm
    """The client half: a class at the top level of its module, which clients find by its name."""
    trains: bool = True
    """Whether a round has clients train; else its model comes from ``query`` and ``refine`` alone."""

    def __init__(self, *, fraction: float = 1.0, min_clients: int = 1) -> None:
        check_range(above=0, at_most=1, fraction=fraction)
        check_range(at_least=1, min_clients=min_clients)
        self.fraction = fraction
        self.min_clients = min_clients

    def check(  # noqa: B027
        self, config: ExperimentConfig, classes: Sequence[str], image: tuple[int, int, int]
    ) -> None:
        """Look at the experiment before anything begins; by default at nothing.

        It is called on the server alone: what it keeps is not there where ``contribute`` runs.

        Args:
            config: The experiment, nothing in it left open.
            classes: Class names [C], in the order of the labels.
            image: (H, W, channels) of the data's images.

        Raises:
            ConfigError: The method does not fit the experiment.
        """

    def notices(self, config: ExperimentConfig) -> Sequence[str]:
        """Return what a person should know of the method with this experiment; by default nothing."""
        return ()

    def personal(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """Return the patterns of tensors that clients keep: by default those of the experiment.

        Args:
            given: ``model.personal`` of the experiment, perhaps empty.
        """
        return given

    def constant_tensors(self) -> Mapping[str, State]:
        """Return named groups of tensors that the client half needs and that stay the same in the whole run.

        They travel to each client's machine once; ``configure`` is for what changes. By default there are
        none. It is called after ``check``.
        """
        return {}

    def select(self, round: int, clients: Sequence[int], rng: np.random.Generator) -> list[int]:
        """Draw the round's cohort without replacement.

        Args:
            round: Round number, from 1.
            clients: Partition numbers of the clients that can work now; a range of a million is not unrolled.
            rng: The round's own stream.

        Returns:
            ``max(min_clients, fraction * len(clients))`` clients, never more than there are. They rise, so
            that a median or Krum sees the models by who was drawn and not by the order of the draw.
        """
        return draw(clients, cohort_size(len(clients), self.fraction, self.min_clients), rng)

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        """Return what one client receives beside the model: by default nothing.

        Args:
            round: Round number, from 1.
            state: The global model that the client will start from.
            client: Partition number.
        """
        return ClientConfig()

    def side_networks(self) -> Mapping[str, tuple[State, Mapping[str, float]]]:
        """Return networks beside the model that a finished run's folder keeps; by default there are none.

        Returns:
            By name, of which the file is ``NAME.safetensors``: the tensors, and the numbers of which the
            network is built.
        """
        return {}

    @abstractmethod
    def combine(self, state: State, updates: Iterator[ClientUpdate]) -> State:
        """Make the next global model.

        Args:
            state: The global model of this round, not to be changed.
            updates: At least one, their positions rising. They come one at a time; an update that is let go
                before the next is taken costs no memory, so a sum over 1000 clients needs no 1000 models.

        Returns:
            Tensors with the names, shapes and dtypes of ``state``.
        """

    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        """Return the next statistic to query from clients after a round's training; by default none.

        It is asked again with each answer until it returns None, so a later query may rest on what earlier
        ones brought. Clients that are busy or set aside are not queried, and a later query goes to those that
        answered the one before.

        Args:
            round: Round number, from 1.
            rounds: Rounds of the whole run.
            answers: The answers to this round's queries so far, in their order.
        """
        return None

    def refine(self, state: State, server: ServerContext) -> State:
        """Change the round's new global model on the server; by default it stays.

        It is called after each round that changed the model, and after ``query`` was answered.

        Args:
            state: The new global model, not to be changed in place.
            server: A network to work with, the answers, a random stream.

        Returns:
            Tensors with the names, shapes and dtypes of ``state``.
        """
        return state


class QueryStrategy(RoundStrategy):
    """A strategy whose clients do not train: they answer queries, and ``refine`` makes the model of the sums.

    A round queries the cohort that ``select`` draws. It fails, and ``refine`` is not called, where a query
    has fewer answers than ``round.min_clients``; it fails as well where ``refine`` returns the very state
    that it was given.
    """

    trains = False

    def combine(self, state: State, updates: Iterator[ClientUpdate]) -> State:
        """Return the model as it is: nobody trained."""
        return state

    @abstractmethod
    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        """Return the next statistic to query; as ``RoundStrategy.query``."""

    @abstractmethod
    def refine(self, state: State, server: ServerContext) -> State:
        """Make the round's model of the answers; as ``RoundStrategy.refine``."""


def draw(clients: Sequence[int], size: int, rng: np.random.Generator) -> list[int]:
    """Draw so many of the clients without replacement, each set of them as likely; they rise."""
    if len(clients) < POPULATION:
        # The positions are shuffled: the same draw as of a list of the clients, without making that list.
        places = rng.permutation(len(clients))[:size]
    else:
        places = rng.choice(len(clients), size, replace=False, shuffle=False)
    return sorted(int(clients[place]) for place in places.tolist())


def cohort_size(clients: int, fraction: float, min_clients: int) -> int:
    """Return how many of the clients work in a round: half a client rounds to even, as Python's ``round``."""
    return min(clients, max(min_clients, round(fraction * clients)))
