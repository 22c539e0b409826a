"""Messages about class counts that not everybody may see: their keys, and what the server makes of them.

A confusion matrix reveals a client's class counts as the counts themselves do: its rows add up to them.
The summed loss reveals them too: under a model that the server made up each class costs what it chose. So a
client that does not share its counts as they are sends what it counted and its loss masked, of which only the
sum over its group can be read, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedvision.data.image_counts import ImageCounts, PerImage
from fedvision.errors import MALFORMED
from fedvision.flower import codec, evaluation_codec
from fedvision.tasks.stats import MetricStats, StatsForm
from fedvision.training.evaluate import Evaluation

MASKED = "query.masked"
"""Message type: the cards of a group go out; first clients agree, then they send masked counts."""
_AGREEMENT_ONLY = "agreement-only"
_CARDS, _COUNTS, _GROUP, _LOSS = "cards", "masked-counts", "group", "masked-loss"
_WITHHELD = "none"
_LOSS_STEP, _LOSS_MOST = 2.0**-20, 2.0**36
"""Nats of a masked loss: its unit, and the largest that is sent; 2^63 holds the sum over 128 such clients."""
_MOST_IMAGES = 1 << 40
"""Of a client or a group; masks that are left in a sum seldom let one of its numbers be as small, and never
all."""


def encode_group(cards: Sequence[Mapping[str, object]], *, agreement_only: bool = False) -> RecordDict:
    """Return the content that asks a group for its masked numbers of images.

    Args:
        cards: The group's.
        agreement_only: No counts are sent yet: clients check the cards, and return which group binds them.
    """
    return RecordDict(
        {codec.CONFIG: ConfigRecord({_CARDS: json.dumps(list(cards)), _AGREEMENT_ONLY: agreement_only})}
    )


def agreement_only(content: RecordDict) -> bool:
    """Return whether only a group's agreement is requested."""
    return bool(codec.record(content, codec.CONFIG, ConfigRecord).get(_AGREEMENT_ONLY))


def encode_agreed(cards: Sequence[Mapping[str, str]]) -> RecordDict:
    """Return the reply to a request for agreement: the cards of the group that binds a client, or none."""
    return RecordDict({codec.CONFIG: ConfigRecord({_CARDS: json.dumps(list(cards))})})


def decode_group(content: RecordDict) -> list[dict[str, Any]]:
    """Return a group's cards, of a request or of a reply, which are still to be proven.

    Raises:
        KeyError: There are none.
        ValueError: They are no list of tables.
    """
    cards = json.loads(str(codec.record(content, codec.CONFIG, ConfigRecord)[_CARDS]))
    if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
        raise ValueError("a group's cards are no list of tables")
    return cards


def encode_masked(numbers: Sequence[int]) -> RecordDict:
    """Return the reply to ``encode_group``: ``ImageCounts.numbers`` [C + 1], masked, 64 bits, signed."""
    return RecordDict({codec.CONFIG: ConfigRecord({_COUNTS: list(numbers)})})


def decode_masked(content: RecordDict) -> NDArray[np.int64]:
    """Return masked numbers of images [C + 1]; sums of them wrap around, modulo 2^64.

    Raises:
        KeyError: There are none.
        ValueError: They are no whole numbers of 64 bits.
    """
    numbers = codec.record(content, codec.CONFIG, ConfigRecord)[_COUNTS]
    if not isinstance(numbers, list) or not all(map(evaluation_codec.is_int64, numbers)):
        raise ValueError("masked counts are no whole numbers of 64 bits")
    return np.array(numbers, np.int64)


def drop_counts(evaluation: RecordDict) -> RecordDict:
    """Return an evaluation without counts and loss: only the number of images is left."""
    counted = codec.decode_evaluation(evaluation)
    nothing = Evaluation(stats=MetricStats.empty(counted.stats.shape), loss_sum=0.0)
    return _marked(codec.encode_evaluation(nothing, counted.examples), {_GROUP: _WITHHELD})


def numbers_to_mask(evaluation: RecordDict) -> NDArray[np.int64]:
    """Return what of an evaluation is masked [T R S + 1]: all cells in order, the loss in 2^-20 nats.

    Cells that do not occur are masked as well, or their absence would be revealed.

    A loss that is no number, or above 2^36 nats, is sent as 2^36.
    """
    counted = codec.decode_evaluation(evaluation)
    loss = counted.loss_sum if 0 <= counted.loss_sum < _LOSS_MOST else _LOSS_MOST
    return np.append(counted.stats.tables().ravel(), np.int64(round(loss / _LOSS_STEP)))


def mask_counts(evaluation: RecordDict, masked: NDArray[np.int64], group: str) -> RecordDict:
    """Return an evaluation with masked numbers in the place of its own.

    Args:
        evaluation: As the client counted.
        masked: Its ``numbers_to_mask`` with the masks of its group.
        group: The group's name: all of it is needed for a sum.
    """
    counted = codec.decode_evaluation(evaluation)
    hidden = encode_hidden(masked[:-1].reshape(counted.stats.shape), counted.examples)
    return _marked(hidden, {_GROUP: group, _LOSS: int(masked[-1])})


def encode_hidden(tables: NDArray[np.int64], examples: int, loss: float = 0.0) -> RecordDict:
    """Return the content of an evaluation whose counts [T, R, S] are masked."""
    metrics = MetricRecord({codec.EXAMPLES: examples, codec.LOSS: loss})
    return RecordDict({codec.METRICS: metrics, evaluation_codec.TABLES: ArrayRecord([tables])})


def question(kind: str, request: RecordDict, groups: Sequence[str] = (codec.ARRAYS,)) -> bytes:
    """Return what is the same for clients who count with one model at one time, and for nobody else.

    Masks serve for one question. A strategy may send each client numbers of its own, which they must not
    depend on; and one model in one round is measured before training with other personal tensors than after.

    Args:
        kind: Type of the requesting message.
        request: Its content.
        groups: Those of its tensors on which all clients' answers rest.
    """
    digest = hashlib.sha256(f"{kind}\n{codec.round_of(request)}\n".encode())
    for group in groups:
        for name, array in sorted(codec.record(request, group, ArrayRecord).items()):
            digest.update(f"{name}\n{array.dtype}\n{list(array.shape)}\n".encode())
            digest.update(np.ascontiguousarray(array.numpy()).reshape(-1).view(np.uint8).data)
    return digest.digest()


def _marked(content: RecordDict, marks: dict[str, str | int]) -> RecordDict:
    content[codec.CONFIG] = ConfigRecord({**marks})
    return content


def is_hidden(content: RecordDict) -> bool:
    """Return whether an evaluation's counts and loss are masked or left out."""
    return bool(_group(content))


@dataclass(frozen=True, kw_only=True)
class EvaluationReply:
    """A client's evaluation, decoded once, where it is received."""

    examples: int
    """Images behind it."""
    plain: Evaluation | None = None
    """What was counted, where the client reports that as it is."""
    group: str = ""
    """Name of the group in whose sum it can be read; empty where it is plain or withheld."""
    masked_counts: NDArray[np.int64] | None = None
    """Its masked counts [T, R, S]."""
    masked_loss: int | None = None
    """Its masked loss in 2^-20 nats."""


def decode_evaluation(content: RecordDict, form: StatsForm) -> EvaluationReply:
    """Return what a client's evaluation says.

    Args:
        content: As it was received.
        form: What counts must look like.

    Raises:
        ValueError: It cannot be used; the sentence says why.
    """
    try:
        metrics = codec.record(content, codec.METRICS, MetricRecord)
        examples, group = codec.reported_examples(content), _group(content)
        float(metrics[codec.LOSS])  # type: ignore[arg-type]
        counted = 0 if group == _WITHHELD else None if group else examples
        wrong = evaluation_codec.problem(content, metrics, form, counted)
    except MALFORMED as error:
        raise ValueError("its measurement lacks counts, loss or number of images") from error
    if wrong:
        raise ValueError(wrong)
    if examples > _MOST_IMAGES:
        raise ValueError("its measurement rests on more than 2^40 images")
    if not group:
        return EvaluationReply(examples=examples, plain=codec.decode_evaluation(content))
    if group == _WITHHELD:
        return EvaluationReply(examples=examples)
    loss = codec.record(content, codec.CONFIG, ConfigRecord).get(_LOSS)
    if not isinstance(loss, int) or not evaluation_codec.is_int64(loss):
        raise ValueError("its measurement lacks its masked loss")
    tables = evaluation_codec.tables_of(content)
    return EvaluationReply(examples=examples, group=group, masked_counts=tables, masked_loss=loss)


def _group(content: RecordDict) -> str:
    """Return the group for which a reply is masked, empty for a plain one."""
    if codec.CONFIG not in content:
        return ""
    return str(codec.record(content, codec.CONFIG, ConfigRecord).get(_GROUP, ""))


@dataclass(kw_only=True)
class ReadableStats:
    """What can be read of clients' evaluations."""

    plain: dict[int, Evaluation] = field(default_factory=dict)
    """By client: those that are plain."""
    sums: list[Evaluation] = field(default_factory=list)
    """One for each group of masked clients that is complete."""
    withheld: list[int] = field(default_factory=list)
    """Clients of whom nothing can be read alone, rising."""
    clients: int = 0
    """Clients whose images are in what can be read."""

    @property
    def readable(self) -> list[Evaluation]:
        """All evaluations and sums, to be added up."""
        return [*self.plain.values(), *self.sums]


def split_readable(
    replies: Mapping[int, EvaluationReply], groups: Mapping[str, Collection[int]]
) -> ReadableStats:
    """Separate evaluations that can be read from those that only count as a sum.

    Args:
        replies: By client.
        groups: The clients of each group by its name. A group of which somebody is missing gives no sum.
    """
    found, waiting = ReadableStats(), dict[str, dict[int, EvaluationReply]]()
    for client, reply in replies.items():
        if reply.plain is not None:
            found.plain[client] = reply.plain
            found.clients += reply.plain.stats.examples > 0
            continue
        found.withheld.append(client)
        if reply.group:
            waiting.setdefault(reply.group, {})[client] = reply
    for group, members in waiting.items():
        if set(groups.get(group, ())) == set(members) and (total := _total(list(members.values()))):
            found.sums.append(total)
            found.clients += len(members)
    found.withheld.sort()
    return found


def _total(replies: Sequence[EvaluationReply]) -> Evaluation | None:
    """Return a group's sum, or None where the masks are not gone from it."""
    parts = [reply.masked_counts for reply in replies if reply.masked_counts is not None]
    if len({part.shape for part in parts}) != 1:
        return None
    tables = added(parts)
    if not evaluation_codec.are_counts(tables, sum(reply.examples for reply in replies)):
        return None
    units = int(added(np.array([reply.masked_loss for reply in replies], np.int64)))
    if units < 0:
        return None
    loss = units * _LOSS_STEP
    counted = MetricStats.from_tables(tables, masked=True)
    return Evaluation(stats=counted, loss_sum=loss if loss < _LOSS_MOST else math.inf)


def added(parts: Sequence[NDArray[np.int64]] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of arrays [...], modulo 2^64."""
    total: NDArray[np.int64] = np.asarray(parts, np.int64).sum(axis=0)
    return total


def unmasked(numbers: NDArray[np.int64], per_image: PerImage) -> ImageCounts | None:
    """Return the images of a group, or None where masks are left in its sum.

    Args:
        numbers: The sum of its clients' masked numbers [C + 1].
        per_image: As for ``ImageCounts.agree``.
    """
    total = ImageCounts.from_numbers(numbers.tolist())
    return total if total.agree(per_image) and total.images <= _MOST_IMAGES else None
