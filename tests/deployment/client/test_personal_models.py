"""Personal models on a client's machine: measured beside the global one, hidden as it is, and never sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from safetensors.torch import load_file

from fedvision.deployment.client.disclosure import ShareConfig
from fedvision.flower import codec, internals, masked_codec
from fedvision.models.state import get_state, shared_names
from fedvision.tasks.stats import StatsForm
from fedvision.types import ClientConfig
from tests.deployment.client.test_masked_statistics import NAMES, Grid, form_group, network, trainers
from tests.deployment.client.test_masked_statistics import three as three
from tests.experiments import tiny

EXPERIMENT = tiny(strategy={"use": "ditto"}, evaluation={"holdout": 0.2})


@pytest.fixture(autouse=True)
def identified() -> None:
    """Messages need a run."""
    internals.identify(1)


def asked(grid: Grid, kind: str, **config: Any) -> dict[int, RecordDict]:
    """Send one message to each client and return the replies."""
    model = network(EXPERIMENT)
    arrays = codec.encode_state(get_state(model, shared_names(model, "all")))
    record = ConfigRecord({codec.ROUND: 1, codec.ALGORITHM: "ditto", **config})
    numbers = ClientConfig(numbers={"lam": 0.1, "personal_epochs": 3})
    content = codec.encode_client_config(numbers, arrays, record)
    replies = list(grid.send_and_receive([Message(content, node, kind) for node in grid.get_node_ids()]))
    assert not any(reply.has_error() for reply in replies)
    return dict(grid.replies)


def both(
    content: RecordDict,
) -> tuple[masked_codec.EvaluationReply, masked_codec.EvaluationReply]:
    """Return what a client says of the global model and of its own."""
    own = codec.unload(content, codec.PERSONAL)
    assert own is not None
    form = StatsForm(shape_for=lambda shape: shape)
    return masked_codec.decode_evaluation(content, form), masked_codec.decode_evaluation(own, form)


def test_masked_measurements_of_both_models_add_up_and_no_mask_serves_twice(
    three: Path, tmp_path: Path
) -> None:
    made = trainers(three, tmp_path, EXPERIMENT)
    grid = Grid(tmp_path, made)
    groups = form_group(grid, three)
    asked(grid, "train")
    masked = {client: both(content) for client, content in asked(grid, "evaluate").items()}
    for trainer in made.values():
        trainer.client = replace(trainer.client, share=ShareConfig(counts="plain"))
    plain = {client: both(content) for client, content in asked(grid, "evaluate").items()}
    tables = []
    for place in (0, 1):
        hidden = {client: found[place] for client, found in masked.items()}
        (total,) = masked_codec.split_readable(hidden, groups).sums
        bare = [found[place].plain for found in plain.values()]
        wanted = sum(one.stats.tables() for one in bare if one is not None)
        assert np.array_equal(total.stats.tables(), wanted)
        tables.append(wanted)
    assert not np.array_equal(*tables), "both models predict alike"
    for client in range(len(NAMES)):
        masks = []
        for hidden, bare in zip(masked[client], plain[client], strict=True):
            assert hidden.masked_counts is not None
            assert bare.plain is not None
            masks.append(hidden.masked_counts - bare.plain.stats.tables())
        assert not (masks[0] == masks[1]).any()


def test_an_owner_who_shares_no_counts_shows_nothing_of_his_personal_model(
    three: Path, tmp_path: Path
) -> None:
    made = trainers(three, tmp_path, EXPERIMENT)
    for trainer in made.values():
        trainer.client = replace(trainer.client, share=ShareConfig(counts="none"))
    grid = Grid(tmp_path, made)
    replies = asked(grid, "train", **{codec.MEASURE_FIRST: True})
    for content in [*map(codec.unload, replies.values()), *asked(grid, "evaluate").values()]:
        assert content is not None
        for found in both(content):
            assert found.examples > 0
            assert masked_codec.split_readable({0: found}, {}).readable == []


def test_the_personal_model_lies_on_its_machine_and_in_no_reply(three: Path, tmp_path: Path) -> None:
    made = trainers(three, tmp_path, EXPERIMENT)
    replies = asked(Grid(tmp_path, made), "train")
    for client, name in enumerate(NAMES):
        (file,) = (tmp_path / f"state-{name}").glob("runs/*/clients/*/*/*.safetensors")
        kept = load_file(file)
        assert all(key.startswith("personal-model/") for key in kept)
        sent = codec.decode_state(codec.record(replies[client], codec.ARRAYS, codec.ArrayRecord))
        assert {key.removeprefix("personal-model/") for key in kept} == sent.keys()
        assert list(replies[client]) == [codec.ARRAYS, codec.METRICS]
        name = "head.weight"
        assert not np.allclose(kept[f"personal-model/{name}"].numpy(), sent[name].numpy())
