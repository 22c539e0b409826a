"""Whether a run may go on: with the same experiment, or with more rounds that leave the finished ones.

What a round does may depend on how many there are in all: the learning rate, a loss that changes as the run
goes on, what is measured after the last round. A longer run is refused where a round that is recorded would
have been another one, so that 3 rounds that go on to 5 are the 5 rounds of one run, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedvision import registry
from fedvision.config import ExperimentConfig


def refusal(begun: ExperimentConfig, now: ExperimentConfig, finished: int) -> str | None:
    """Return why a run cannot go on as another experiment, and what to set back; None where it can.

    Args:
        begun: The run's experiment.
        now: The experiment with which it shall go on.
        finished: Rounds that are recorded.

    Raises:
        PluginError: The schedule, the loss or the sampler that the experiment names cannot be had.
    """
    longer = now.rounds > begun.rounds
    same = replace(now, rounds=begun.rounds) if longer else now
    if found := difference(begun.to_dict(), same.to_dict()):
        key, old, new = found
        return f"it holds another experiment: {key} is {_text(old)} there and {_text(new)} here; set it back"
    if longer and (why := _obstacle(begun, now.rounds, finished)):
        return (
            f"its run of {begun.rounds} rounds cannot go on to {now.rounds} as if they had been planned: "
            f"{why}; set rounds back"
        )
    return None


def _obstacle(config: ExperimentConfig, rounds: int, finished: int) -> str | None:
    if not finished:
        return None
    schedule = registry.build("schedule", config.training.schedule)
    for round in range(1, finished + 1):
        then, now = schedule(round, config.rounds), schedule(round, rounds)
        if then != now:
            return (
                f"training.schedule {config.training.schedule.use!r} gave round {round} the factor "
                f"{then:.6g} on the learning rate, and of {rounds} rounds it gives {now:.6g}"
            )
    for kind, key, use in (
        ("loss", "loss.use", config.loss.use),
        ("sampler", "training.sampler", config.training.sampler.use),
    ):
        if "rounds" in registry.parameters(kind, use):
            return f"the {kind} {use!r} ({key}) depends on how many rounds there are"
    # Only where a longer run is asked for: whoever reads a run folder does not wait for torch and Flower.
    from fedvision.flower.strategy import FlowerStrategy, build_strategy

    strategy = build_strategy(config.strategy, seed=config.seed)
    if isinstance(strategy, FlowerStrategy) and strategy.refines:
        for round in range(1, finished + 1):
            if strategy.query(round, config.rounds, ()) != strategy.query(round, rounds, ()):
                return (
                    f"the strategy {config.strategy.use!r} refined the model of round {round} as in a run of "
                    f"{config.rounds} rounds"
                )
    if finished < config.rounds:
        return None
    if config.evaluation.with_training:
        return (
            f"with evaluation.with_training clients measured the model of round {config.rounds}, the last "
            "one, after it and not as they trained in the next"
        )
    if config.evaluation.calibrate:
        return f"clients' images gave the model of round {config.rounds}, the last one, its temperature"
    if config.rounds % config.evaluation.every:
        return (
            f"round {config.rounds} was measured because it was the last one: "
            f"evaluation.every = {config.evaluation.every} does not come to it"
        )
    return None


def difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Return the first dotted key in which two nested tables differ, with both values, or None.

    A key that one of them lacks has None there.
    """
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return None if old == new and type(old) is type(new) else (key, old, new)
    for name in [*old, *(name for name in new if name not in old)]:
        if found := difference(old.get(name), new.get(name), f"{key}.{name}" if key else name):
            return found
    return None


def _text(value: Any) -> str:
    return "not set" if value is None else repr(value)
