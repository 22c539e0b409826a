"""The wire format: the only file, with the other codecs beside it, that names the keys of records.

Plain traffic uses Flower's default keys (``arrays``, ``config``, ``metrics``, ``num-examples``) with exactly
one ArrayRecord and one MetricRecord in a reply to a training message, so that stock strategies work
unchanged. Further groups of tensors travel as ``tensors.<group>`` and only where an algorithm requests them.
``server.update_validator`` checks what comes back against what the model expects.

A reply to a training message that also requested a measurement carries that of an evaluation message, its
records under ``measured.<name>``. The server takes them out before a strategy sees the reply. Likewise a
measurement may carry that of the client's personal model, under ``personal.<name>``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedvision.data.image_counts import ImageCounts
from fedvision.flower import evaluation_codec
from fedvision.flower.internals import TensorArray, filled
from fedvision.flower.internals_message import values
from fedvision.training.evaluate import Evaluation
from fedvision.training.loop import TrainResult
from fedvision.types import ClientConfig, State, TrainRequest
from fedvision.updates.schema import CONSTANT, wire_dtype

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
EXAMPLES, ROUND, TRAIN_LOSS = "num-examples", "server-round", "train_loss"
CLIENT_INFO = "query.roster"
_TENSORS, _NUMBER, ALGORITHM, _COUNTS = "tensors.", "number.", "algorithm", "class-counts"
_TEXT, _MODELS = "text.", "models"
_SHARING, _IMAGES, _CARD = "sharing", "images", "card"
_STOCK_PROX, _LR_FACTOR = "proximal-mu", "lr-factor"
LOSS, NORM_BOUND = "loss", "norm-bound"
_FOLDED, _BYTES, _NORM = "folded", "bytes", "norm"
MEASURE, MEASURE_FIRST, _MEASURED = "query.measure", "measure-first", "measured."
PERSONAL = "personal."
"""Before the names of the records of a personal model's measurement."""
SILENT_SINCE = "silent-since"
"""Clients none of whose answers since some round was used: client, round, client, round, ..."""
_START, _STOP = "start", "stop"
_MOST = 1 << 40
"""Of a client's numbers, which noise may make negative: sums over clients are exact."""
R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)


@dataclass(frozen=True, kw_only=True)
class ClientInfo:
    """What a client reports of itself before the first round."""

    client: int
    """Partition number."""
    image_counts: ImageCounts
    """Training images; zeros where they are not reported."""
    sharing: str = "plain"
    """How: ``plain``, ``noisy``, ``masked`` (they come with others' in a sum) or ``none``."""
    card: Mapping[str, str] = field(default_factory=dict)
    """What the other masked clients are shown."""


def encode_state(state: State) -> ArrayRecord:
    """Wrap CPU tensors without copying them; bfloat16, which NumPy does not know, travels as float32."""
    return filled(ArrayRecord, {name: TensorArray(tensor) for name, tensor in sent(state).items()})


def sent(state: State) -> State:
    """Return tensors in the types in which they travel."""
    return {name: t.to(getattr(torch, wire_dtype(str(t.dtype)))) for name, t in state.items()}


def decode_state(record: Mapping[str, Array]) -> State:
    """Return the tensors of a record; they may share memory with it."""
    return {name: tensor_of(array) for name, array in record.items()}


def tensor_of(array: Array) -> torch.Tensor:
    """Return an array's tensor, which may share memory with it."""
    if isinstance(array, TensorArray):
        return array.tensor
    return torch.from_numpy(np.asarray(array.numpy(), order="C"))


def arrays_of(content: RecordDict) -> dict[str, ArrayRecord]:
    """Return the array records of a message; Flower's own property checks every one anew."""
    return {key: held for key, held in values(content).items() if isinstance(held, ArrayRecord)}


def record(content: RecordDict, key: str, kind: type[R]) -> R:
    """Return one record of a message.

    Raises:
        KeyError: There is none of this name and kind.
    """
    found = values(content)[key]
    if not isinstance(found, kind):
        raise KeyError(key)
    return found


def size(content: RecordDict) -> int:
    """Return the bytes of all tensors of a message; of a folded reply, those that it would have had."""
    if is_folded(content):
        return int(record(content, _FOLDED, ConfigRecord)[_BYTES])  # type: ignore[arg-type]
    return sum(_record_size(record) for record in arrays_of(content).values())


def total_size(contents: Iterable[RecordDict]) -> int:
    """Return the bytes of all tensors of many messages, which may share their records.

    Those that travel to a client once are left out (``constants_size``).
    """
    known: dict[int, int] = {}
    total = 0
    for content in contents:
        for name, record in arrays_of(content).items():
            if name.startswith(CONSTANT):
                continue
            key = id(record)
            if key not in known:
                known[key] = _record_size(record)
            total += known[key]
    return total


def constants_size(content: RecordDict) -> int:
    """Return the bytes of the tensors in a message that travel to a client once."""
    return sum(
        _record_size(record) for name, record in arrays_of(content).items() if name.startswith(CONSTANT)
    )


def _record_size(record: ArrayRecord) -> int:
    return sum(_array_size(array) for array in values(record).values())


def _array_size(array: Array) -> int:
    if isinstance(array, TensorArray):
        return array.tensor.nbytes
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize


def encode_client_config(
    client_config: ClientConfig,
    arrays: ArrayRecord,
    config: ConfigRecord,
    constants: Mapping[str, ArrayRecord] = MappingProxyType({}),
) -> RecordDict:
    """Return the content of a training message: the model and the client's configuration.

    Args:
        client_config: What the strategy sends this client; its constants are taken of the last argument.
        arrays: The model.
        config: Numbers for all clients.
        constants: As ``encode_constants`` made them, for all messages of a run.
    """
    config_record = ConfigRecord(dict(config))
    for name, number in client_config.numbers.items():
        config_record[_NUMBER + name] = float(number)
    if client_config.lr_factor != 1:
        config_record[_LR_FACTOR] = float(client_config.lr_factor)
    for name, text in client_config.texts.items():
        config_record[_TEXT + name] = text
    if client_config.models:
        config_record[_MODELS] = list(client_config.models)
    # First, so that the same bytes begin each message; the model changes.
    content = RecordDict({**constants, ARRAYS: arrays, CONFIG: config_record})
    add_groups(content, client_config.tensors)
    return content


def encode_constants(groups: Mapping[str, State]) -> dict[str, ArrayRecord]:
    """Return groups of tensors that stay the same in a run as records by their key in a message."""
    return {CONSTANT + name: encode_state(state) for name, state in groups.items()}


def add_groups(content: RecordDict, tensors: Mapping[str, State]) -> None:
    """Put groups of tensors that travel beside a model into a content; ``groups`` reads them."""
    for group, state in tensors.items():
        content[_TENSORS + group] = encode_state(state)


def round_of(content: RecordDict) -> int:
    """Return the round that a message to a client belongs to."""
    return int(record(content, CONFIG, ConfigRecord)[ROUND])  # type: ignore[arg-type]


def algorithm_name(content: RecordDict) -> str | None:
    """Return the registered name of the client half that a message requests, if it does."""
    name = values(content[CONFIG]).get(ALGORITHM) if CONFIG in content else None
    return None if name is None else str(name)


def model_names(content: RecordDict) -> tuple[str, ...]:
    """Return the names of the networks that a message has the client half build."""
    found = values(content[CONFIG]).get(_MODELS, ()) if CONFIG in content else ()
    return tuple(map(str, found if isinstance(found, list) else ()))


def norm_bound(content: RecordDict) -> float:
    """Return the norm from which on a change is refused, where a training message has it; else infinity."""
    config = content.get(CONFIG)
    return float(config.get(NORM_BOUND, math.inf)) if isinstance(config, ConfigRecord) else math.inf  # type: ignore[arg-type]


def encode_counts(counts: tuple[int, ...]) -> ConfigRecord:
    """Return the configuration with the federation's class counts [C]."""
    return ConfigRecord({_COUNTS: list(counts)})


def decode_task(message: Message, client: int) -> TrainRequest:
    """Return a client's task from a training message of ours or of a stock strategy."""
    content, config = message.content, values(record(message.content, CONFIG, ConfigRecord))
    numbers = {k.removeprefix(_NUMBER): float(v) for k, v in config.items() if k.startswith(_NUMBER)}
    algorithm = algorithm_name(content)
    if algorithm is None and _STOCK_PROX in config:
        algorithm, numbers = "fedprox", {"mu": float(config[_STOCK_PROX])}
    counts = config.get(_COUNTS)
    silent = list(config.get(SILENT_SINCE, ()))
    return TrainRequest(
        round=int(config[ROUND]),
        client=client,
        state=decode_state(values(record(content, ARRAYS, ArrayRecord))),
        client_config=ClientConfig(
            numbers=numbers,
            tensors=groups(content),
            texts={k.removeprefix(_TEXT): str(v) for k, v in config.items() if k.startswith(_TEXT)},
            models=model_names(content),
            constants=groups(content, CONSTANT),
            lr_factor=float(config.get(_LR_FACTOR, 1.0)),
        ),
        algorithm=algorithm,
        counts=None if counts is None else tuple(counts),
        silent_since=dict(zip(silent[::2], silent[1::2], strict=True)).get(client),
        measure=bool(config.get(MEASURE_FIRST, False)),
    )


def encode_update(update: TrainResult) -> RecordDict:
    """Return the content of a reply to a training message."""
    metrics = filled(MetricRecord, {EXAMPLES: update.examples, TRAIN_LOSS: update.loss})
    content = filled(RecordDict, {ARRAYS: encode_state(update.state), METRICS: metrics})
    add_groups(content, update.tensors)
    if update.measured is not None:
        carry(content, encode_evaluation(update.measured))
    return content


def carry(reply: RecordDict, evaluation: RecordDict, prefix: str = _MEASURED) -> None:
    """Put the content of a reply to an evaluation message into one to a training message.

    Args:
        reply: Takes it.
        evaluation: The content.
        prefix: With ``PERSONAL``, a personal model's measurement into that of the global one.
    """
    for name, held in values(evaluation).items():
        reply[prefix + name] = held


def unload(reply: RecordDict, prefix: str = _MEASURED) -> RecordDict | None:
    """Take an evaluation out of a reply and return it; None where it has none. Arguments as of ``carry``."""
    keys = [key for key in values(reply) if key.startswith(prefix)]
    taken = {key.removeprefix(prefix): reply.pop(key) for key in keys}
    return filled(RecordDict, taken) if taken else None


def encode_folded(
    examples: int, loss: float, nbytes: int, norm: float, measured: RecordDict | None
) -> RecordDict:
    """Return the content of a reply whose tensors are in a sum.

    Args:
        examples: Images of the client.
        loss: Its mean training loss.
        nbytes: Bytes of its tensors as they would have travelled, with those of ``measured``.
        norm: Norm of its change.
        measured: Its measurement of the model that it received, as ``encode_evaluation`` made it.
    """
    metrics = filled(MetricRecord, {EXAMPLES: examples, TRAIN_LOSS: loss})
    summary = filled(ConfigRecord, {_BYTES: nbytes, _NORM: norm})
    content = filled(RecordDict, {METRICS: metrics, _FOLDED: summary})
    if measured is not None:
        carry(content, measured)
    return content


def is_folded(content: RecordDict) -> bool:
    """Return whether a reply's tensors are in a sum."""
    return _FOLDED in values(content)


def folded_norm(content: RecordDict) -> float:
    """Return the norm that a folded reply reports."""
    return float(record(content, _FOLDED, ConfigRecord)[_NORM])  # type: ignore[arg-type]


def encode_evaluation(evaluation: Evaluation, examples: int | None = None) -> RecordDict:
    """Return the content of a reply to an evaluation message: counts and sums, never ratios.

    Args:
        evaluation: What was counted.
        examples: Number of images, where it does not follow from the counts.
    """
    images = evaluation.examples if examples is None else examples
    records, metrics = evaluation_codec.encode(evaluation.stats)
    metric_record = MetricRecord({EXAMPLES: images, LOSS: evaluation.loss_sum, **metrics})
    content = RecordDict({METRICS: metric_record, **records})
    if evaluation.personal is not None:
        carry(content, encode_evaluation(evaluation.personal), PERSONAL)
    return content


def decode_evaluation(content: RecordDict) -> Evaluation:
    """Return what a client counted."""
    metrics = record(content, METRICS, MetricRecord)
    counted = evaluation_codec.decode(content, metrics)
    return Evaluation(stats=counted, loss_sum=reported_loss(content))


def reported_examples(content: RecordDict) -> int:
    """Return on how many images a reply rests, as it reports."""
    return int(record(content, METRICS, MetricRecord)[EXAMPLES])  # type: ignore[arg-type]


def reported_loss(content: RecordDict) -> float:
    """Return the summed loss of a measurement."""
    return float(record(content, METRICS, MetricRecord)[LOSS])  # type: ignore[arg-type]


def encode_measure(arrays: ArrayRecord, images: range) -> RecordDict:
    """Return the content of a request to measure a state on some of the server's test images."""
    return RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({_START: images.start, _STOP: images.stop})})


def decode_measure(content: RecordDict) -> tuple[State, range]:
    """Return the state and the numbers of the test images of a request."""
    config = record(content, CONFIG, ConfigRecord)
    return decode_state(record(content, ARRAYS, ArrayRecord)), range(int(config[_START]), int(config[_STOP]))  # type: ignore[arg-type]


def encode_client_info(entry: ClientInfo) -> RecordDict:
    """Return the content of a reply to the roster query."""
    counts = entry.image_counts
    info = ConfigRecord({"client": entry.client, _COUNTS: list(counts.counts), _IMAGES: counts.images})
    info[_SHARING] = entry.sharing
    if entry.card:
        info[_CARD] = json.dumps(dict(entry.card))
    return RecordDict({CONFIG: info})


def decode_client_info(content: RecordDict) -> ClientInfo:
    """Return what a client reports of itself.

    Raises:
        KeyError: A record or a number is missing.
        ValueError: Something is of another kind, or a number is beyond 2^40.
    """
    config = record(content, CONFIG, ConfigRecord)
    client, images, counts = config["client"], config[_IMAGES], config[_COUNTS]
    card = json.loads(str(config.get(_CARD, "{}")))
    numbers = [client, images, *counts] if isinstance(counts, list) else [None]
    if not all(isinstance(number, int) and abs(number) <= _MOST for number in numbers):
        raise ValueError("a client's numbers are no whole numbers up to 2^40")
    if not isinstance(card, dict):
        raise ValueError("a client's card is no table")
    return ClientInfo(
        client=cast("int", client),
        image_counts=ImageCounts.from_numbers(cast("list[int]", [*numbers[2:], images])),
        sharing=str(config.get(_SHARING, "plain")),
        card=card,
    )


def groups(content: RecordDict, prefix: str = _TENSORS) -> dict[str, State]:
    """Return the groups of tensors that travel beside a model; with ``CONSTANT`` those of the whole run."""
    found = group_records(values(content), prefix)
    return {name: decode_state(values(held)) for name, held in found.items()}


def group_records(held: Mapping[str, object], prefix: str = _TENSORS) -> dict[str, ArrayRecord]:
    """Return the records of these groups by name, not decoded.

    Args:
        held: The records of a message.
        prefix: With which the keys of such records begin.
    """
    return {
        key.removeprefix(prefix): record
        for key, record in held.items()
        if key.startswith(prefix) and isinstance(record, ArrayRecord)
    }
