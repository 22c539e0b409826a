"""Snapshots: every kind of value comes back to the bit, and a resumed run goes on as if never stopped."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedvision import registry
from fedvision.algorithms.base import RoundStrategy
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.server_optimizers import FedAdam
from fedvision.algorithms.snapshot import restore, snapshot
from fedvision.errors import PluginError, RunFolderError
from fedvision.types import ClientUpdate, PluginSpec

State = dict[str, torch.Tensor]
Cohort = Callable[[State, int], list[ClientUpdate]]


class _Bag:
    """An object with attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def _through_files(source: object, target: Any, folder: Path) -> Any:
    """Carry what ``source`` remembers into ``target`` by way of safetensors and JSON."""
    tensors, values = snapshot(source)
    save_file(tensors, folder / "t.safetensors")
    (folder / "v.json").write_text(json.dumps(values, allow_nan=False))
    restore(target, load_file(folder / "t.safetensors"), json.loads((folder / "v.json").read_text()))
    return target


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_tensors(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    back = _through_files(_Bag(a=value), _Bag(a=None), tmp_path).a
    assert isinstance(back, torch.Tensor)
    assert (back.dtype, back.shape) == (dtype, value.shape)
    assert torch.equal(back, value)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "uint32", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_arrays_stay_numpy(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    value = (3 * np.random.default_rng(0).random(shape)).astype(dtype)
    value = np.asarray(value)
    back = _through_files(_Bag(a=value), _Bag(), tmp_path).a
    assert type(back) is np.ndarray
    assert (back.dtype, back.shape) == (value.dtype, value.shape)
    assert back.tobytes() == value.tobytes()
    assert back.flags.writeable


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2**80,
        0.1,
        -0.0,
        "text",
        [],
        {},
        (),
        [1, [2.5, None]],
        (1, ("a",)),
        {"a": {"b": [1]}},
        {1: "one", "1": "text", None: 0, False: 2},
        {"tensor": "no reference", "dict": [1], "strategy": {}},
    ],
)
def test_plain_values(value: object, tmp_path: Path) -> None:
    back = _through_files(_Bag(a=value), _Bag(), tmp_path).a
    assert back == value
    assert repr(back) == repr(value)


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    bag = _Bag(a=[math.inf, -math.inf, math.nan], b=np.float64(0.1), c=np.float32(0.1), d=np.int64(7))
    back = _through_files(bag, _Bag(), tmp_path)
    assert back.a[:2] == [math.inf, -math.inf]
    assert math.isnan(back.a[2])
    # A NumPy float64 widens float32 arrays and a Python float does not: the type is part of the bits.
    for name in "bcd":
        assert type(getattr(back, name)) is type(getattr(bag, name))
        assert getattr(back, name) == getattr(bag, name)


def test_nested_tensors_whose_paths_are_alike(tmp_path: Path) -> None:
    bag = _Bag(
        a={
            "b/c": torch.tensor(1.0),
            "b": {"c": torch.tensor(2.0)},
            1: torch.tensor(3.0),
            "1": torch.tensor(4.0),
        }
    )
    back = _through_files(bag, _Bag(), tmp_path).a
    assert (back["b/c"], back["b"]["c"], back[1], back["1"]) == (1.0, 2.0, 3.0, 4.0)


def test_strides_and_gradients_are_of_no_account(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).T
    bag = _Bag(
        a=turned, b=[turned, turned], c=torch.nn.Parameter(torch.ones(2)), d=np.arange(6.0).reshape(2, 3).T
    )
    back = _through_files(bag, _Bag(), tmp_path)
    assert torch.equal(back.a, turned)
    assert torch.equal(back.b[1], turned)
    assert not back.c.requires_grad
    assert (back.d == bag.d).all()


def test_none_and_tensor_replace_each_other(tmp_path: Path) -> None:
    assert _through_files(_Bag(a=None), _Bag(a=torch.ones(1)), tmp_path).a is None
    assert torch.equal(_through_files(_Bag(a=torch.ones(1)), _Bag(a=None), tmp_path).a, torch.ones(1))


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        frozenset({"a"}),
        defaultdict(list, {"a": [1]}),
        defaultdict(None, {}),
        OrderedDict([("b", 1), ("a", 2)]),
        Counter("aab"),
        deque([1, 2], maxlen=3),
        b"\x00\xff",
        1 + 2j,
        {(1, 2): 3},
    ],
)
def test_containers_keep_their_kind(value: Any, tmp_path: Path) -> None:
    back = _through_files(_Bag(a=value), _Bag(), tmp_path).a
    assert type(back) is type(value)
    assert back == value
    if isinstance(value, defaultdict):
        assert back.default_factory is value.default_factory
    if isinstance(value, deque):
        assert back.maxlen == value.maxlen


def test_random_generators_go_on(tmp_path: Path) -> None:
    bag = _Bag(n=np.random.default_rng(1), p=random.Random(1), t=torch.Generator().manual_seed(1))
    bag.n.random(), bag.p.random(), torch.rand(1, generator=bag.t)
    back = _through_files(bag, _Bag(), tmp_path)
    assert back.n.random() == bag.n.random()
    assert back.p.random() == bag.p.random()
    assert torch.rand(1, generator=back.t) == torch.rand(1, generator=bag.t)


def test_code_is_left_to_the_constructor(tmp_path: Path) -> None:
    back = _through_files(_Bag(f=len, c=dict, saved=1), _Bag(f=print, c=list, saved=0), tmp_path)
    assert (back.f, back.c, back.saved) == (print, list, 1)


@pytest.mark.parametrize(
    "value",
    [object(), [object()], {"t": torch.ones(1), "f": object()}, defaultdict(lambda: 1), np.array([{}])],
)
def test_what_cannot_come_back_is_refused_by_name(value: object) -> None:
    with pytest.raises(PluginError, match=r"the strategy _Bag keeps .* cannot restore to the bit"):
        snapshot(_Bag(odd=value))


class _Explicit(_Bag):
    """Defines its own state."""

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_a_state_dict_of_its_own_goes_first(tmp_path: Path) -> None:
    source = _Explicit(count=torch.tensor([3.0]), lock=object())
    assert _through_files(source, _Explicit(count=None), tmp_path).count == 3.0
    model, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    _through_files(_Bag(m=model), _Bag(m=other), tmp_path)
    assert torch.equal(model.weight, other.weight)


def test_a_snapshot_is_a_copy() -> None:
    moment = {"w": torch.zeros(2)}
    bag = _Bag(moment=moment, array=np.zeros(2))
    tensors, values = snapshot(bag)
    moment["w"] += 1
    bag.array += 1
    assert all(tensor.sum() == 0 for tensor in tensors.values())
    restore(bag, tensors, values)
    bag.moment["w"] += 1
    bag.array += 1
    assert all(tensor.sum() == 0 for tensor in tensors.values())


class _Around(RoundStrategy):
    """A strategy that holds another one."""

    def __init__(self, inner: RoundStrategy) -> None:
        super().__init__()
        self.inner = inner

    def combine(self, state: State, updates: Iterator[ClientUpdate]) -> State:
        return self.inner.combine(state, updates)


def test_a_strategy_in_a_strategy(start: State, cohort: Cohort, tmp_path: Path) -> None:
    source = _Around(FedAdam())
    source.combine(start, iter(cohort(start, 1)))
    target = _through_files(source, _Around(FedAdam()), tmp_path)
    assert torch.equal(source.inner.first_moment["scale"], target.inner.first_moment["scale"])  # type: ignore[attr-defined]
    with pytest.raises(RunFolderError, match="holds a strategy in 'inner'"):
        restore(FedAdam(), *snapshot(source))


def test_a_missing_tensor_is_named() -> None:
    _, values = snapshot(_Bag(m={"w": torch.ones(1)}))
    with pytest.raises(RunFolderError, match="the strategy's tensor 'm/w' is missing"):
        restore(_Bag(), {}, values)
    with pytest.raises(RunFolderError, match="cannot be read"):
        restore(_Bag(), {}, {"m": {"unknown": 1}})


def _same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("use", sorted(registry.BUILTINS["strategy"]))
def test_ours_go_on_to_the_bit(use: str, start: State, cohort: Cohort, tmp_path: Path) -> None:
    def build() -> RoundStrategy:
        strategy: RoundStrategy = registry.build("strategy", PluginSpec(use=use))
        return strategy

    def play(strategy: RoundStrategy, round: int, state: State) -> State:
        return strategy.combine(state, iter(cohort(state, round)))

    whole = build()
    whole.select(1, range(20), np.random.default_rng(0))
    second = play(whole, 2, play(whole, 1, start))
    resumed = _through_files(whole, build(), tmp_path)
    _same(play(resumed, 3, second), play(whole, 3, second))
    _same(
        resumed.configure(4, start, 0).tensors.get("control", {}),
        whole.configure(4, start, 0).tensors.get("control", {}),
    )


@pytest.mark.parametrize(
    ("kind", "arguments", "forgetful"),
    [
        ("FedAvg", {}, False),
        ("FedAvgM", {"server_learning_rate": 0.5, "server_momentum": 0.9}, True),
        ("FedAdam", {}, True),
        ("FedYogi", {}, True),
        ("FedAdagrad", {}, True),
        ("QFedAvg", {"client_learning_rate": 0.1}, False),
        ("FedMedian", {}, False),
        ("FedTrimmedAvg", {}, False),
        ("Krum", {"num_malicious_nodes": 1}, False),
        ("Bulyan", {"num_malicious_nodes": 1}, False),
    ],
)
def test_flowers_go_on_to_the_bit(
    kind: str,
    arguments: dict[str, Any],
    forgetful: bool,
    start: State,
    cohort: Cohort,
    stock_round: Callable[..., State],
    tmp_path: Path,
) -> None:
    import flwr.serverapp.strategy as flower

    def build() -> Any:
        return getattr(flower, kind)(fraction_train=0.0, **arguments)

    state, whole = start, build()
    for round in (1, 2):
        state = stock_round(whole, round, state, cohort(state, round))
    resumed = _through_files(whole, build(), tmp_path)
    third = stock_round(whole, 3, state, cohort(state, 3))
    _same(stock_round(resumed, 3, state, cohort(state, 3)), third)
    fresh = stock_round(build(), 3, state, cohort(state, 3))
    # Without its memory the strategy would give another model, so the equality above is no accident.
    assert forgetful is not all(torch.equal(fresh[name], third[name]) for name in third)


def test_a_wrapper_of_flowers_is_saved_without_what_it_wraps() -> None:
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

    wrapper = DifferentialPrivacyServerSideFixedClipping(
        FedAvg(), noise_multiplier=0.1, clipping_norm=1.0, num_sampled_clients=2
    )
    assert "strategy" not in snapshot(wrapper)[1]


class Broken(FedAvg):
    """Its state cannot be had, or not be taken up."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def state_dict(self) -> dict[str, Any]:
        return {} if self.method != "state_dict" else {}["what it remembers"]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise ValueError("of another size\nand more")


def test_a_state_dict_that_fails_is_one_sentence() -> None:
    with pytest.raises(
        PluginError, match=r"^state_dict of the strategy's Broken raised KeyError: 'what it rem"
    ):
        snapshot(Broken("state_dict"))
    tensors, values = snapshot(Broken("load_state_dict"))
    with pytest.raises(
        PluginError, match=r"Broken raised ValueError: of another size; correct it and go on with"
    ):
        restore(Broken("load_state_dict"), tensors, values)
