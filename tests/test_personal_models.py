"""Personal models beside the global one, end to end: by hand, resumed, on every engine, in what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedvision import simulate
from fedvision.api import RunResult
from fedvision.data.partition.client_shards import ClientShards
from fedvision.experiment import Experiment
from fedvision.models.state import load_state
from fedvision.reporting.html import write_report
from fedvision.reporting.model_card import CardOptions, model_card
from fedvision.reporting.personal_models import personal_rows, personal_sentence
from fedvision.reporting.render import run_table
from fedvision.reporting.run_data import read_facts
from fedvision.reporting.scalars import scalars
from fedvision.training.client_half import client_half
from fedvision.types import State, TrainRequest
from fedvision.watching.round_tallies import RoundTallies
from tests.experiments import tiny
from tests.test_simulation import same, stopping_after

METHODS: list[dict[str, Any]] = [
    {"use": "ditto", "lam": 0.1},
    {"use": "apfl", "alpha": 0.5},
]
HELD = {"holdout": 0.2}


@pytest.fixture(scope="module")
def ditto(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A finished run."""
    return simulate(
        tiny(strategy=METHODS[0], evaluation=HELD), out=tmp_path_factory.mktemp("personal") / "run"
    )


def memories(run: Path) -> dict[int, State]:
    """Return what each client that has trained kept last."""
    found = {}
    for folder in sorted((run / "clients/000000").iterdir()):
        kept = load_file(max(folder.glob("round-*.safetensors")))
        found[int(folder.name)] = {key.removeprefix("personal-model/"): t for key, t in kept.items()}
    return found


@pytest.mark.parametrize("strategy", METHODS, ids=lambda table: str(table["use"]))
def test_what_is_recorded_is_what_the_kept_models_predict(strategy: dict[str, Any], tmp_path: Path) -> None:
    """Client by client: the global model where a client has never trained, else its own."""
    config = tiny(rounds=1, strategy={**strategy, "fraction": 0.6}, evaluation=HELD)
    result = simulate(config, out=tmp_path / "run")
    experiment = Experiment.build(config)
    shards, model = ClientShards(experiment.dataset.train, experiment.split), experiment.model.eval()
    half = client_half(TrainRequest(round=1, client=0, state={}, algorithm=strategy["use"]))
    kept = memories(tmp_path / "run")
    assert len(kept) == 3
    shares, right, images = {}, 0, 0
    for client in range(5):
        shard = shards.test(client)
        own = half.personal_state(kept[client], result.state) if client in kept else result.state
        load_state(model, own)
        x = (torch.from_numpy(shard.images[shard.indices]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        hits = model(x).argmax(1).numpy() == shard.labels[shard.indices]
        shares[str(client)] = float(hits.mean())
        right, images = right + int(hits.sum()), images + len(shard)
    (record,) = result.rounds
    assert record["personal"]["accuracy"] == pytest.approx(shares)
    assert record["personal"]["scores"]["accuracy"] == pytest.approx(right / images)
    assert record["personal"]["spread"]["worst"] == pytest.approx(min(shares.values()))
    new = next(str(client) for client in range(5) if client not in kept)
    assert record["personal"]["accuracy"][new] == record["local"]["accuracy"][new]
    assert result.personal_scores == record["personal"]["scores"] != record["local"]["scores"]
    assert result.scores == record["server"]["scores"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("strategy", METHODS, ids=lambda table: str(table["use"]))
def test_a_run_that_is_cut_ends_in_the_same_bits_personal_models_included(
    strategy: dict[str, Any], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where personal models are measured with the next round's training."""
    measured = {**HELD, "with_training": True}
    config = tiny(rounds=4, checkpoint_every=2, strategy={**strategy, "fraction": 0.6}, evaluation=measured)
    whole = simulate(config, engine=engine, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, engine=engine, out=tmp_path / "cut")
    resumed = simulate(config, engine=engine, out=tmp_path / "cut", resume=True)
    assert same(whole.state, resumed.state)
    assert (tmp_path / "whole/rounds.jsonl").read_bytes() == (tmp_path / "cut/rounds.jsonl").read_bytes()
    one, other = memories(tmp_path / "whole"), memories(tmp_path / "cut")
    assert one.keys() == other.keys()
    assert all(same(one[client], other[client]) for client in one)
    assert all(record["personal"]["scores"] for record in whole.rounds)
    assert not any("personal" in (record.get("local") or {}) for record in whole.rounds)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", METHODS, ids=lambda table: str(table["use"]))
def test_a_measurement_with_training_is_the_separate_one(strategy: dict[str, Any], tmp_path: Path) -> None:
    """Of the clients that train in the next round, of whom here all do."""
    rounds = [
        simulate(
            tiny(strategy=strategy, evaluation={**HELD, "with_training": rides}), out=tmp_path / str(rides)
        ).rounds
        for rides in (False, True)
    ]
    for apart, riding in zip(*rounds, strict=True):
        assert apart["personal"] == riding["personal"]
        assert apart["local"] == riding["local"]


def test_late_answers_leave_personal_models_their_clients(tmp_path: Path) -> None:
    config = tiny(
        rounds=4,
        strategy={"use": "ditto", "lam": 0.1},
        evaluation=HELD,
        round={"buffer": 2, "concurrency": 3},
        clock={"seconds_per_image": 0.01, "spread": 1.0},
    )
    result = simulate(config, out=tmp_path / "run")
    assert any(item["used"] for record in result.rounds for item in record["late"])
    plain = simulate(tiny(**{**config.to_dict(), "strategy": {"use": "fedavg"}}), out=tmp_path / "plain")
    assert same(result.state, plain.state)
    assert result.personal_scores["accuracy"] != result.rounds[-1]["local"]["scores"]["accuracy"]


def test_a_lost_answer_does_not_take_a_personal_model_back(tmp_path: Path) -> None:
    """A control variate goes back to before the rounds that the server did not use; v_k is nobody else's."""
    from fedvision.training.client_state import ALGORITHM, MODEL, ClientStateStore

    store = ClientStateStore(tmp_path)
    for round in (1, 2):
        groups = {ALGORITHM: {"c": torch.tensor(float(round))}, MODEL: {"v": torch.tensor(float(round))}}
        store.save(0, round, groups)
    found = store.load(0, 3, silent_since=2)
    assert (float(found[ALGORITHM]["c"]), float(found[MODEL]["v"])) == (1.0, 2.0)


def test_methods_without_a_personal_model_record_none() -> None:
    result = simulate(tiny(rounds=1, evaluation=HELD))
    assert "personal" not in result.rounds[0]
    assert result.personal_scores == {}


@pytest.mark.parametrize("use", ["ditto", "apfl"])
def test_a_notice_says_that_nothing_measures_personal_models(use: str) -> None:
    told = [Experiment.build(tiny(strategy={"use": use}, evaluation=e)).notices() for e in ({}, HELD)]
    assert [any("nothing measures these; set evaluation.holdout" in one for one in own) for own in told] == [
        True,
        False,
    ]


def test_reports_show_both_models_on_the_same_images(ditto: RunResult) -> None:
    facts = read_facts(ditto.folder)
    record = ditto.rounds[-1]
    rows = personal_rows(facts)
    assert [row.name for row in rows] == [one.name for one in facts.class_facts(None)]
    matrix = np.array(record["personal"]["confusion"])
    if matrix.shape == (10, 10):
        for row in rows:
            c = facts.classes.index(row.name)
            assert row.images == matrix[c].sum()
            assert row.own == pytest.approx(matrix[c, c] / matrix[c].sum())
    sentence = personal_sentence(facts)
    own, shared = (record[view]["scores"]["balanced_accuracy"] for view in ("personal", "local"))
    assert f"balanced accuracy is {100 * own:.1f}% with each client's personal model" in sentence
    assert f"and {100 * shared:.1f}% with the global one" in sentence
    assert f"is {100 * record['personal']['spread']['worst']:.1f}%" in sentence
    page = write_report(ditto.folder).read_text()
    assert "<h2>Personal models</h2>" in page
    assert "personal models</th>" in page
    table = " ".join(run_table(ditto.folder).split())
    assert sentence in table
    assert "rarest on clients' images" in table
    assert facts.best_view is not None
    assert (facts.best_view.view, facts.best_view.personal) == ("server", False)


def test_curves_and_frames_have_the_personal_view(ditto: RunResult) -> None:
    own = ditto.rounds[-1]["personal"]["scores"]["accuracy"]
    assert dict(scalars(ditto.folder))[3]["personal/accuracy"] == own
    assert ditto.frame()["personal.accuracy"].iloc[-1] == own
    tallies = RoundTallies()
    for record in ditto.rounds:
        tallies.take(record)
    assert tallies.records[-1]["personal"]["scores"]["accuracy"] == own


def test_the_model_card_is_the_global_models(ditto: RunResult) -> None:
    facts = read_facts(ditto.folder)
    front = model_card(facts, CardOptions()).split("---")[1]
    assert f"{ditto.rounds[-1]['personal']['scores']['accuracy']}" not in front
    assert "each with its personal model" in model_card(facts, CardOptions())
