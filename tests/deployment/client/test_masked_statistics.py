"""A statistic of masked clients, with their real keys, masks and messages: its sums are the plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Error, Message, RecordDict
from torch import nn

from fedvision.aggregation.fixed_point import wrapped
from fedvision.aggregation.masking import AdvertisedKey, node_key, read_certificates
from fedvision.algorithms.base import Answer, ServerContext
from fedvision.algorithms.closed_form.strategy import ClosedForm
from fedvision.config import ExperimentConfig
from fedvision.deployment.certificates import make
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.disclosure import ShareConfig
from fedvision.deployment.client.trainer import Trainer
from fedvision.deployment.run_manifest import RunManifest
from fedvision.deployment.server.keyring import fingerprint
from fedvision.deployment.server.masked_sums import MaskedSums
from fedvision.deployment.transport import message_format
from fedvision.errors import FedVisionError
from fedvision.flower import codec, internals
from fedvision.flower.client_registry import FIRST_NODE, SimulatedClientRegistry
from fedvision.flower.query_codec import StatisticRequest, decode_reply
from fedvision.models.build import build_model
from fedvision.models.freezing import frozen_state
from fedvision.models.meta import model_with
from fedvision.models.state import digest, get_state, shared_names
from fedvision.server.statistics import StatisticResult, query_statistic
from fedvision.tasks.base import build_task
from fedvision.training import held_out_calibration
from fedvision.types import Query, State
from tests.experiments import tiny

NAMES = ("north", "south", "west")
CLASSES = 3
EXPERIMENT = tiny()
FROZEN = {"use": "cnn", "width": 4, "dense": 8, "frozen": ["backbone.*"]}
MOMENTS = Query(use="feature-moments")


def manifest(experiment: ExperimentConfig) -> dict[str, Any]:
    """Return what clients learn of a run."""
    return RunManifest(
        run="r1",
        experiment=experiment.to_toml(),
        classes=("0", "1", "2"),
        image=(8, 8, 1),
        frozen=digest(frozen_state(network(experiment))),
    ).to_table()


class Grid:
    """Carries messages to training processes as the transport does: packed, through files, and unpacked."""

    def __init__(self, folder: Path, trainers: dict[int, Trainer]) -> None:
        self.folder, self.trainers = folder, trainers
        self.replies: dict[int, RecordDict] = {}

    def get_node_ids(self) -> list[int]:
        return [FIRST_NODE + client for client in self.trainers]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        for number, message in enumerate(messages):
            internals.set_message_id(message, str(number))
            client = message.metadata.dst_node_id - FIRST_NODE
            try:
                self.replies[client] = self._ask(client, message.metadata.message_type, message.content)
                yield Message(self.replies[client], reply_to=message)
            except FedVisionError as error:
                yield Message(Error(code=2, reason=str(error)), reply_to=message)

    def _ask(self, client: int, kind: str, content: RecordDict) -> RecordDict:
        layout = message_format.describe(content, client)
        source = message_format.TensorSource(content, layout)
        task, reply = self.folder / "task", self.folder / "reply"
        task.write_bytes(b"".join(source.views(0, source.size)))
        header = self.trainers[client].answer(kind, layout.to_text(), task, reply)["layout"]
        return message_format.unpack(
            message_format.MessageHeader.from_text(header), bytearray(reply.read_bytes())
        )


@pytest.fixture(autouse=True)
def identified() -> None:
    """Messages need a run."""
    internals.identify(1)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    make(folder, hosts=["localhost"], clients=NAMES)
    return folder


def trainers(pki: Path, folder: Path, experiment: ExperimentConfig = EXPERIMENT) -> dict[int, Trainer]:
    """Make clients with images of their own, all of which share a masked statistic."""
    made = {}
    for client, name in enumerate(NAMES):
        rng, count = np.random.default_rng(client), 20 + 5 * client
        images = rng.integers(0, 255, (count, 8, 8), np.uint8)
        np.savez(folder / f"{name}.npz", train_images=images, train_labels=rng.integers(0, CLASSES, count))
        own = pki / "clients" / name
        config = ClientMachineConfig.from_dict(
            {
                "name": name,
                "superlink": {
                    "address": "localhost:1",
                    "key": str(own / "client.key"),
                    "root_certificate": str(pki / "ca.crt"),
                },
                "data": {
                    "use": "npz",
                    "path": str(folder / f"{name}.npz"),
                    "classes": ["0", "1", "2"],
                },
                "share": {
                    "counts": "masked",
                    "certificate": str(own / "client.crt"),
                    "statistics": ["feature-moments", "feature-sums", "weighted-products", "head-scores"],
                },
                "state": str(folder / f"state-{name}"),
            }
        )
        made[client] = Trainer(config, folder)
        made[client].open(manifest(experiment))
    return made


def form_group(grid: Grid, pki: Path) -> dict[str, tuple[int, ...]]:
    """Return the group that the server's part of the protocol makes of all clients."""
    sums = MaskedSums("r1", CLASSES, (), read_certificates(str(pki / "ca.crt")))
    messages = [Message(RecordDict(), node, codec.CLIENT_INFO) for node in grid.get_node_ids()]
    for reply in grid.send_and_receive(messages):
        entry = codec.decode_client_info(reply.content)
        key = fingerprint(node_key(AdvertisedKey.from_table(entry.card)))
        sums.expect(entry.client, reply.metadata.src_node_id, entry, key)
    found = sums.gather(grid, lambda client, reason: pytest.fail(f"client {client}: {reason}"))  # type: ignore[arg-type]
    assert found is not None
    return {found.group: found.clients}


def network(experiment: ExperimentConfig) -> nn.Module:
    return build_model(
        experiment.model,
        task=build_task(experiment.task),
        num_classes=CLASSES,
        in_channels=1,
        image_size=(8, 8),
        seed=experiment.seed,
    )


def query(
    grid: Grid,
    groups: dict[str, tuple[int, ...]],
    one: Query = MOMENTS,
    experiment: ExperimentConfig = EXPERIMENT,
    *,
    optional: bool = False,
) -> StatisticResult:
    class Registry(SimulatedClientRegistry):
        pass

    Registry.groups = groups  # type: ignore[misc]
    model = network(experiment)
    state = get_state(model, shared_names(model, experiment.model.shared))
    registry = Registry(clients=len(NAMES), counts=(1,) * CLASSES)
    request = StatisticRequest(query=one, round=1, state=state, optional=optional)
    return query_statistic(grid, registry, request, clients=range(len(NAMES)))  # type: ignore[arg-type]


def test_masked_sums_are_the_plain_ones(three: Path, tmp_path: Path) -> None:
    made = trainers(three, tmp_path)
    grid = Grid(tmp_path, made)
    groups = form_group(grid, three)
    masked, hidden = query(grid, groups), dict(grid.replies)
    for trainer in made.values():
        trainer.client = replace(
            trainer.client, share=ShareConfig(counts="plain", statistics=("feature-moments",))
        )
    plain = query(grid, {})
    assert (masked.clients, masked.examples, masked.refused) == (plain.clients, plain.examples, ())
    assert masked.examples == sum((20, 25, 30))
    assert masked.sums.keys() == plain.sums.keys() == {"count", "sum", "outer"}
    assert masked.sums["outer"].any()
    for name, total in plain.sums.items():
        assert np.array_equal(masked.sums[name], total)
    for client, reply in hidden.items():  # nothing of a client's own sums shows
        own = decode_reply(reply).sums.numbers
        bare = decode_reply(grid.replies[client]).sums.numbers
        assert not any((own[name] == bare[name]).any() for name in bare)


@pytest.mark.parametrize(
    ("tables", "queries"),
    [
        ({}, 2),
        ({"strategy": {"use": "closed-form", "regularization": "auto"}}, 3),
        ({"strategy": {"use": "closed-form", "head": "lda", "shrinkage": "auto"}}, 3),
        ({"model": {**FROZEN, "expand": {"use": "random-relu", "features": 40}}}, 3),
    ],
    ids=["ridge", "auto-ridge", "auto-lda", "expanded"],
)
def test_a_head_in_closed_form_is_the_same_of_masked_sums(
    tables: dict[str, Any], queries: int, three: Path, tmp_path: Path
) -> None:
    """Later queries' tensors rest on masked answers to earlier ones; the head has the plain sums' bits."""
    experiment = tiny(**{"model": FROZEN, "evaluation": {"holdout": 0.3}} | tables)
    made = trainers(three, tmp_path, experiment)
    grid, strategy = Grid(tmp_path, made), ClosedForm(**experiment.strategy.args)
    groups = form_group(grid, three)
    found, heads, hidden = [], [], list[dict[int, RecordDict]]()
    for counts, group in (("masked", groups), ("plain", {})):
        for trainer in made.values():
            trainer.client = replace(trainer.client, share=replace(trainer.client.share, counts=counts))
        answers: list[Answer] = []
        while (one := strategy.query(1, 1, answers)) is not None:
            reply = query(grid, group, one, experiment)
            assert (reply.clients, reply.refused) == ((0, 1, 2), ())
            answers.append(reply.sums)
        hidden.append(dict(grid.replies))
        found.append(answers)
        heads.append((refined(strategy, experiment, answers), strategy.chosen))
    for masked, plain in zip(*found, strict=True):
        assert masked.keys() == plain.keys()
        assert all(np.array_equal(masked[name], plain[name]) for name in plain)
    assert [len(answers) for answers in found] == [queries, queries]
    (masked_head, chosen), (plain_head, value) = heads
    assert chosen == value > 0
    assert all(torch.equal(masked_head[name], tensor) for name, tensor in plain_head.items())
    if strategy.value == "auto":
        kept = sum((20, 25, 30)) - found[0][1]["count"].sum()
        assert found[0][2]["confusion"].sum((1, 2)).tolist() == [kept] * 7
        assert kept == 22
        for client, reply in hidden[0].items():  # which of its images a head gets right stays hidden
            own = decode_reply(reply).sums.numbers["confusion"]
            bare = decode_reply(hidden[1][client]).sums.numbers["confusion"]
            assert not (own == bare).any()


def refined(strategy: ClosedForm, experiment: ExperimentConfig, answers: list[Answer]) -> State:
    """Return the head that the server makes of answers."""
    model = network(experiment)
    context = ServerContext(
        round=1,
        rounds=1,
        answers=answers,
        class_counts=None,
        make_model=lambda state: model_with(model, state),
        generator=torch.Generator(),
    )
    state = strategy.refine(get_state(model, shared_names(model, "all")), context)
    return {name: tensor for name, tensor in state.items() if name.startswith("head.")}


def test_without_one_of_the_group_there_is_no_sum(three: Path, tmp_path: Path) -> None:
    made = trainers(three, tmp_path)
    grid = Grid(tmp_path, made)
    groups = form_group(grid, three)
    made[1].client = replace(made[1].client, share=replace(made[1].client.share, statistics=()))
    found = query(grid, groups)
    assert (found.clients, found.sums) == ((), {})
    assert {item["client"] for item in found.refused} == {0, 1, 2}
    (reason,) = {item["reason"] for item in found.refused if item["client"] == 1}
    assert "has not allowed it" in reason


def test_a_masked_calibration_is_the_plain_one_and_one_client_can_withhold_it(
    three: Path, tmp_path: Path
) -> None:
    experiment = tiny(evaluation={"holdout": 0.3})
    made = trainers(three, tmp_path, experiment)
    grid = Grid(tmp_path, made)
    groups, asked = form_group(grid, three), held_out_calibration.query(2.0)
    found = list[StatisticResult]()
    for counts, statistics in (("masked", ("calibration",)), ("masked", ()), ("plain", ("calibration",))):
        for client, trainer in made.items():
            allowed = statistics if client == 1 else ("calibration",)
            share = replace(trainer.client.share, counts=counts, statistics=allowed)  # type: ignore[arg-type]
            trainer.client = replace(trainer.client, share=share)
        found.append(query(grid, groups if counts == "masked" else {}, asked, experiment, optional=True))
    masked, without, plain = found
    assert (masked.clients, masked.withheld, masked.refused) == ((0, 1, 2), (), ())
    assert masked.sums.keys() == plain.sums.keys()
    assert all(np.array_equal(masked.sums[name], total) for name, total in plain.sums.items())
    clients, told = held_out_calibration.pooled(masked.sums, CLASSES)
    assert (clients, told.reliability.images.sum()) == (3, 22)
    assert (without.clients, without.withheld, without.refused) == ((), (0, 1, 2), ())


def test_masks_serve_for_one_statistic(three: Path, tmp_path: Path) -> None:
    """Equal numbers under equal masks would show that two replies are alike."""
    grid = Grid(tmp_path, trainers(three, tmp_path))
    groups = form_group(grid, three)
    kinds = [
        Query(use="class-counts"),
        Query(use="class-counts", bits=48),
        Query(use="class-counts", tensors={"mean": torch.zeros(2)}),
        Query(use="class-counts", tensors={"mean": torch.ones(2)}),
        MOMENTS,
    ]
    seen = list[Any]()
    for one in kinds:
        query(grid, groups, one)
        seen.append(decode_reply(grid.replies[0], one.bits).sums.numbers["count"])
    for place, counts in enumerate(seen):
        assert not any((wrapped(counts, 48) == wrapped(other, 48)).any() for other in seen[:place])


def test_masked_sums_of_fewer_bits_are_the_plain_ones(three: Path, tmp_path: Path) -> None:
    grid = Grid(tmp_path, trainers(three, tmp_path))
    groups = form_group(grid, three)
    wide = query(grid, groups, Query(use="class-counts"))
    narrow = query(grid, groups, Query(use="class-counts", bits=16))
    assert narrow.sums["count"].tolist() == wide.sums["count"].tolist()
    assert (narrow.clients, narrow.refused) == ((0, 1, 2), ())
    assert narrow.up == len(NAMES) * CLASSES * 2
    small = query(grid, groups, Query(use="class-counts", bits=8))
    assert small.clients == (0, 1, 2), "each class has fewer than 128 images"
