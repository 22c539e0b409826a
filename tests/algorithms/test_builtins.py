"""What every built-in strategy must do, whichever it is: the registry writes the tests."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from fedvision import registry
from fedvision.algorithms.base import RoundStrategy
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import ClientUpdate, PluginSpec

State = dict[str, torch.Tensor]
Cohort = Callable[[State, int], list[ClientUpdate]]

SENT = {
    "control": {},
    "steps": {"norm": torch.tensor(2.0, dtype=torch.float64)},
    "generator": {"w": torch.ones(2)},
    "fairness": {name: torch.tensor(0.5, dtype=torch.float64) for name in ("loss", "rate")},
    "support": {"counts": torch.tensor([1.0, 0.0], dtype=torch.float64)},
}
"""What clients send beside a model, of every method."""
USES = sorted(
    use
    for use in registry.BUILTINS["strategy"]
    if getattr(registry.resolve("strategy", use).call, "trains", True)
)


def _build(use: str, **args: object) -> RoundStrategy:
    strategy: RoundStrategy = registry.build("strategy", PluginSpec(use=use, args=args))
    return strategy


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_round_keeps_names_shapes_and_types(
    use: str, dtype: torch.dtype, start: State, cohort: Cohort
) -> None:
    strategy = _build(use)
    state = {name: tensor.to(dtype) for name, tensor in start.items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    strategy.select(1, range(20), np.random.default_rng(0))
    new = state
    for round in (1, 2, 3):
        new = strategy.combine(new, iter(cohort(new, round)))
        assert new.keys() == state.keys()
        for name, tensor in new.items():
            assert (tensor.dtype, tensor.shape) == (dtype, state[name].shape)
            assert torch.isfinite(tensor).all()
    assert all(torch.equal(state[name], before[name]) for name in state), "the old model was changed"


@pytest.mark.parametrize("use", USES)
def test_clients_that_did_not_move_leave_the_model_where_it_is(use: str, start: State) -> None:
    updates = [
        ClientUpdate(
            client=place,
            position=place,
            examples=3 + place,
            state={name: tensor.clone() for name, tensor in start.items()},
            tensors=SENT,
        )
        for place in range(11)
    ]
    new = _build(use).combine(start, iter(updates))
    for name, tensor in start.items():
        # Sums round; a server optimiser must not make steps of that.
        torch.testing.assert_close(new[name], tensor, rtol=1e-6, atol=1e-6)
        if use in {"fedavgm", "fedadam", "fedyogi", "fedadagrad"} and "running" not in name:
            assert torch.equal(new[name], tensor)


@pytest.mark.parametrize(
    "use", sorted(set(USES) - {"fedadam", "fedyogi", "fedadagrad", "feddyn", "q-fedavg"})
)
def test_clients_that_agree_are_followed(use: str, start: State) -> None:
    agreed = {name: tensor + 0.5 for name, tensor in start.items()}
    updates = [
        ClientUpdate(client=place, position=place, examples=3 + place, state=agreed, tensors=SENT)
        for place in range(11)
    ]
    new = _build(use).combine(start, iter(updates))
    for name, tensor in agreed.items():
        torch.testing.assert_close(new[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("use", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive_ones_go_the_way_that_clients_agree_on(use: str, start: State) -> None:
    agreed = {name: tensor + 0.5 * torch.sign(tensor) for name, tensor in start.items()}
    new = _build(use).combine(start, iter([ClientUpdate(client=0, position=0, examples=1, state=agreed)]))
    for name in ("conv.weight", "scale"):
        assert torch.equal(torch.sign(new[name] - start[name]), torch.sign(start[name]))


@pytest.mark.parametrize("use", sorted(set(USES) - {"median", "trimmed-mean", "krum"}))
def test_sums_take_one_update_at_a_time(use: str, start: State) -> None:
    alive: list[weakref.ref[object]] = []

    def updates() -> Iterator[ClientUpdate]:
        for place in range(20):
            assert all(ref() is None for ref in alive), "an update was kept while the next one was taken"
            model = {name: tensor + place for name, tensor in start.items()}
            update = ClientUpdate(client=place, position=place, examples=1, state=model, tensors=SENT)
            alive.extend(weakref.ref(item) for item in (update, *model.values()))
            del model
            yield update
            del update

    _build(use).combine(start, updates())
    assert len(alive) == 20 * (1 + len(start))


@pytest.mark.parametrize("use", USES)
def test_selection_is_settable_and_checked(use: str) -> None:
    strategy = _build(use, fraction=0.5, min_clients=4)
    assert len(strategy.select(1, range(20), np.random.default_rng(0))) == 10
    assert len(strategy.select(1, range(6), np.random.default_rng(0))) == 4
    with pytest.raises(registry.PluginError, match="fraction must be > 0 and <= 1, not 2"):
        _build(use, fraction=2)


@pytest.mark.parametrize("use", USES)
def test_its_client_half_is_a_built_in_too(use: str) -> None:
    kind = type(_build(use)).client
    if kind is not ClientAlgorithm:
        name = registry.name_of("client_algorithm", kind)
        assert name in registry.BUILTINS["client_algorithm"]
        assert registry.resolve("client_algorithm", name).call is kind
