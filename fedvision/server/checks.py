"""What the server checks before and between rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedvision.algorithms.base import RoundStrategy
from fedvision.config import ExperimentConfig, RoundConfig
from fedvision.errors import ConfigError, PluginError, RunError, nearest, plugin_errors
from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.strategy import FlowerStrategy, layers
from fedvision.tasks.base import Task
from fedvision.tasks.stats import MetricStats
from fedvision.training.client_algorithm import groups_sent
from fedvision.types import State
from fedvision.updates.chain import UpdateChain
from fedvision.updates.schema import UpdateSchema

_SLICE = 1 << 16
"""Elements of a slice."""
_MINIMA = ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes")
"""A stock strategy waits for so many nodes, without end."""


def check_strategy(strategy: Strategy, clients: int) -> None:
    """Refuse a stock strategy that would wait for ever for more clients than there are.

    Raises:
        ConfigError: Its minimum is above the number of clients.
    """
    for name in _MINIMA:
        needed = getattr(strategy, name, 0)
        if needed > clients:
            raise ConfigError(
                f"strategy.{name} is {needed} but there are {clients} clients; set it to {clients} or less"
            )


def with_personal(config: ExperimentConfig, strategy: Strategy) -> ExperimentConfig:
    """Return an experiment in which ``model.personal`` is as its strategy wants it."""
    if (inner := _ours(strategy)) is None:
        return config
    where = f"[strategy] use = {config.strategy.use!r}: its personal"
    with plugin_errors(where):
        kept = inner.personal(config.model.personal)
    if not isinstance(kept, tuple) or not all(isinstance(pattern, str) for pattern in kept):
        raise PluginError(f"{where} must return a tuple of patterns, not {kept!r}")
    if kept == config.model.personal:
        return config
    return replace(config, model=replace(config.model, personal=kept))


def _ours(strategy: Strategy) -> RoundStrategy | None:
    """Return the strategy of ours, also where a stock one wraps it; None where there is none."""
    found = (one for one in layers(strategy).values() if isinstance(one, RoundStrategy))
    return next(found, None)


def check_personal(config: ExperimentConfig, strategy: Strategy) -> None:
    """Refuse a method of personal tensors where none are named, and one temperature where some are.

    Raises:
        ConfigError: ``model.personal`` is empty and the strategy needs it, or the reverse.
    """
    inner = _ours(strategy)
    if inner is not None and inner.needs_personal and not config.model.personal:
        raise ConfigError(
            f"[strategy] use = {config.strategy.use!r} has each client keep a part of the model, and "
            'model.personal names none; set model.personal = ["head.*"]'
        )
    judged = config.evaluation
    for key, wanted in (("calibrate", judged.calibrate), ("keep = 'best'", judged.keep == "best")):
        if wanted and config.model.personal:
            raise ConfigError(
                f"evaluation.{key} is for one model, and model.personal gives each client its own; remove it"
            )


def check_whole_models(config: ExperimentConfig, strategy: Strategy, personal: Sequence[str]) -> None:
    """Refuse tensors that stay on clients where each client keeps a whole personal model.

    Args:
        config: The experiment.
        strategy: Its strategy.
        personal: Tensors that training changes and that stay on the clients.

    Raises:
        ConfigError: There are such, and the method is of this kind.
    """
    inner = _ours(strategy)
    if inner is not None and inner.client.personal_model and personal:
        key = "model.personal" if config.model.personal else f"model.shared = {config.model.shared!r}"
        raise ConfigError(
            f"[strategy] use = {config.strategy.use!r} has each client keep a whole model of its own beside "
            f"the global one, and {key} keeps {personal[0]!r} of both on the clients; leave it out"
        )


def whole_model_notices(config: ExperimentConfig, strategy: Strategy) -> list[str]:
    """Return that nothing measures personal models, where each client has one and holds out nothing."""
    inner = _ours(strategy)
    if inner is None or not inner.client.personal_model or config.evaluation.holdout:
        return []
    return [
        f"[strategy] use = {config.strategy.use!r} gives each client a personal model, and nothing measures "
        "these; set evaluation.holdout = 0.2, and clients do"
    ]


def check_method(
    config: ExperimentConfig, strategy: Strategy, classes: Sequence[str], image: tuple[int, int, int]
) -> None:
    """Let a strategy of ours look at the experiment.

    Args:
        config: The experiment, nothing in it left open.
        strategy: Its strategy.
        classes: Class names [C].
        image: (H, W, channels) of the data's images.

    Raises:
        ConfigError: The method does not fit the experiment.
    """
    if isinstance(strategy, FlowerStrategy):
        with plugin_errors(f"[strategy] use = {config.strategy.use!r}: its check"):
            strategy.inner.check(config, classes, image)


def method_notices(config: ExperimentConfig, strategy: Strategy) -> list[str]:
    """Return what a strategy of ours has to say of the experiment.

    Raises:
        PluginError: It fails, or returns no sentences.
    """
    if not isinstance(strategy, FlowerStrategy):
        return []
    where = f"[strategy] use = {config.strategy.use!r}: its notices"
    with plugin_errors(where):
        found = strategy.inner.notices(config)
    if not isinstance(found, list | tuple) or not all(isinstance(sentence, str) for sentence in found):
        raise PluginError(f"{where} must return a list of sentences, not {found!r}")
    return list(found)


def check_score(config: ExperimentConfig, task: Task, classes: int) -> None:
    """Refuse to find the best model by a score that there is not.

    Raises:
        ConfigError: ``evaluation.score`` is none of the task's scores, nor a further metric.
    """
    evaluation = config.evaluation
    if evaluation.keep == "last" and not evaluation.patience:
        return
    nothing = MetricStats.empty(task.stats_shape(classes))
    known = [*task.scores(nothing, np.arange(1, classes + 1)), *evaluation.metrics]
    if evaluation.score not in known:
        hint = nearest(evaluation.score, known)
        raise ConfigError(f"evaluation.score = {evaluation.score!r}: there is no such score{hint}")


def check_untrained(config: ExperimentConfig, strategy: Strategy) -> None:
    """Refuse keys about training and its answers beside a strategy that has nobody train.

    Raises:
        ConfigError: Such a key is set.
    """
    if getattr(strategy, "trains", True):
        return
    keys = {
        "[[update]]": bool(config.update),
        "evaluation.with_training": config.evaluation.with_training,
        "round.buffer": bool(config.round.buffer),
        "round.wait_after_quorum": bool(config.round.wait_after_quorum),
    }
    if given := [key for key, is_set in keys.items() if is_set]:
        raise ConfigError(
            f"[strategy] use = {config.strategy.use!r} has no client train, so {given[0]} has nothing to act "
            "on; leave it out"
        )


def min_available(strategy: Strategy, config: RoundConfig, members: int) -> int:
    """Return how many clients must be free before a round begins."""
    if config.buffer:
        return 0
    quorum = 1 if config.uses_late else min(config.min_clients, members)
    return max(quorum, _minimum(strategy))


def has_enough(strategy: Strategy, grid: Grid) -> bool:
    """Return whether a strategy finds as many nodes as it must have; a stock one would wait for ever."""
    needed = _minimum(strategy)
    return needed <= 0 or len(list(grid.get_node_ids())) >= needed


def _minimum(strategy: Strategy) -> int:
    return max(getattr(strategy, name, 0) for name in _MINIMA)


def check_messages(
    where: str, messages: Sequence[object], grid: Grid, client_registry: ClientRegistry
) -> None:
    """Refuse messages of a strategy that no client can get, or one client twice.

    Args:
        where: Round, method and strategy.
        messages: What the strategy made.
        grid: The carrier.
        client_registry: Whose node is whose.

    Raises:
        RunError: One is no message, goes to no such node, or a node gets two.
    """
    present, seen = client_registry.present(grid), set[int]()
    for message in messages:
        if not isinstance(message, Message):
            raise RunError(f"{where} made a {type(message).__name__}; it must make flwr.app.Message")
        node = message.metadata.dst_node_id
        # Across machines a node may leave at any time; its carrier reports that client alone.
        unknown = isinstance(present, range) and client_registry.client(node) not in present
        if node in seen or unknown:
            what = "made two messages for" if node in seen else "made a message for an unknown"
            raise RunError(f"{where} {what} node {node}; it must choose among the grid's nodes, each once")
        seen.add(node)


def check_result(where: str, result: object) -> ArrayRecord | None:
    """Return the model that a strategy made, None where it made none.

    Args:
        where: Round, method and strategy.
        result: What its ``aggregate_train`` returned.

    Raises:
        RunError: It is not Flower's pair of an ``ArrayRecord`` and a ``MetricRecord``, either of them None.
    """
    model = result[0] if isinstance(result, tuple) and len(result) == 2 else result
    if model is result or not (model is None or isinstance(model, ArrayRecord)):
        raise RunError(
            f"{where} returned a {type(model).__name__}; it must return an ArrayRecord, or None, and metrics"
        )
    return model


def reply_groups(strategy: Strategy, updates: UpdateChain) -> Mapping[str, UpdateSchema] | None:
    """Return the groups of tensors that clients send beside an update; None where they are not known.

    Args:
        strategy: Any; stock ones do not say.
        updates: Knows the parameters that clients train.
    """
    if not isinstance(strategy, FlowerStrategy):
        return None
    names = groups_sent(strategy.inner.client)
    if names is None or (names and not updates.trained.tensors):
        return None
    return dict.fromkeys(names, updates.trained)


def check_state(round: int, combined: State, before: State) -> State:
    """Return what a strategy made, in the model's types, if it is a model at all.

    Raises:
        RunError: A tensor is missing, extra, misshapen, NaN or infinite.
    """
    if set(combined) != set(before):
        odd = sorted(set(combined) ^ set(before))[0]
        raise RunError(f"round {round}: the strategy's result and the model differ in the tensor {odd!r}")
    state: State = {}
    for name, old in before.items():
        new = combined[name].to(old.dtype)
        if new.shape != old.shape:
            raise RunError(
                f"round {round}: the strategy made {name!r} {list(new.shape)}, not {list(old.shape)}"
            )
        if not _is_finite(new):
            raise RunError(
                f"round {round}: the strategy's result holds NaN or infinity in {name!r}; "
                "the training diverged: lower its learning rates and resume from the last checkpoint"
            )
        state[name] = new
    return state


def _is_finite(tensor: torch.Tensor) -> bool:
    """Add a large tensor up in slices: to compare is slower, and torch makes a copy of what it compares."""
    slices = tensor.reshape(-1).split(_SLICE)  # type: ignore[no-untyped-call]
    return all(
        math.isfinite(part.sum(dtype=torch.float64)) or bool(torch.isfinite(part).all()) for part in slices
    )


def no_progress_error(rounds: int, refused: Sequence[Mapping[str, Any]]) -> str:
    """Return one sentence that no client succeeded, with the first cause."""
    first = f"; client {refused[0]['client']}: {refused[0]['reason']}" if refused else ""
    if any("NaN" in item["reason"] for item in refused):
        first += "; the training diverged: lower training.lr or set training.clip_norm"
    return f"no client succeeded in {rounds} round{'s' * (rounds > 1)} in a row{first}"


def all_declined(record: Mapping[str, Any]) -> bool:
    """Return whether a round has nothing in it but clients whose owners' policies declined."""
    kinds = {item["kind"] for item in record["refused"]}
    return kinds == {"declined"} and not record["clients"] and not record["late"]
