"""What a client keeps of its update: the same where a round is trained again, older after a lost answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fedvision.engines.client_host import SimulatedClientHosts
from fedvision.experiment import Experiment
from fedvision.models.state import get_state, shared_names
from fedvision.training.client_trainer import ClientTrainer
from fedvision.types import State, TrainRequest
from tests.experiments import tiny


def trainer(folder: Path) -> ClientTrainer:
    experiment = Experiment.build(tiny(update=[{"use": "top-k", "fraction": 0.05}]))
    hosts = SimulatedClientHosts(
        config=experiment.config,
        dataset=experiment.dataset,
        split=experiment.split,
        model=experiment.model,
        memory=folder,
    )
    return hosts.trainer()


def sent(trainer: ClientTrainer, round: int, silent_since: int | None = None) -> State:
    """Return what client 1 sends in a round that begins with the first model."""
    state = {name: torch.full_like(tensor, 0.01) for name, tensor in received(trainer).items()}
    request = TrainRequest(round=round, client=1, state=state)
    return trainer.train(replace(request, silent_since=silent_since)).state


def received(trainer: ClientTrainer) -> State:
    return get_state(trainer.model, shared_names(trainer.model, trainer.config.model.shared))


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_lost_answer_neither_loses_nor_doubles_what_was_left_out(tmp_path: Path) -> None:
    """Round 2 is trained and lost: round 3 is that of a client which never trained round 2."""
    struck, whole = trainer(tmp_path / "struck"), trainer(tmp_path / "whole")
    assert same(sent(struck, 1), sent(whole, 1))
    sent(struck, 2)
    after_a_loss, expected = sent(struck, 3, silent_since=2), sent(whole, 3)
    assert same(after_a_loss, expected)
    # A client that was killed between keeping and answering trains again, in another process.
    assert same(sent(trainer(tmp_path / "struck"), 3, silent_since=2), expected)
    # The residual counts: without the loss of round 2 another update travels, and without round 1 a third.
    assert not same(sent(struck, 3), expected)
    assert not same(sent(trainer(tmp_path / "new"), 3), expected)
