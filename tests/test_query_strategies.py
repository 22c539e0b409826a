"""Runs of strategies whose clients do not train: the model is made of the answers to queries alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedvision.algorithms.base import Answer, QueryStrategy, ServerContext
from fedvision.api import simulate
from fedvision.data.partition.client_shards import ClientShards
from fedvision.errors import ConfigError, RunError
from fedvision.experiment import Experiment
from fedvision.reporting.participation import participants
from fedvision.runs.member_register import MemberRegister
from fedvision.trained_model import load
from fedvision.training.statistics import LocalData
from fedvision.types import Query, State
from tests.experiments import tiny


def images_like(*, data: LocalData, tensors: State, power: int = 1) -> dict[str, torch.Tensor]:
    """The sum of (brightness - centre)^power over a client's images, and their number."""
    centre = tensors.get("centre", torch.zeros(()))
    brightness = [(x.double().mean((1, 2, 3)).cpu() - centre) ** power for x, _ in data.batches()]
    return {"sum": torch.cat(brightness).sum()[None], "count": torch.tensor([len(data)])}


class Spread(QueryStrategy):
    """Makes the head's bias the deviation of the images' brightness: a second query needs the first's answer.

    Args:
        silent: Rounds that leave the model as it is.
        fraction: Share of the clients that are queried.
    """

    def __init__(self, *, silent: int = 0, fraction: float = 1.0) -> None:
        super().__init__(fraction=fraction)
        self.silent = silent

    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        use = f"{__name__}:images_like"
        if len(answers) == 2:
            return None
        centre = _mean(answers[0]) if answers else torch.zeros(())
        return Query(use=use, args={"power": len(answers) + 1}, tensors={"centre": centre})

    def refine(self, state: State, server: ServerContext) -> State:
        if server.round <= self.silent:
            return state
        deviation = _mean(server.answers[1]).sqrt()
        return state | {"head.bias": torch.full_like(state["head.bias"], float(deviation) * server.round)}


def _mean(answer: Answer) -> torch.Tensor:
    return torch.tensor(float(answer["sum"][0]) / float(answer["count"][0]), dtype=torch.float64)


def failing(*, data: LocalData) -> dict[str, torch.Tensor]:
    """A statistic that fails on real images."""
    if data.shard.images.any():
        raise ValueError("no brightness")
    return {"sum": torch.ones(1), "count": torch.ones(1)}


class Failing(Spread):
    """Asks what no client can answer."""

    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        return None if answers else Query(use=f"{__name__}:failing")

    def refine(self, state: State, server: ServerContext) -> State:
        return dict(state)


def spread(use: str = "Spread", **tables: Any) -> Any:
    args = tables.pop("args", {})
    return tiny(**{"rounds": 2, "strategy": {"use": f"{__name__}:{use}", **args}} | tables)


def test_a_model_of_two_queries(tmp_path: Path) -> None:
    config = spread(training={"device": "cpu"})
    built = Experiment.build(config)
    shards = ClientShards(built.dataset.train, built.split)
    parts = [shards.train(client) for client in range(5)]
    images = torch.cat([torch.from_numpy(part.images[part.indices]) for part in parts])
    brightness = ((images.double() / 255 - 0.5) / 0.25).mean((1, 2, 3))
    before = {name: tensor.clone() for name, tensor in built.model.state_dict().items()}
    found = simulate(built, out=tmp_path / "run")
    deviation = float(brightness.std(correction=0))
    assert found.state["head.bias"].tolist() == pytest.approx([2 * deviation] * 10, rel=1e-6)
    for name, tensor in before.items():
        assert name == "head.bias" or torch.equal(found.state[name], tensor)
    for number, record in enumerate(found.rounds, 1):
        assert (record["round"], record["changed"], record["clients"]) == (number, True, [0, 1, 2, 3, 4])
        assert (record["examples"], record["refused"]) == (len(images), [])
        assert (record["train_loss"], record["lr"], record["client_loss"]) == (None, None, {})
        use = f"{__name__}:images_like"
        assert list(record["statistics"]) == [use, f"{use} (2)"]
        assert record["server"]["scores"]["accuracy"] > 0
        assert record["bytes"]["up"] == 5 * 2 * 16
    assert found.frame()["clients"].tolist() == [5, 5]
    assert (tmp_path / "run/report.html").is_file()
    assert load(tmp_path / "run") is not None


@pytest.mark.slow
def test_engines_and_resumed_runs_agree(tmp_path: Path) -> None:
    whole = simulate(spread(rounds=3), out=tmp_path / "whole")
    simulate(spread(rounds=2), out=tmp_path / "resumed")
    resumed = simulate(spread(rounds=3), out=tmp_path / "resumed", resume=True)
    vectorized = simulate(spread(rounds=3), engine="vectorized", out=tmp_path / "vectorized")
    for other in (resumed, vectorized):
        assert other.rounds == whole.rounds
        assert all(torch.equal(other.state[name], tensor) for name, tensor in whole.state.items())


def test_a_share_of_the_clients_is_queried(tmp_path: Path) -> None:
    found = simulate(spread(args={"fraction": 0.4}), out=tmp_path / "run")
    cohorts = [record["clients"] for record in found.rounds]
    assert [len(cohort) for cohort in cohorts] == [2, 2]
    for record in found.rounds:
        assert all(one["clients"] == record["clients"] for one in record["statistics"].values())


def test_a_round_that_leaves_the_model_failed(tmp_path: Path) -> None:
    found = simulate(spread(args={"silent": 1}), out=tmp_path / "run")
    assert [(record["changed"], record["clients"]) for record in found.rounds] == [
        (False, []),
        (True, [0, 1, 2, 3, 4]),
    ]
    with pytest.raises(RunError, match="no client succeeded in 2 rounds in a row"):
        simulate(spread(args={"silent": 2}), out=tmp_path / "none")


def test_a_round_without_answers_failed_and_names_the_cause(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no client succeeded in 1 round in a row; client 0: .*no brightness"):
        simulate(spread("Failing", rounds=1), out=tmp_path / "run")


def sometimes(*, data: LocalData, tensors: State, power: int = 1) -> dict[str, torch.Tensor]:
    """As ``images_like``; a client with an even number of images fails at the first query alone."""
    if power == 1 and len(data) % 2 == 0 and data.shard.images.any():
        raise ValueError("not now")
    return images_like(data=data, tensors=tensors, power=power)


class Sometimes(Spread):
    """Asks clients of whom some answer the first query only."""

    def query(self, round: int, rounds: int, answers: Sequence[Answer]) -> Query | None:
        found = super().query(round, rounds, answers)
        return None if found is None else replace(found, use=f"{__name__}:sometimes")


def test_who_did_not_answer_is_not_asked_again_in_the_round(tmp_path: Path) -> None:
    """The second query's tensors rest on the images of those who answered the first one."""
    config = spread("Sometimes", rounds=1)
    sizes = [Experiment.build(config).split.size(client) for client in range(5)]
    odd = [client for client, size in enumerate(sizes) if size % 2]
    assert 0 < len(odd) < 5
    (record,) = simulate(config, out=tmp_path / "run").rounds
    assert [one["clients"] for one in record["statistics"].values()] == [odd, odd]
    assert (record["clients"], record["examples"]) == (odd, sum(sizes[client] for client in odd))
    assert {item["client"] for item in record["refused"]} == set(range(5)).difference(odd)
    assert len(record["refused"]) == 5 - len(odd)


def test_fewer_answers_than_the_quorum_leave_the_model(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no client succeeded"):
        simulate(spread(rounds=1, args={"fraction": 0.4}, round={"min_clients": 3}), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ({"update": [{"use": "float16"}]}, r"\[\[update\]\]"),
        ({"round": {"buffer": 2}}, "round.buffer"),
        ({"evaluation": {"with_training": True, "holdout": 0.2}}, "evaluation.with_training"),
    ],
)
def test_keys_about_training_are_refused(tables: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"has no client train, so {key} has nothing to act on"):
        Experiment.build(spread(**tables))


def test_a_client_without_an_answer_to_a_query_has_failed(tmp_path: Path) -> None:
    register = MemberRegister(tmp_path / "members.jsonl")
    for client, name in enumerate(["north", "south"]):
        register.joined(client, name, "", node=client, sharing="plain")
    refused = {"client": 1, "stage": "statistic", "kind": "failed", "reason": "no images"}
    record = {"round": 1, "clients": [0], "lr": None, "refused": [refused, refused]}
    north, south = participants(register, [record])
    assert (north.used, north.failed, north.takes_part) == (1, 0, True)
    assert (south.used, south.failed, south.reason, south.takes_part) == (0, 1, "no images", False)
    _, trained = participants(register, [record | {"lr": 0.1}])
    assert trained.failed == 0, "what trained the model were other clients"
