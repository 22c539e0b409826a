"""The choice of an engine: processes where they save more than they cost to start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedvision import registry
from fedvision.api import simulate
from fedvision.engines.auto import choose, choose_on_gpus
from fedvision.engines.client_host import CostEstimate
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


def test_the_forecast_is_of_the_right_size(tmp_path: Path) -> None:
    import time

    from fedvision.engines.client_host import SimulatedClientHosts
    from fedvision.experiment import Experiment

    config = tiny(rounds=20)
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
    start = time.perf_counter()
    simulate(config, out=tmp_path / "run")
    assert estimate_cost.seconds > 0
    assert 0.02 < estimate_cost.seconds / (time.perf_counter() - start) < 10
    assert not (tmp_path / "clients").exists()
