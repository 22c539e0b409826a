"""What a strategy does between a round's training and its measurement rests on the round's streams alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedvision import simulate
from fedvision.algorithms.base import ServerContext
from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import ClientError
from fedvision.flower.client_registry import SimulatedClientRegistry
from fedvision.flower.strategy import FlowerStrategy
from fedvision.reporting.run_data import read_facts
from fedvision.reporting.summary_sentences import summary_sentences
from fedvision.runs.events import Event, round_events
from fedvision.runs.folder import RunFolder
from fedvision.server.refinement import StatisticsPhase
from fedvision.training.client_trainer import ClientTrainer
from fedvision.types import PluginSpec, State
from tests.experiments import tiny
from tests.flower.test_strategy import Nodes


class Dropping(FedAvg):
    """Drops half of the model, as the head's dropout would while it is trained."""

    def refine(self, state: State, server: ServerContext) -> State:
        return {name: nn.functional.dropout(tensor) for name, tensor in state.items()}


def test_dropout_in_a_refinement_is_the_rounds_own() -> None:
    phase = StatisticsPhase(
        grid=Nodes(),
        client_registry=SimulatedClientRegistry(clients=4, counts=(1, 1)),
        config=tiny(),
        excluded=frozenset(),
        make_model=lambda state: nn.Identity(),
    )

    def refined(round: int) -> list[float]:
        record: dict[str, Any] = {"changed": True}
        strategy = FlowerStrategy(Dropping(), seed=0)
        return phase.after_training(strategy, round, {"w": torch.ones(64)}, record)["w"].tolist()

    first = refined(1)
    torch.rand(5)  # whatever was drawn in this process meanwhile
    assert refined(1) == first
    assert refined(2) != first


@pytest.mark.slow
@pytest.mark.parametrize("use", ["longtail", "ccvr"])
def test_a_query_that_nobody_answers_is_told(
    use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is then that of the training, and the record, the screen and the report say so."""

    def refuse(self: ClientTrainer, client: int, *rest: Any) -> Any:
        raise ClientError(client, "statistic", "its owner does not allow it")

    config = tiny(strategy={"use": use}, rounds=2)
    refined = simulate(config, engine="serial", out=tmp_path / "refined")
    monkeypatch.setattr(ClientTrainer, "statistic", refuse)
    result = simulate(config, engine="serial", out=tmp_path / "run")
    assert "unanswered" not in refined.rounds[-1]
    name = result.rounds[-1]["unanswered"]
    assert name == next(iter(refined.rounds[-1]["statistics"]))
    assert "unanswered" not in result.rounds[0]
    assert not torch.equal(result.state["head.weight"], refined.state["head.weight"])
    told = f"no client answered the strategy's query {name!r}: the model is as training left it"
    assert Event(2, "", told) in round_events(result.rounds[-1], {})
    sentence = f"No client answered the strategy's query {name!r} of the last round"
    assert any(sentence in one for one in summary_sentences(read_facts(RunFolder(tmp_path / "run"))))
    trained = simulate(
        replace(config, strategy=PluginSpec(use="fedavg")), engine="serial", out=tmp_path / "plain"
    )
    if use == "ccvr":
        assert all(torch.equal(tensor, result.state[key]) for key, tensor in trained.state.items())
