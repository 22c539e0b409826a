"""Clients of very unequal size with a model, a loss and an algorithm, trained one by one and all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvision import registry
from fedvision.config import ModelConfig, TrainingConfig, TransformConfig
from fedvision.data.shards import Shard
from fedvision.data.transforms import prepare
from fedvision.models.build import build_model
from fedvision.models.state import get_state, load_state, personal_names, shared_names
from fedvision.tasks.classification import Classification
from fedvision.training.client_algorithm import ClientAlgorithm, unstackable_reason
from fedvision.training.client_half import client_algorithm
from fedvision.training.loop import LoopSettings, TrainResult, fit
from fedvision.training.vectorized.client_batch import ClientJob
from fedvision.training.vectorized.local_steps import fit_many
from fedvision.training.vectorized.vmap_support import supports_vmap
from fedvision.types import ClientConfig, LossFn, PluginSpec, State, TrainRequest
from tests.double import in_double

SIZES = (5, 1, 23, 17, 16)
CLASSES, SIDE, SEED = 4, 8, 3
LOSSES = [name for name, loss in registry.BUILTINS["loss"].items() if "classification" in loss.tasks]
STACKABLE = [
    name
    for name in registry.BUILTINS["client_algorithm"]
    if unstackable_reason(registry.resolve("client_algorithm", name).call) is None  # type: ignore[arg-type]
]
"""Built-in client halves that serve several clients at once."""
SMALL: Mapping[str, dict[str, Any]] = {
    "cnn": {"width": 4, "dense": 8},
    "resnet8": {"width": 4},
    "resnet8-wide": {"width": 4, "norm": "group"},
    "resnet18": {"width": 4},
    "resnet20": {"width": 4},
    "rnn": {"hidden": 8},
    "vit": {"dim": 8, "depth": 1, "heads": 2},
    "fusion": {"width": 4, "dim": 8, "depth": 1, "heads": 2},
}


def make_shards(sizes: Sequence[int] = SIZES, channels: int = 1) -> list[Shard]:
    """Return shards of one base, with all clients' classes in different shares."""
    rng = np.random.default_rng(0)
    total = sum(sizes) + 4
    images = rng.integers(0, 256, (total, SIDE, SIDE, channels), np.uint8)
    labels = np.minimum(rng.integers(0, CLASSES, total), rng.integers(0, CLASSES + 1, total))
    cuts = np.split(rng.permutation(total), np.cumsum(sizes))
    return [Shard(images=images, labels=labels, indices=cut) for cut in cuts[: len(sizes)]]


def network(use: str = "cnn", *, frozen: tuple[str, ...] = (), double: bool = True, **args: Any) -> nn.Module:
    """Return a small network of a built-in kind, as a worker would place it."""
    config = ModelConfig(use=use, frozen=frozen, args={**SMALL.get(use, {}), **args})
    model = build_model(
        config, task=Classification(), num_classes=CLASSES, in_channels=1, image_size=(SIDE, SIDE), seed=SEED
    )
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return in_double(model) if double else model


def settings(transforms: TransformConfig | None = None, **training: Any) -> LoopSettings:
    """Return settings of a run on the CPU."""
    return LoopSettings(
        task=Classification(),
        training=TrainingConfig(**{"lr": 0.05, "batch_size": 8, **training}),
        transform=prepare(transforms or TransformConfig(), 1),
        device=torch.device("cpu"),
        seed=SEED,
        rounds=5,
    )


@dataclass(kw_only=True)
class Cohort:
    """What both ways of training get."""

    model: nn.Module = field(default_factory=network)
    shards: list[Shard] = field(default_factory=make_shards)
    settings: LoopSettings = field(default_factory=settings)
    loss: PluginSpec = field(default_factory=lambda: PluginSpec(use="cross-entropy"))
    algorithm: str | None = None
    client_configs: Sequence[ClientConfig] = ()
    memories: Sequence[State] = ()
    personals: Sequence[State] = ()
    shared: Any = "all"

    def build_loss(self, counts: torch.Tensor) -> LossFn:
        """Return the loss of counts [C] or [K, C]."""
        built: LossFn = registry.build("loss", self.loss, counts=counts, round=2, rounds=5)
        return built

    def counts(self) -> torch.Tensor:
        """Return class counts [K, C]."""
        return torch.stack([torch.from_numpy(shard.counts(CLASSES)) for shard in self.shards])

    def requests(self) -> list[TrainRequest]:
        """Return each client's task."""
        state = get_state(self.model, shared_names(self.model, self.shared))
        configs = self.client_configs or [ClientConfig()] * len(self.shards)
        return [
            TrainRequest(
                round=2,
                client=k,
                state=state,
                client_config=configs[k],
                algorithm=self.algorithm,
                own_counts=tuple(shard.counts(CLASSES).tolist()),
                own_loss=1.0 + k,
            )
            for k, shard in enumerate(self.shards)
        ]

    def algorithms(self) -> list[ClientAlgorithm]:
        """Return each client's algorithm."""
        return [client_algorithm(request) for request in self.requests()]

    def unsupported_reason(self) -> str | None:
        """Return why the cohort cannot be stacked."""
        shape = self.shards[0].images.shape[1:]
        return supports_vmap(self.model, shape, CLASSES, loss=self.build_loss, settings=self.settings)

    def one_by_one(self) -> list[TrainResult]:
        """Train with ``fit``."""
        updates, requests = [], self.requests()
        home = get_state(self.model, personal_names(self.model, requests[0].state))
        rows = zip(self.shards, requests, self.algorithms(), self.counts(), strict=True)
        for k, (shard, request, algorithm, counts) in enumerate(rows):
            load_state(self.model, self.personals[k] if self.personals else home)
            memory = self.memories[k] if self.memories else {}
            call = partial(fit, self.model, shard, request, loss=self.build_loss(counts))
            updates.append(call(algorithm=algorithm, settings=self.settings, memory=memory))
        load_state(self.model, {**home, **requests[0].state})
        return updates

    def jobs(self) -> list[ClientJob]:
        """Return what each client does."""
        algorithms = self.algorithms()
        return [
            ClientJob(
                request=request,
                shard=self.shards[k],
                algorithm=algorithms[k],
                counts=self.counts()[k],
                memory=self.memories[k] if self.memories else {},
                personal=self.personals[k] if self.personals else {},
            )
            for k, request in enumerate(self.requests())
        ]

    def at_once(self, chunk: int = 0, **options: Any) -> list[TrainResult]:
        """Train ``chunk`` clients at a time, 0 trains all, with ``fit_many``; keywords are its own."""
        found: dict[int, TrainResult] = {}
        jobs = self.jobs()
        for start in range(0, len(jobs), chunk or len(jobs)):
            some = jobs[start : start + (chunk or len(jobs))]
            places, stacked = fit_many(
                self.model, some, loss=self.build_loss, settings=self.settings, **options
            )
            found |= zip((start + place for place in places), stacked.split(), strict=True)
        return [found[place] for place in range(len(self.shards))]


def algorithm_case(use: str, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Configuration and memories for a built-in client half; each client others."""
    clients = range(len(SIZES))
    if use == "fedprox":
        return {"client_configs": [ClientConfig(numbers={"mu": 0.1 * (k % 3)}) for k in clients]}
    if use == "fednova":
        numbers = {"mu": 0.1, "momentum": 0.0}
        return {"client_configs": [ClientConfig(numbers=numbers)] * len(SIZES)}
    if use == "feddyn":
        memories = [noise(state, k) if k != 2 else {} for k in clients]
        configs = [ClientConfig(numbers={"alpha": 0.1 * (k % 3)}) for k in clients]
        return {"client_configs": configs, "memories": memories}
    if use == "scaffold":
        client_config = ClientConfig(tensors={"control": noise(state, 99)})
        memories = [noise(state, k) if k != 2 else {} for k in clients]
        return {"client_configs": [client_config] * len(SIZES), "memories": memories}
    if use in ("fedavg-support", "q-fedavg"):
        return {}
    raise NotImplementedError(f"say what the client half {use!r} needs")


def noise(like: State, seed: int, size: float = 0.05) -> State:
    """Return random tensors of the shapes of a state."""
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(tensor.shape, generator=generator) for name, tensor in like.items()}


def assert_near(
    found: Sequence[TrainResult], wanted: Sequence[TrainResult], start: State, share: float
) -> None:
    """Assert that each client's updates differ by at most a share of their norm."""
    for mine, his in zip(found, wanted, strict=True):
        apart = torch.cat([(mine.state[name] - his.state[name]).flatten() for name in start])
        moved = torch.cat([(his.state[name] - start[name]).flatten() for name in start])
        assert float(apart.norm()) <= share * float(moved.norm())


def assert_equal(
    found: Sequence[TrainResult], wanted: Sequence[TrainResult], tolerance: float = 1e-6
) -> None:
    """Assert that updates agree in everything, tensors within the tolerance."""
    assert len(found) == len(wanted)
    for k, (mine, his) in enumerate(zip(found, wanted, strict=True)):
        assert (mine.examples, mine.steps) == (his.examples, his.steps)
        assert mine.loss == pytest.approx(his.loss, rel=tolerance, abs=tolerance, nan_ok=True)
        groups = {"state": (mine.state, his.state), "memory": (mine.memory, his.memory)}
        groups["personal"] = (mine.personal, his.personal)
        assert mine.tensors.keys() == his.tensors.keys()
        groups |= {name: (mine.tensors[name], his.tensors[name]) for name in his.tensors}
        for group, (a, b) in groups.items():
            assert list(a) == list(b), group
            for name in b:
                assert a[name].is_contiguous()
                assert a[name].dtype == b[name].dtype
                torch.testing.assert_close(
                    a[name],
                    b[name],
                    rtol=tolerance,
                    atol=tolerance,
                    equal_nan=True,
                    msg=f"client {k}, {name}",
                )
