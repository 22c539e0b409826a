"""The Ray engine with real processes: the serial engine's bits, and a round that completes whoever dies."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedvision import registry
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.mean import Sums
from fedvision.api import simulate
from fedvision.engines.client_host import ClientHostFactory
from fedvision.engines.ray.engine import RayEngine, RayGrid
from fedvision.engines.ray.exchange import RayExchange
from fedvision.engines.ray.worker_pool import Job
from fedvision.engines.serial import SerialEngine
from fedvision.errors import ConfigError
from fedvision.flower import codec, partial_sum_codec
from fedvision.flower.client_registry import FIRST_NODE, SimulatedClientRegistry
from fedvision.server.phase_result import PhaseResult
from fedvision.server.update_validator import UpdateValidator
from fedvision.types import PluginSpec, State
from tests.double import doubled
from tests.engines.hosts import AppRecipe, adders, adding
from tests.experiments import BALANCED, FEDPER, SKEW, digits_of_several_labels, several_labels, tiny

STATE: State = {"w": torch.linspace(-1, 1, 50), "b": torch.zeros(())}


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """One Ray for all tests of this file; engines find it running and leave it so."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


class Round:
    """What came of one training exchange with every client."""

    def __init__(
        self, engine: Any, host_factory: ClientHostFactory, bound: float = 1e9, state: State = STATE
    ) -> None:
        self.notices: list[str] = []
        sums = Sums(FedAvg(), state)
        client_registry = SimulatedClientRegistry(clients=host_factory.clients, counts=(1,))
        self.updates = 0
        with engine.open(host_factory, on_notice=self.notices.append) as grid:
            accepts_sums = getattr(grid, "pre_aggregates", False)
            exchange = PhaseResult(
                client_registry=client_registry,
                stage="training",
                decoder=UpdateValidator(state, bound, accepts_sums=accepts_sums),
            )
            config_record = ConfigRecord({codec.NORM_BOUND: bound})
            content = RecordDict({"arrays": codec.encode_state(state), "config": config_record})
            messages = [
                Message(content, FIRST_NODE + client, "train") for client in range(host_factory.clients)
            ]
            for reply in exchange.send(grid, messages):
                if reply.content is not None:
                    partial_sum_codec.decode_sums(reply.content, sums)
                else:
                    self.updates += 1
                    sums.add(reply.update(0))
            self.state = sums.finalize() if sums.num_updates else {}
            self.memory = getattr(grid, "peak_memory", list)()
        self.num_updates, self.answered, self.refused = sums.num_updates, exchange.answered, exchange.refused
        self.up, self.norms, self.unusable = exchange.up, exchange.norms, exchange.unusable


def same(state: State, other: State) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


@pytest.fixture(scope="module")
def serial() -> Round:
    return Round(SerialEngine(), adders(12))


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 3])
def test_sums_of_workers_are_the_serial_engines_sum(workers: int, serial: Round) -> None:
    there = Round(RayEngine(workers=workers), adders(12))
    assert same(there.state, serial.state)
    assert there.answered == list(range(12))
    assert (there.num_updates, there.updates, there.up) == (12, 0, serial.up)
    assert serial.memory == []
    assert 1 <= len(there.memory) <= workers
    assert all(10**7 < one["process"] < 10**11 for one in there.memory)


@pytest.mark.long
def test_large_sums_are_fetched_in_slices_and_are_the_serial_engines(tmp_path: Path) -> None:
    # 5 million float64 are more than a worker hands over in one piece; the second tensor has two layers.
    large = {"w": torch.linspace(-1, 1, 5_000_003), "v": torch.linspace(0, 1, 20_000, dtype=torch.float64)}
    here = Round(SerialEngine(), adders(4), state=large)
    assert same(Round(RayEngine(workers=2), adders(4), state=large).state, here.state)
    dying = Round(RayEngine(workers=2), adders(4, tmp_path, "exit once"), state=large)
    assert same(dying.state, here.state)


@pytest.mark.long
def test_a_strategy_that_must_see_every_update_gets_every_update(serial: Round) -> None:
    there = Round(RayEngine(workers=2), adders(12, add_update=False))
    assert same(there.state, serial.state)
    assert there.updates == 12


@pytest.mark.slow
def test_a_client_whose_process_dies_once_is_run_again_with_its_neighbours(
    tmp_path: Path, serial: Round
) -> None:
    there = Round(RayEngine(workers=2), adders(12, tmp_path, "exit once"))
    assert (tmp_path / "happened").exists()
    assert same(there.state, serial.state)
    assert there.answered == list(range(12))
    assert there.refused == []


@pytest.mark.long
def test_a_client_that_always_kills_its_process_costs_itself_only() -> None:
    there = Round(RayEngine(workers=2), adders(6, trouble="exit"))
    assert there.answered == [0, 1, 3, 4, 5]
    assert [item["client"] for item in there.refused] == [2]
    assert "its process died 2 times" in there.refused[0]["reason"]
    assert any("a worker was lost" in sentence for sentence in there.notices)


@pytest.mark.long
def test_with_one_worker_too_the_round_outlives_a_death(tmp_path: Path, serial: Round) -> None:
    there = Round(RayEngine(workers=1), adders(12, tmp_path, "exit once"))
    assert same(there.state, serial.state)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The calls of workers, in the order in which they are sent."""
    sent: list[Job] = []
    send = RayExchange._send

    def note(self: RayExchange, member: Any, *args: Any, **options: Any) -> None:
        send(self, member, *args, **options)
        sent.append(member.jobs[-1])

    monkeypatch.setattr(RayExchange, "_send", note)
    return sent


@pytest.mark.long
def test_one_worker_hands_over_its_sums_with_its_last_batch(calls: list[Job], serial: Round) -> None:
    assert same(Round(RayEngine(workers=1), adders(12)).state, serial.state)
    assert [job.closes for job in calls] == [False] * (len(calls) - 1) + [True]
    assert all(job.tasks for job in calls), "no call is for the sums alone"


@pytest.mark.long
def test_the_sums_of_one_of_two_workers_come_with_the_last_batch(calls: list[Job], serial: Round) -> None:
    assert same(Round(RayEngine(workers=2), adders(12)).state, serial.state)
    batches = [job for job in calls if job.tasks]
    assert [job.closes for job in batches] == [False] * (len(batches) - 1) + [True]
    assert len(calls) - len(batches) <= 1, "only the other one sends its sums alone"


@pytest.mark.long
def test_updates_that_come_one_by_one_close_nothing(calls: list[Job]) -> None:
    Round(RayEngine(workers=2), adders(12, add_update=False))
    assert calls
    assert not any(job.closes for job in calls)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_in_the_batch_that_brings_its_sums_is_run_again(
    workers: int, calls: list[Job], tmp_path: Path, serial: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost(_: RayGrid, message: Message) -> float:
        """Let client 2 be the least work, so that it is in the batch that empties the queue."""
        client = message.metadata.dst_node_id - FIRST_NODE
        return 0.9 if client == 2 else 1 + client % 5 / 4

    monkeypatch.setattr(RayGrid, "_cost", cost)
    there = Round(RayEngine(workers=workers), adders(12, tmp_path, "exit once"))
    first = next(job for job in calls if 2 in job.tasks)
    assert first.closes
    assert not any(job.closes for job in calls if job.alone), "a suspect's sums come after it has lived"
    assert same(there.state, serial.state)
    assert (there.answered, there.refused) == (list(range(12)), [])


def patient(folder: Path) -> ClientApp:
    """As ``adding``, but client 2's process dies once and not before sums have arrived."""
    inner, app = adding(folder, "exit once"), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2:
            deadline = time.monotonic() + 60
            while not (folder / "sums").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        return inner(message, context)

    return app


@pytest.mark.long
def test_a_worker_that_returned_its_sums_runs_again_when_another_dies(
    tmp_path: Path, serial: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, handed = RayExchange._take_sums, []

    def note(self: RayExchange, member: Any, sums: Any) -> Iterator[Message]:
        handed.append((member, (tmp_path / "happened").exists()))
        yield from take(self, member, sums)
        (tmp_path / "sums").touch()

    monkeypatch.setattr(RayExchange, "_take_sums", note)
    host_factory = AppRecipe(app=partial(patient, tmp_path), clients=12, strategy=FedAvg)
    there = Round(RayEngine(workers=2), host_factory)
    (first, died), *others = handed
    assert not died
    assert any(member is first and died for member, died in others)
    assert same(there.state, serial.state)
    assert (there.answered, there.refused) == (list(range(12)), [])


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("raise", "no luck"),
        pytest.param("nan", "holds NaN", marks=pytest.mark.long),
        pytest.param("huge", "the norm of its change is", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("add_update", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.slow
def test_a_client_that_fails_is_named_as_by_the_serial_engine(
    trouble: str, reason: str, add_update: bool
) -> None:
    host_factory = adders(6, trouble=trouble, add_update=add_update)
    there, here = Round(RayEngine(workers=2), host_factory), Round(SerialEngine(), host_factory)
    assert there.refused == here.refused
    assert reason in there.refused[0]["reason"]
    assert there.unusable == here.unusable == ([] if trouble == "raise" else [2])
    assert there.norms == here.norms, "the next round's bound has the same bits"
    assert same(there.state, here.state)


@pytest.mark.long
def test_out_of_memory_halves_the_workers_and_tries_again(tmp_path: Path, serial: Round) -> None:
    there = Round(RayEngine(workers=2), adders(12, tmp_path, "memory once"))
    assert "out of memory: going on with 1 worker" in there.notices
    assert same(there.state, serial.state)
    assert there.refused == []


UPDATES: dict[str, list[dict[str, Any]]] = {
    "fedavg": [],
    "scaffold": [{"use": "top-k", "fraction": 0.05}],
    "krum": [{"use": "clip", "max_norm": 0.1}, {"use": "float16"}],
    "flwr.serverapp.strategy:FedMedian": [{"use": "top-k", "fraction": 0.2, "scope": "tensor"}],
}
"""What is done to the updates of each strategy."""


RESNET = {"use": "resnet8", "norm": "batch", "width": 4, "train": "last:1"}
FUSION = {"use": "fusion", "extractor": RESNET, "early": "features.stages.0", "dim": 8, "heads": 2}
STRATEGIES: list[dict[str, Any]] = [
    {"strategy": {"use": "scaffold", "fraction": 0.6}},
    {"strategy": {"use": "fedavg", "fraction": 0.6}},
    {"strategy": {"use": "fedntd", "beta": 0.5}},
    {"strategy": {"use": "fednova", "fraction": 0.6}},
    *({"strategy": {"use": use}} for use in ("moon", "fedvls", "fedavg-support")),
    *SKEW,
    *({"strategy": table} for table in ({"use": "ccvr", "steps": 50}, {"use": "krum"})),
    {"strategy": {"use": "flwr.serverapp.strategy:FedMedian", "fraction_evaluate": 0.0}},
    FEDPER,
    {"strategy": {"use": "fedavg"}, "task": {"use": "multi-label"}, "loss": BALANCED},
    {"strategy": {"use": "fedavg"}, "model": {"use": "vit", "dim": 16, "train": "lora", "lora": {"rank": 2}}},
    {"strategy": {"use": "fedavg"}, "model": FUSION},
    {"strategy": {"use": "fedavg"}, "training": {"sampler": {"use": "progressive"}, "lr": 0.1}},
]


def label(tables: dict[str, Any]) -> str:
    named = tables.get("task") or tables.get("model") or tables["strategy"]
    return str((tables.get("training", {}).get("sampler") or named)["use"]).rpartition(":")[2]


def digest(state: State) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()


@pytest.mark.long
@pytest.mark.parametrize("tables", STRATEGIES, ids=label)
def test_bits_and_record_on_every_engine(tables: dict[str, Any], tmp_path: Path) -> None:
    """A simulation has the same bits and the same record on every engine."""
    if "task" in tables:
        tables = several_labels(digits_of_several_labels(tmp_path)) | tables
    update = UPDATES.get(tables["strategy"]["use"], [])
    config = tiny(rounds=2, evaluation={"holdout": 0.2, "with_training": True}, update=update, **tables)
    serial = simulate(config, out=tmp_path / "serial")
    assert serial.rounds[0]["local"]
    for workers in (1, 2, 3):
        spec = PluginSpec(use="ray", args={"workers": workers})
        there = simulate(config, engine=spec, out=tmp_path / f"ray-{workers}")
        assert digest(there.state) == digest(serial.state)
        assert there.rounds == serial.rounds


@pytest.mark.long
def test_a_head_in_closed_form_has_the_same_bits_on_every_engine(tmp_path: Path) -> None:
    """Nobody trains: the clients answer three queries, each of which rests on the answers before."""
    config = tiny(
        rounds=1,
        strategy={"use": "closed-form", "regularization": "auto"},
        model={"use": "cnn", "width": 4, "dense": 16, "frozen": ["backbone.*"]},
        evaluation={"holdout": 0.2},
    )
    serial = simulate(config, out=tmp_path / "serial")
    there = simulate(config, engine=PluginSpec(use="ray", args={"workers": 2}), out=tmp_path / "ray")
    assert digest(there.state) == digest(serial.state)
    assert there.rounds == serial.rounds


@pytest.mark.parametrize("strategy", ["scaffold", "fedavg", "median"])
@pytest.mark.long
def test_workers_may_train_several_clients_at_once(strategy: str, tmp_path: Path) -> None:
    own = {"strategy": {"use": strategy}, "evaluation": {"holdout": 0.2, "with_training": True}}
    config = doubled(tiny(rounds=2, **own))
    serial = simulate(config, out=tmp_path / "serial")
    stacked = {"workers": 2, "inner": "vectorized"}
    there = simulate(config, engine=PluginSpec(use="ray", args=stacked), out=tmp_path / "ray")
    torch.testing.assert_close(there.state, serial.state, rtol=1e-7, atol=1e-7)
    for mine, his in zip(there.rounds, serial.rounds, strict=True):
        assert (mine["clients"], mine["bytes"]) == (his["clients"], his["bytes"])
        assert mine["train_loss"] == pytest.approx(his["train_loss"], rel=1e-4)


@pytest.mark.long
def test_one_notice_on_workers_that_train_one_by_one(tmp_path: Path) -> None:
    spec = PluginSpec(use="ray", args={"workers": 2, "inner": "vectorized"})
    config = tiny(transforms={"mixup": 0.2}, rounds=2)
    summary_notices = simulate(config, engine=spec, out=tmp_path / "ray").folder.summary()["notices"]
    reasons = [
        sentence for sentence in summary_notices if sentence.startswith("clients are trained one by one: ")
    ]
    assert len(reasons) == 1
    assert "mixup blends the images of a batch" in reasons[0]


@pytest.mark.long
def test_workers_load_the_plug_in_beside_each_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders have a module and a helper of the same names; the first is on Python's own path as well."""
    config = tiny(loss={"use": "my_loss_of_ray:scaled"}, rounds=1)
    for name, factor in (("one", 1.0), ("two", 0.5)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "my_factor_of_ray.py").write_text(f"FACTOR = {factor}\n")
        (folder / "my_loss_of_ray.py").write_text(
            "import torch.nn.functional as F\nfrom my_factor_of_ray import FACTOR\n"
            "def scaled(counts):\n"
            "    return lambda x, y: FACTOR * F.cross_entropy(x, y, reduction='none')\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path / "one"))
    digests = {}
    for name in ("one", "two"):
        registry.allow_folder(tmp_path / name)
        for engine in (PluginSpec(use="serial"), PluginSpec(use="ray", args={"workers": 1})):
            result = simulate(config, engine=engine, out=tmp_path / f"{name}-{engine.use}")
            assert result.rounds[0]["refused"] == []
            digests[name, engine.use] = digest(result.state)
    assert digests["one", "serial"] == digests["one", "ray"]
    assert digests["two", "serial"] == digests["two", "ray"]
    assert digests["one", "serial"] != digests["two", "serial"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"workers": -1}, "workers must be >= 0, not -1"),
        ({"gpus_per_worker": -0.5}, "gpus_per_worker must be >= 0"),
        ({"worker": 2}, "worker"),
    ],
)
def test_wrong_arguments_are_one_sentence(args: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        simulate(tiny(), engine=PluginSpec(use="ray", args=args), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
