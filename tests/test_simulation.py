"""The main job end to end: a federation on real digits trains, measures and records, twice to the bit."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score

from fedvision import simulate
from fedvision.algorithms.fedprox import FedProx
from fedvision.algorithms.mean import Sums
from fedvision.errors import ConfigError, RoundAborted, RunError
from fedvision.experiment import Experiment
from fedvision.runs.progress import Silent
from fedvision.types import ClientConfig, State
from tests.experiments import tiny


def same(a: State, b: State) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_learns_and_leaves_a_whole_folder(tmp_path: Path) -> None:
    config = tiny(rounds=8, evaluation={"holdout": 0.2}, training={"lr": 0.1, "momentum": 0.9, "epochs": 3})
    result = simulate(config, out=tmp_path / "run")
    assert result.rounds[-1]["train_loss"] < 0.7 * result.rounds[0]["train_loss"]
    assert result.scores["accuracy"] > 0.35  # chance is 0.1
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {
        "config.toml", "environment.json", "split.json", "rounds.jsonl", "timings.jsonl", "checkpoint",
        "model.safetensors", "summary.json", "mistakes.safetensors", "report.html",
    }  # fmt: skip
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "finished"
    assert 10**7 < summary["memory"].pop("process") < 10**11
    summary["memory"].pop("device", None)  # of a machine with a GPU
    assert summary["memory"] == {"workers": []}
    record = result.rounds[-1]
    assert set(record["local"]["accuracy"]) <= {str(client) for client in range(5)}
    assert record["local"]["spread"]["worst"] <= record["local"]["scores"]["accuracy"]


def test_the_recorded_scores_are_scikit_learns_on_the_saved_model(tmp_path: Path) -> None:
    config = tiny()
    result = simulate(config, out=tmp_path / "run")
    federation = Experiment.build(config)
    federation.model.load_state_dict(load_file(tmp_path / "run/model.safetensors"))
    test = federation.dataset.test
    assert test is not None
    x = (torch.from_numpy(test.images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        predicted = federation.model.eval()(x).argmax(1).numpy()
    assert result.scores["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(test.labels, predicted), abs=1e-9
    )
    assert result.scores["accuracy"] == pytest.approx(float(np.mean(predicted == test.labels)), abs=1e-9)


def test_two_runs_have_the_same_bits_and_the_same_history(tmp_path: Path) -> None:
    config = tiny(
        strategy={"use": "fedadam", "fraction": 0.6}, model={"use": "cnn", "width": 4, "dropout": 0.3}
    )
    one, two = (simulate(config, out=tmp_path / name) for name in "ab")
    assert same(one.state, two.state)
    for file in ("rounds.jsonl", "model.safetensors", "split.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("own", [False, True])
def test_what_is_there_before_the_rounds_is_not_collected_in_them(own: bool, tmp_path: Path) -> None:
    frozen: list[int] = []

    class RoundState(Silent):
        def round_done(self, *_: Any) -> None:
            frozen.append(gc.get_freeze_count())

    if own:
        gc.freeze()  # as a program may have done that calls us
    try:
        simulate(tiny(rounds=2), out=tmp_path / "run", progress=RoundState())
        assert min(frozen) > 10_000
        assert (gc.get_freeze_count() > 0) == own
    finally:
        gc.unfreeze()


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    one, two = (simulate(tiny(seed=seed), out=tmp_path / str(seed)) for seed in (1, 2))
    assert not same(one.state, two.state)


def stopping_after(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a run end as by Ctrl-C when it has written the checkpoint of a round."""
    from fedvision.simulation import Simulation

    original = Simulation.round_done

    def stop(self: Simulation, record: Any, *rest: Any) -> None:
        original(self, record, *rest)
        if record["round"] == rounds:
            raise KeyboardInterrupt

    monkeypatch.setattr(Simulation, "round_done", stop)


@pytest.mark.parametrize("every", [2, 5])
def test_sparse_checkpoints_resume_to_the_same_bits(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(rounds=5, checkpoint_every=every, strategy={"use": "scaffold", "fraction": 0.6})
    whole = simulate(config, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping_after(4 if every == 5 else 3, patch)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, out=tmp_path / "cut")
    assert same(whole.state, simulate(config, out=tmp_path / "cut", resume=True).state)
    assert (tmp_path / "whole/rounds.jsonl").read_bytes() == (tmp_path / "cut/rounds.jsonl").read_bytes()


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = simulate(tiny(), out=tmp_path / "run")
    before = (tmp_path / "run/rounds.jsonl").read_bytes()
    again = simulate(tiny(), out=tmp_path / "run", resume=True)
    assert same(first.state, again.state)
    assert (tmp_path / "run/rounds.jsonl").read_bytes() == before


@pytest.mark.parametrize("shared", ["no-batch-norm-statistics", "trainable"])
def test_tensors_that_stay_are_each_clients_own(shared: str, tmp_path: Path) -> None:
    model = {"use": "resnet8", "norm": "batch", "width": 4, "shared": shared}
    result = simulate(tiny(rounds=2, model=model, evaluation={"holdout": 0.2}), out=tmp_path / "run")
    assert not any("running" in name for name in result.state)
    loaded = load_file(next((tmp_path / "run/clients/000000/000000000").glob("round-*.safetensors")))
    assert any("running_mean" in name for name in loaded)
    other = load_file(next((tmp_path / "run/clients/000000/000000001").glob("round-*.safetensors")))
    assert any(not torch.equal(loaded[name], other[name]) for name in loaded if "running_mean" in name)


def test_batch_norm_statistics_travel_and_integers_do_not(tmp_path: Path) -> None:
    model = {"use": "resnet8", "norm": "batch", "width": 4}
    result = simulate(tiny(rounds=1, model=model), out=tmp_path / "run")
    assert any(name.endswith("running_var") for name in result.state)
    assert not any("num_batches_tracked" in name for name in result.state)
    saved = load_file(tmp_path / "run/model.safetensors")
    assert any("num_batches_tracked" in name for name in saved)


def test_the_data_frame_has_a_row_a_round(tmp_path: Path) -> None:
    frame = simulate(tiny(), out=tmp_path / "run").frame()
    assert list(frame.index) == [1, 2, 3]
    assert {"train_loss", "server.accuracy", "server.balanced_accuracy", "bytes.up", "lr"} <= set(
        frame.columns
    )
    assert frame["server.accuracy"].notna().all()


def test_measurements_keep_to_their_rounds(tmp_path: Path) -> None:
    result = simulate(tiny(rounds=5, evaluation={"every": 3}), out=tmp_path / "run")
    assert [bool(record["server"]) for record in result.rounds] == [False, False, True, False, True]


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_what_is_measured_with_training_is_what_is_measured_after_it(engine: str, tmp_path: Path) -> None:
    model = {"use": "cnn", "width": 4, "dropout": 0.3}
    one, two = (
        simulate(
            tiny(rounds=4, model=model, evaluation={"holdout": 0.2, "every": 2, "with_training": riding}),
            engine=engine,
            out=tmp_path / str(riding),
        )
        for riding in (False, True)
    )
    assert same(one.state, two.state)
    assert [bool(record["local"]) for record in two.rounds] == [False, True, False, True]
    assert [record["local"] for record in one.rounds] == [record["local"] for record in two.rounds]
    assert [record["clients"] for record in one.rounds] == [record["clients"] for record in two.rounds]
    assert [record["server"] for record in one.rounds] == [record["server"] for record in two.rounds]
    lines = [json.loads(line) for line in (tmp_path / "True/rounds.jsonl").read_text().splitlines()]
    assert [line.get("received", {}).get("round") for line in lines] == [None, None, 2, None]
    # Round 2 sends the model once, and what was counted comes with round 3.
    sent = sum(tensor.numel() * 4 for tensor in two.state.values())
    second, third = (line["bytes"] for line in lines[1:3])
    assert second == {"down": 5 * sent, "up": 5 * sent}
    # Counts come as tables or as the cells that occur, 16 bytes each, whichever is smaller.
    counts = third["up"] - 5 * sent
    assert third["down"] == 5 * sent
    assert 0 < counts <= 5 * 8 * 10 * 10
    assert counts % 16 == 0
    assert two.scores == one.scores


def test_bytes_are_those_of_the_models_sent(tmp_path: Path) -> None:
    result = simulate(tiny(rounds=1), out=tmp_path / "run")
    model = sum(tensor.numel() * 4 for tensor in result.state.values())
    assert result.rounds[0]["bytes"] == {"down": 5 * model, "up": 5 * model}


def test_a_stock_strategy_that_would_wait_for_ever_is_refused(tmp_path: Path) -> None:
    config = tiny(strategy={"use": "flwr.serverapp.strategy:FedAvg"}, partition={"use": "iid", "clients": 1})
    with pytest.raises(ConfigError, match=r"strategy\.min_available_nodes is 2 but there are 1 clients"):
        simulate(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_lower_precision_trains(precision: str, tmp_path: Path) -> None:
    config = tiny(training={"precision": precision, "lr": 0.1, "clip_norm": 1.0, "steps": 5})
    result = simulate(config, out=tmp_path / "run")
    assert result.rounds[-1]["train_loss"] < result.rounds[0]["train_loss"]
    assert all(tensor.dtype is torch.float32 for tensor in result.state.values())


def test_a_round_whose_sums_are_lost_is_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulate(tiny(rounds=2), out=tmp_path / "whole")
    finalize, lost = Sums.finalize, [1, 2]

    def losing(sums: Sums) -> State:
        if lost:
            lost.pop()
            raise RoundAborted("a worker was lost")
        return finalize(sums)

    monkeypatch.setattr(Sums, "finalize", losing)
    again = simulate(tiny(rounds=2), out=tmp_path / "again")
    assert lost == []
    assert same(again.state, whole.state)
    assert (tmp_path / "again/rounds.jsonl").read_bytes() == (tmp_path / "whole/rounds.jsonl").read_bytes()


class Failing(FedProx):
    """From round 3 on it does not send what its client half needs."""

    def configure(self, round: int, state: State, client: int) -> ClientConfig:
        return ClientConfig() if round > 2 else super().configure(round, state, client)


def test_a_run_that_fails_leaves_its_last_good_model_and_names_it(tmp_path: Path) -> None:
    config = tiny(strategy={"use": f"{__name__}:Failing"}, rounds=9, round={"failed_rounds": 2})
    with pytest.raises(RunError) as caught:
        simulate(config, out=tmp_path / "run")
    assert "no client succeeded in 2 rounds in a row; client 0: " in str(caught.value)
    model = tmp_path / "run/model.safetensors"
    assert f"the model of round 3 is in {model} and in the checkpoint beside it" in str(caught.value)
    # Round 3 failed and is recorded; it left the model as round 2 had made it.
    good = simulate(tiny(rounds=2, strategy={"use": "fedprox"}), out=tmp_path / "good")
    assert same(load_file(model), load_file(tmp_path / "good/model.safetensors"))
    (checkpoint,) = (tmp_path / "run/checkpoint").glob("round-*/model.safetensors")
    assert same(load_file(checkpoint), good.state)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", str(caught.value))
    page = (tmp_path / "run/report.html").read_text()
    for event in ("the model stayed as it was: 0 usable answers", "got no number"):
        assert page.count(event) >= 2, "of round 3 and of round 4, with which it ended"


def test_model_that_fails_after_the_last_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that fails after the last round ends in a sentence and is kept."""
    from fedvision.runs import final_pictures

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no batch of 100")

    monkeypatch.setattr(final_pictures, "predict", fail)
    with pytest.raises(
        RunError, match="after the last round, raised ValueError: no batch of 100; correct it and"
    ):
        simulate(tiny(rounds=1), out=tmp_path / "run")
    assert (tmp_path / "run/model.safetensors").is_file()
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"
    monkeypatch.undo()
    assert (
        simulate(tiny(rounds=1), out=tmp_path / "run", resume=True).folder.summary()["status"] == "finished"
    )


def test_a_calibrated_head_is_the_last_thing_that_happens_to_a_model(tmp_path: Path) -> None:
    """CCVR's rounds are FedAvg's; after the last one the head is another one, and that is measured."""
    plain = simulate(tiny(rounds=2), out=tmp_path / "fedavg")
    found = simulate(tiny(rounds=2, strategy={"use": "ccvr", "steps": 50}), out=tmp_path / "ccvr")
    for name, tensor in plain.state.items():
        assert torch.equal(tensor, found.state[name]) == (not name.startswith("head."))
    assert found.rounds[0] == plain.rounds[0]
    last = found.rounds[1]
    assert last["statistics"]["feature-moments"]["clients"] == list(range(5))
    assert last["statistics"]["feature-moments"]["examples"] == last["examples"]
    assert last["server"] != plain.rounds[1]["server"]
    assert same(load_file(tmp_path / "ccvr/model.safetensors"), found.state)


def test_a_run_records_its_statistics(tmp_path: Path) -> None:
    config = tiny(rounds=2, evaluation={"statistics": ["class-counts"], "every": 2})
    result = simulate(config, out=tmp_path / "run")
    assert "statistics" not in result.rounds[0]
    statistic = result.rounds[1]["statistics"]["class-counts"]
    assert statistic["sums"]["count"] == Experiment.build(config).split.distinct.tolist()
    assert statistic["clients"] == [0, 1, 2, 3, 4]


def one_piece(*, num_classes: int, image_size: tuple[int, int]) -> torch.nn.Module:
    """A network without halves."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(image_size), num_classes))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"evaluation": {"statistics": ["class-count"]}}, "there is no such statistic"),
        (
            {"strategy": {"use": "ccvr"}, "model": {"use": f"{__name__}:one_piece"}},
            "needs a network of backbone and head",
        ),
    ],
)
def test_impossible_statistics_are_refused_before_the_run(
    tables: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(tiny(**tables), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_wrapper_does_not_leave_out_what_its_strategy_does_on_the_server() -> None:
    wrapped = {
        "use": "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping",
        "strategy": {"use": "ccvr"},
        "noise_multiplier": 0.01,
        "clipping_norm": 10.0,
        "num_sampled_clients": 5,
    }
    with pytest.raises(ConfigError, match="wraps 'ccvr', whose work on the server it would leave out"):
        Experiment.build(tiny(strategy=wrapped))
