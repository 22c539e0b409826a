"""The command for one device: what it runs, and its table by hand."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import environments
import figures
import gpu
import phases
import pytest
import workloads
from harness import Turn

from fedvision.config import ExperimentConfig
from fedvision.types import PluginSpec
from tests.experiments import tiny

OPTIONS = argparse.Namespace(rounds=5, device="cuda:1", stack=8)
LIMITS = {
    "roofline_s": 0.5,
    "serial_launches": 1674.0,
    "vectorized_launches": 366.0,
    "played_launches": 9.5,
    "apart": 1e-7,
}
PFL = {"marks": [5.0, 8.0, 13.0], "evaluation_s": 3.0}


def measured(rival: str, repetition: int = 0, **found: Any) -> dict[str, Any]:
    return {"workload": "w1", "rival": rival, "repetition": repetition, **found}


def ours(rival: str, seconds: float, processor: float, **found: Any) -> dict[str, Any]:
    return measured(rival, train_s=seconds, processor_s=processor, **found)


def test_a_rivals_seconds_are_its_rounds_but_the_first_without_evaluation() -> None:
    assert gpu.seconds(PFL) == 5.0
    assert gpu.seconds({"train_s": 2.0, "marks": [1.0, 9.0], "evaluation_s": 0.0}) == 2.0


def test_ratios_and_shares_by_hand() -> None:
    runs = [ours("serial", 10.0, 8.0), ours("vectorized", 1.0, 2.0), measured("pfl", **PFL)]
    (row,) = gpu.rows([measured("limits", **LIMITS), *runs])
    assert row["pfl_s"] == 5.0
    assert (row["of_serial"], row["of_pfl"], row["of_processor"]) == (0.1, 0.2, 0.25)
    assert (row["serial_share"], row["vectorized_share"]) == (0.05, 0.5)


def test_the_table_holds_medians_and_marks_what_was_not_measured() -> None:
    runs: list[dict[str, Any]] = [measured("limits", **LIMITS)]
    for repetition, (serial, vectorized) in enumerate([(10.0, 1.0), (30.0, 2.0), (12.0, 3.0)]):
        runs += [
            ours("serial", serial, 1.0, repetition=repetition),
            ours("vectorized", vectorized, 1.0, repetition=repetition),
        ]
    head, rule, missing, last = gpu.table("cpu", runs).splitlines()
    assert head.startswith("| device | n | serial, s | vectorized, s | not played back, s | pfl, s |")
    assert head.endswith("| launches, serial | launches, vectorized | played back |")
    assert missing == "| GPU |" + " not measured |" * rule.count("---|", 4)
    assert last.startswith(
        "| cpu | 3 | 12.00 (10.00 to 30.00) | 2.00 (1.00 to 3.00) | not measured | not measured | 0.100 ("
    )
    assert last.endswith("| 1,674 | 366 | 9.5 |")
    assert "GPU" not in gpu.table("cuda (NVIDIA A100)", runs)


def test_a_table_of_nothing_but_one_engine_stands() -> None:
    line = gpu.table("cuda", [ours("vectorized", 1.0, 1.0)]).splitlines()[-1]
    assert line.startswith("| cuda | 1 | not measured | 1.00 | not measured | not measured |")


def test_measurements_of_unlike_images_are_refused() -> None:
    runs = [ours("serial", 1.0, 1.0, examples=100), measured("pfl", examples=99, **PFL)]
    with pytest.raises(ValueError, match="unlike numbers of images"):
        gpu.rows(runs)


def test_the_picture_has_a_bar_for_each_and_no_limits(tmp_path: Path) -> None:
    runs = [measured("limits", **LIMITS), ours("serial", 10.0, 8.0), measured("pfl", **PFL)]
    made = gpu.drawn(runs)
    assert [(run["rival"], run["loop_s"]) for run in made] == [("fedvision-serial", 10.0), ("pfl", 5.0)]
    figures.draw(made, ["w1"], tmp_path / "picture.svg", "seconds")
    assert (tmp_path / "picture.svg").read_text().count("<path") > 10


def test_device_and_rounds_reach_every_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "file", lambda workload: Path(f"{workload}.npz"))
    monkeypatch.setattr(environments, "python", lambda rival: Path(f"{rival}/python"))
    pfl = gpu.command(Turn("w1", "pfl", 0), OPTIONS)
    assert pfl[0] == "pfl/python"
    assert pfl[2:] == ["w1.npz", "--batch", "32", "--every", "5", "--rounds", "5", "--device", "cuda:1"]
    own = gpu.command(Turn("w1", "vectorized", 0), OPTIONS)
    assert Path(own[1]).is_file()
    assert PluginSpec(**json.loads(own[3])) == PluginSpec(use="vectorized", args={"stack": 8})
    launched = gpu.command(Turn("w1", "launched", 0), OPTIONS)
    assert PluginSpec(**json.loads(launched[3])).args == {"stack": 8, "record": False}
    assert list(gpu.engines(8)) == ["serial", "vectorized"]
    assert own[4:] == ["--rounds", "5", "--device", "cuda:1"]


def test_a_rival_that_cannot_be_installed_is_left_out_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(rival: str) -> Path:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(environments, "python", fail)
    assert gpu.installed(["pfl"]) == []
    assert capsys.readouterr().out == "pfl is not measured: pip could not install pfl==0.6.0\n"


def test_what_is_measured_is_w1_with_one_evaluation() -> None:
    table = workloads.experiment("w1", rounds=6)
    table["evaluation"]["every"], table["training"]["device"] = 6, "cpu"
    assert phases.experiment(6, "cpu") == ExperimentConfig.from_dict(table)


@pytest.mark.slow
def test_the_first_round_warms_up_and_the_images_are_counted() -> None:
    whole = {"partition": {"use": "iid", "clients": 5}, "strategy": {"use": "fedavg", "fraction": 1.0}}
    config = tiny(**whole)
    facts, state = phases.run(config, PluginSpec(use="serial"))
    assert facts["rounds"] == 3
    assert facts["examples"] == 3 * 1442
    assert 0 < facts["train_s"] < facts["loop_s"]
    assert facts["notes"] == []
    assert state


@pytest.mark.slow
def test_benchmark_refuses_clients_trained_one_by_one() -> None:
    """Clients that were trained one by one are no measurement of an engine."""
    # Mixup blends the images of a batch, which a stack of clients pads.
    with pytest.raises(SystemExit, match=r"no measurement of vectorized: .* one by one: mixup"):
        phases.run(tiny(transforms={"mixup": 0.2}), PluginSpec(use="vectorized"))
