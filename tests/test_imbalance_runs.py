"""Runs with samplers, mixed priors, mixup by class and the tail at few clients: limits and engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedvision.api import simulate
from fedvision.errors import FedVisionError
from fedvision.experiment import Experiment
from fedvision.reporting.inspect_experiment import inspect_experiment
from fedvision.simulation import Simulation
from fedvision.types import PluginSpec
from tests.double import doubled
from tests.experiments import digits_of_several_labels, several_labels, tiny

TRAINING: dict[str, Any] = {"batch_size": 32, "lr": 0.1}


def state_of(folder: Path, **tables: Any) -> dict[str, torch.Tensor]:
    return simulate(tiny(rounds=2, **tables), out=folder).state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
def test_a_mixed_prior_ends_in_the_federations_and_the_clients(tmp_path: Path) -> None:
    def run(**loss: Any) -> dict[str, torch.Tensor]:
        table = {"use": "logit-adjusted", **loss}
        return state_of(tmp_path / "-".join(map(str, loss.values())), loss=table)

    federation, own = run(prior="global"), run(prior="local")
    assert same(run(prior="mixed", local_share=0.0), federation)
    assert same(run(prior="mixed", local_share=1.0), own)
    between = run(prior="mixed", local_share=0.3)
    assert not same(between, federation)
    assert not same(between, own)


def test_progressive_sampling_begins_as_shuffle(tmp_path: Path) -> None:
    progressive = TRAINING | {"sampler": "progressive"}
    runs = [simulate(tiny(training=t), out=tmp_path / str(k)) for k, t in enumerate((TRAINING, progressive))]
    losses = [[record["train_loss"] for record in run.rounds] for run in runs]
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]


def test_a_sampled_run_that_is_resumed_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Simulation.round_done

    def stop(self: Simulation, record: Any, *rest: Any) -> None:
        original(self, record, *rest)
        if record["round"] == 2:
            raise KeyboardInterrupt

    config = tiny(training=TRAINING | {"sampler": "progressive"}, strategy={"use": "fedavg", "fraction": 0.6})
    whole = simulate(config, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "round_done", stop)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, out=tmp_path / "part")
    resumed = simulate(config, out=tmp_path / "part", resume=True)
    assert resumed.rounds == whole.rounds
    assert same(resumed.state, whole.state)


def test_the_stacked_engine_draws_the_same_batches(tmp_path: Path) -> None:
    training = TRAINING | {"sampler": {"use": "effective", "beta": 0.9}}
    runs = [
        simulate(doubled(tiny(training=training, rounds=2)), out=tmp_path / use, engine=PluginSpec(use=use))
        for use in ("serial", "vectorized")
    ]
    for name, tensor in runs[0].state.items():
        torch.testing.assert_close(tensor, runs[1].state[name], rtol=1e-7, atol=1e-7)
    assert runs[0].rounds[0]["train_loss"] == pytest.approx(runs[1].rounds[0]["train_loss"], rel=1e-4)


@pytest.mark.slow
def test_mixup_with_balanced_partners_trains_and_is_another_run(tmp_path: Path) -> None:
    runs = [
        state_of(tmp_path / str(k), transforms={"mixup": 0.4, "mixup_partner": partner})
        for k, partner in enumerate(("balanced", "balanced", "random"))
    ]
    assert all(tensor.isfinite().all() for tensor in runs[0].values())
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize("use", ["balanced", "square-root", "effective", "progressive"])
def test_samplers_by_class_are_refused_for_several_labels_before_the_start(use: str, tmp_path: Path) -> None:
    tables = several_labels(digits_of_several_labels(tmp_path))
    with pytest.raises(
        FedVisionError, match=r"^training\.sampler goes by class and needs one class an image"
    ):
        Experiment.build(tiny(**tables, training=TRAINING | {"sampler": use}))


def test_balanced_partners_are_refused_for_several_labels(tmp_path: Path) -> None:
    tables = several_labels(digits_of_several_labels(tmp_path))
    with pytest.raises(FedVisionError, match=r"^transforms\.mixup_partner = 'balanced' goes by class"):
        Experiment.build(tiny(**tables, transforms={"mixup": 0.2, "mixup_partner": "balanced"}))


def test_inspect_shows_the_tails_clients_and_the_mixed_losses() -> None:
    partition = {"use": "dirichlet", "clients": 5, "alpha": 0.5, "imbalance": 10, "tail_clients": 2}
    loss = {"use": "logit-adjusted", "prior": "mixed", "local_share": 0.5}
    text = inspect_experiment(Experiment.build(tiny(partition=partition, loss=loss)))
    assert "alone (partition.tail_clients)" in text
    assert "loss,    loss,     loss," in text
    assert "nan" not in text
