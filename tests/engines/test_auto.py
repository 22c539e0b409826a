"""The choice of an engine: processes where they save more than they cost to start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedvision import registry
from fedvision.api import simulate
from fedvision.engines.auto import choose, choose_on_gpus
from fedvision.engines.client_host import CostEstimate, SimulatedClientHosts
from fedvision.experiment import Experiment
from fedvision.training import client_trainer
from tests.experiments import tiny


@pytest.mark.parametrize(
    ("seconds", "cohort", "workers", "expected"),
    [
        (7.5, 10, 2, ("serial", None)),  # 4 + 3.75 is no gain
        (8.5, 10, 2, ("ray", 2)),
        (1000.0, 10, 1, ("serial", None)),  # one processor
        (1000.0, 1, 8, ("serial", None)),  # one client at a time
        (1000.0, 5, 8, ("ray", 5)),  # no more workers than clients in a round
    ],
)
def test_processes_pay_where_there_is_enough_to_do(
    seconds: float, cohort: int, workers: int, expected: tuple[str, int | None]
) -> None:
    spec, why = choose(CostEstimate(seconds=seconds, cohort=cohort), workers)
    assert (spec.use, spec.args.get("workers")) == expected
    assert f"about {seconds:.0f} s" in why


def test_gpus_get_vectorized_engines() -> None:
    assert choose_on_gpus(1)[0].use == "vectorized"
    spec, why = choose_on_gpus(4)
    assert (spec.use, spec.args["workers"], spec.args["inner"]) == ("ray", 4, "vectorized")
    assert "4 GPUs" in why
    # What is chosen can be built.
    registry.build("engine", spec)


def test_a_short_run_is_serial_with_the_reason_in_the_summary(tmp_path: Path) -> None:
    result = simulate(tiny(rounds=1), engine="auto", out=tmp_path / "run")
    (notice,) = [line for line in result.folder.summary()["notices"] if line.startswith("engine")]
    assert notice.startswith("engine serial: about ")


@pytest.mark.slow
def test_the_forecast_is_what_the_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only training moves, by a hundredth of a second for each image that is seen."""
    clock, train = [0.0], client_trainer.fit

    def fit(model: Any, part: Any, request: Any, **keys: Any) -> Any:
        clock[0] += 0.01 * len(part) * keys["settings"].training.epochs
        return train(model, part, request, **keys)

    monkeypatch.setattr(client_trainer, "fit", fit)
    monkeypatch.setattr(client_trainer.time, "perf_counter", lambda: clock[0])
    config = tiny(rounds=20, training={"batch_size": 32, "epochs": 2})
    federation = Experiment.build(config)
    host_factory = SimulatedClientHosts(
        config=config,
        dataset=federation.dataset,
        split=federation.split,
        model=federation.model,
        memory=tmp_path / "clients",
    )
    before = {name: tensor.clone() for name, tensor in federation.model.state_dict().items()}
    estimate_cost = host_factory.estimate_cost()
    assert all(torch.equal(tensor, before[n]) for n, tensor in federation.model.state_dict().items())
    assert estimate_cost.cohort == 5
    clock[0] = 0.0
    simulate(config, out=tmp_path / "run", engine="serial")
    assert estimate_cost.seconds == pytest.approx(clock[0])
    assert clock[0] == pytest.approx(0.01 * sum(map(federation.split.size, range(5))) * 2 * 20)
    assert not (tmp_path / "clients").exists()
