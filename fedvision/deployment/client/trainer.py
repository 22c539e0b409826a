"""The process that trains: ``python -m fedvision.deployment.client.trainer``, kept by the resident client.

It holds the decoded images, the model and the CUDA context from one task to the next. Requests come as lines
of JSON on standard input, answers leave as lines of JSON, tensors lie in files that both sides know; nothing
is unpickled. It may die at any time: the connection to the server is not here. When the resident client dies,
standard input ends and so does this process.

::

    {"client": TOML, "folder": DIR}                      first line: the machine's own file
    {"images": true}                                     -> {"images": what there is, "notices": [sentences]}
    {"open": run facts}                                  -> {"expected": {message type: what may come},
                                                            "changed": are images others than reported}
    {"answer": type, "layout": ..., "task": FILE, "reply": FILE}      -> {"layout": ..., "worked": s}
    anything                                             -> {"error": sentence, "broken": replace me}
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from flwr.app import Context, Message, MessageType, RecordDict
from torch import nn

from fedvision import log_format, memory, registry
from fedvision.aggregation.masking import MIN_GROUP_SIZE
from fedvision.algorithms.closed_form.sums import PRODUCTS
from fedvision.config import ExperimentConfig
from fedvision.data import feature_file
from fedvision.data.dataset import Dataset
from fedvision.data.targets import several
from fedvision.data.transforms import input_shape
from fedvision.deployment.client import local_data, local_shards
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.disclosure import reported_counts
from fedvision.deployment.client.local_shards import OwnShards, on_this_machine
from fedvision.deployment.client.masked_counts import MaskedCounts
from fedvision.deployment.client.own_weights import check_frozen, load_own_weights
from fedvision.deployment.client.redaction import cause
from fedvision.deployment.client.run_directories import RunDirectories
from fedvision.deployment.client.shared_sums import answer_statistic
from fedvision.deployment.run_manifest import RunManifest
from fedvision.deployment.sums_files import SumsRequest
from fedvision.deployment.transport import message_format
from fedvision.errors import ConfigError, FedVisionError, with_kind
from fedvision.files import replace_file
from fedvision.flower import client_app, codec, internals, masked_codec
from fedvision.flower.query_codec import STATISTIC
from fedvision.models.build import build_model
from fedvision.tasks.base import build_task
from fedvision.training import feature_cache
from fedvision.training.client_state import ClientStateStore
from fedvision.training.client_trainer import ClientTrainer, loop_settings
from fedvision.types import Query, State

log = logging.getLogger("fedvision.deployment")
_WITH_MODEL = ("train", "evaluate", STATISTIC)
_QUERY_BYTES = 1 << 26
"""Bytes of tensors that may come with a query beside the model's own."""


class Trainer:
    """Answers the resident client's requests.

    Args:
        client: The machine's own file.
        folder: Where it lies; modules beside it can be plug-ins.
    """

    def __init__(self, client: ClientMachineConfig, folder: Path) -> None:
        self.client = client
        registry.allow_folder(folder)
        if client.threads:
            import torch

            torch.set_num_threads(client.threads)
        self._runs = RunDirectories(Path(client.state) / "runs")
        self._facts: RunManifest | None = None
        self._worker: ClientTrainer | None = None
        self._shards: OwnShards | None = None
        self._read: tuple[object, ...] = ()
        self._stamp: str | None = None
        self._own: Dataset | None = None

    def look(self) -> dict[str, Any]:
        """Read this machine's images, before any run needs them, and return a summary.

        Raises:
            FedVisionError: They cannot be read.
        """
        self._stamp = local_data.stamp(self.client)
        self._own = own = local_data.open_own(self.client)
        height, width, channels = own.train.images.shape[1:]
        summary = f"{len(own.train):,} training images of {height} x {width} x {channels}"
        kind = "with {} labels" if several(own.train.labels) else "in {} classes"
        return {"images": f"{summary} {kind.format(len(own.classes))}", "notices": list(own.notices)}

    def open(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Make ready what a run's tasks share; images are read again only where their files have changed.

        Raises:
            FedVisionError: The run needs what this machine does not have or does not allow.
        """
        facts = RunManifest.from_table(table)
        config = facts.config
        self.client.permit_experiment(config)
        self._runs.mark_used(facts.run)
        self._runs.remove_unused(self.client.retention_days, keep=facts.run)
        config = on_this_machine(self.client, config)
        held, inputs = config.evaluation.holdout, config.model.inputs
        wanted = (facts.classes, facts.image, held, config.seed, config.task, inputs)
        now = local_data.stamp(self.client)
        if now not in (None, self._stamp):
            self._shards = self._own = None
        if self._shards is None or self._read != wanted:
            self._shards = local_shards.own_shards(self.client, facts, config, self._own)
            self._read, self._stamp, self._own = wanted, now, None
        channels, height, width = input_shape(config.transforms, facts.image)
        model = build_model(
            config.model,
            task=build_task(config.task),
            num_classes=len(facts.classes),
            in_channels=channels,
            image_size=(height, width),
            seed=config.seed,
        )
        load_own_weights(self.client, model, facts)
        check_frozen(model, facts)
        kept = ClientStateStore(self._folder(facts) / "clients", config.checkpoint_every)
        config, model, shards = self._on_features(config, model, self._shards)
        self._worker = ClientTrainer.open(config, model, len(facts.classes), shards, kept)
        self._facts = facts
        sent = self._worker.updates.received
        further = {STATISTIC: _QUERY_BYTES, MessageType.TRAIN: facts.constant_bytes}
        expected = {
            kind: message_format.Expected.of_model(codec.ARRAYS, sent, sent, further.get(kind, 0))
            for kind in _WITH_MODEL
        }
        marker = self._reported_images()
        changed = marker.exists() and marker.read_text() != (self._stamp or "")
        return {"expected": {kind: one.to_text() for kind, one in expected.items()}, "changed": changed}

    def _on_features(
        self, config: ExperimentConfig, model: nn.Module, shards: OwnShards
    ) -> tuple[ExperimentConfig, nn.Module, OwnShards]:
        """Return what trains: the network on images or, behind frozen layers, the rest on features."""
        features = Path(self.client.state) / "features"
        feature_file.remove_unused(features, self.client.retention_days)
        parts, why = feature_cache.frozen_part(config, model, shards.images)
        if parts is None or why:
            return config, model, shards
        found = feature_cache.on_features(
            config,
            Dataset(train=shards.images, classes=()),
            model,
            parts,
            loop_settings(config, shards.images.images.shape[-1]).forward,
            used=np.arange(len(shards.images)),
            folder=features,
            on_progress=log.info,
        )
        return found.config, found.model, replace(shards, images=found.dataset.train)

    def answer(self, kind: str, layout: str, task: Path, reply: Path) -> dict[str, Any]:
        """Do the task in a file and write the reply's tensors.

        Raises:
            FedVisionError: The task failed; the sentence names stage and cause.
        """
        header = message_format.MessageHeader.from_text(layout)
        content = message_format.unpack(header, _mapped(task, header.size))
        began = time.perf_counter()
        result = self.do(kind, header.client, content)
        worked = time.perf_counter() - began
        reply_header = message_format.describe(result)
        source = message_format.TensorSource(result, reply_header)
        with reply.open("wb") as file:
            for start in range(0, source.size, message_format.PIECE):
                file.writelines(source.views(start, min(start + message_format.PIECE, source.size)))
        return {"layout": reply_header.to_text(), "worked": worked, "memory": memory.peak()}

    def do(self, kind: str, client: int, content: RecordDict) -> RecordDict:
        """Do one task and return the reply's content.

        Args:
            kind: The message's type.
            client: The number under which the server knows this client.
            content: The message's.

        Raises:
            FedVisionError: The task failed; the sentence names stage and cause.
        """
        if self._worker is None or self._facts is None:
            raise FedVisionError("no run was opened")
        self._runs.mark_used(self._facts.run)
        if kind == codec.CLIENT_INFO:
            return self._introduce(client)
        if kind == masked_codec.MASKED:
            return self._masked_counts(content, client)
        if name := codec.algorithm_name(content):
            self.client.permit_algorithm(name, codec.model_names(content))
        if kind == STATISTIC:
            compute = partial(_run_app, self._worker, STATISTIC, content, client)
            return answer_statistic(self.client, self._masks, content, compute)
        answered = _run_app(self._worker, kind, content, client)
        if kind == "evaluate":
            return self._guard(answered, kind, content)
        if evaluation := codec.unload(answered):
            codec.carry(answered, self._guard(evaluation, kind, content))
        return answered

    def sums_again(self, asked: SumsRequest) -> State:
        """Return this machine's sums with a run's constants, where the owner allows them.

        Raises:
            FedVisionError: He does not, or the images are not those that the run's sums rest on.
        """
        self.client.permit_statistic(PRODUCTS)
        if self.open(asked.manifest.to_table())["changed"]:
            raise ConfigError(
                "this machine's images are not those that it reported to the run, so its sums cannot be "
                "computed again; restore the images"
            )
        assert self._worker
        query = Query(use=PRODUCTS, tensors=asked.query)
        return self._worker.statistic(asked.client, asked.round, asked.model, query)[0]

    def _introduce(self, client: int) -> RecordDict:
        assert self._worker
        assert self._facts
        image_counts = reported_counts(
            self._worker.image_counts(client),
            self.client.share,
            self._folder(self._facts) / "counts.json",
            needed=self._worker.config.loss.needs_federation,
            per_image=self._worker.task.per_image,
        )
        self._reported_images().parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._reported_images(), self._stamp or "")
        sharing_mode = self.client.share.counts
        entry = codec.ClientInfo(client=client, image_counts=image_counts, sharing=sharing_mode)
        if entry.sharing == "masked":
            masks = self._masks()
            entry = replace(entry, card=masks.card().to_table())
            if not masks.group:
                log.info(
                    "class counts are reported in a sum over %d or more clients that mask theirs; the server "
                    "may wait for them",
                    MIN_GROUP_SIZE,
                )
        return codec.encode_client_info(entry)

    def _masked_counts(self, content: RecordDict, client: int) -> RecordDict:
        assert self._worker
        if self.client.share.counts != "masked":
            raise ConfigError(f'share.counts is "{self.client.share.counts}" here, not "masked"')
        return self._masks().answer(content, self._worker.image_counts(client))

    def _guard(self, evaluation: RecordDict, kind: str, content: RecordDict) -> RecordDict:
        """Return an evaluation as the owner shares class counts: its counts and its loss reveal them."""
        if self.client.share.counts == "plain":
            return evaluation
        if personal := codec.unload(evaluation, codec.PERSONAL):
            # Another question than that about the global model, so that no mask serves twice.
            hidden = self._guard(personal, codec.PERSONAL + kind, content)
            evaluation = self._guard(evaluation, kind, content)
            codec.carry(evaluation, hidden, codec.PERSONAL)
            return evaluation
        masks = self._masks() if self.client.share.counts == "masked" else None
        if masks is None or not masks.group:
            return masked_codec.drop_counts(evaluation)
        masked = masks.hide(masked_codec.numbers_to_mask(evaluation), masked_codec.question(kind, content))
        return masked_codec.mask_counts(evaluation, masked, masks.group)

    def _masks(self) -> MaskedCounts:
        assert self._facts
        return MaskedCounts(self._folder(self._facts) / "masks.json", self._facts.run, self.client)

    def _reported_images(self) -> Path:
        """Return the file that holds the stamp of the images reported to this run's server."""
        assert self._facts
        return self._folder(self._facts) / "images"

    def _folder(self, facts: RunManifest) -> Path:
        return self._runs.path(facts.run)


def _run_app(worker: ClientTrainer, kind: str, content: RecordDict, client: int) -> RecordDict:
    """Hand a message to the ClientApp, as any other carrier does."""
    internals.identify(1)
    message = Message(content, internals.SERVER_NODE, kind)
    internals.set_message_id(message, "task")
    context = Context(
        run_id=1,
        node_id=internals.SERVER_NODE,
        node_config={internals.PARTITION: client},
        state=RecordDict(),
        run_config={},
    )
    return client_app.build(worker)(message, context).content


def _mapped(path: Path, size: int) -> Any:
    """Return a file's bytes, read where they are touched; writing changes the memory and not the file."""
    if not size:
        return bytearray()
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)


def _is_broken() -> bool:
    """Return whether the device is lost to this process: after some CUDA errors every further call fails."""
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def _respond(trainer: Trainer, request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if "images" in request:
            return trainer.look()
        if "open" in request:
            return trainer.open(request["open"])
        return trainer.answer(
            request["answer"], request["layout"], Path(request["task"]), Path(request["reply"])
        )
    except (FedVisionError, OSError) as error:
        return {"error": cause(error), "broken": _is_broken()}
    except (Exception, SystemExit) as error:
        return {"error": with_kind(error), "broken": _is_broken()}


def _requests(stream: IO[str]) -> queue.SimpleQueue[str]:
    """Return the lines of a stream as they come; its end ends the process, whatever it is doing."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def main() -> None:
    """Serve until standard input ends."""
    # What plug-ins print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # When memory runs out it is this process that shall go, not the connection.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")
    logging.root.addHandler(log_format.handler())
    log.setLevel(logging.INFO)
    requests = _requests(sys.stdin)
    first = json.loads(requests.get())
    client = ClientMachineConfig.from_toml(first["client"])
    if log_format.is_json():
        log_format.use("json", client=client.name)
    trainer = Trainer(client, Path(first["folder"]))
    while True:
        answer = _respond(trainer, json.loads(requests.get()))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
