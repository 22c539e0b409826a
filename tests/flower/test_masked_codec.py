"""What the server can read of plain, masked and withheld evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fedvision.data.image_counts import PerImage
from fedvision.flower import codec, masked_codec
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.stats import StatsForm
from fedvision.training.evaluate import Evaluation
from fedvision.types import ClientConfig

PLAIN = np.array([[3, 1], [0, 2]], np.int64)


def reply(confusion: np.ndarray = PLAIN, loss: float = 1.5) -> RecordDict:
    return codec.encode_evaluation(Evaluation(stats=ConfusionCounts.from_matrix(confusion), loss_sum=loss))


def masked(count: int, group: str = "g", loss: float = 1.5) -> list[RecordDict]:
    """Replies whose masks cancel modulo 2^64."""
    rng = np.random.default_rng(0)
    masks = rng.integers(-(2**63), 2**63, (count - 1, 5), np.int64)
    every = [*masks, -masks.sum(0)]
    return [
        masked_codec.mask_counts(
            reply(loss=loss), masked_codec.numbers_to_mask(reply(loss=loss)) + mask, group
        )
        for mask in every
    ]


def split(
    contents: Mapping[int, RecordDict], groups: Mapping[str, Sequence[int]]
) -> masked_codec.ReadableStats:
    replies = {
        k: masked_codec.decode_evaluation(content, StatsForm(shape_for=lambda shape: shape))
        for k, content in contents.items()
    }
    return masked_codec.split_readable(replies, groups)


def test_masked_groups_become_one_evaluation_and_plain_ones_stay_apart() -> None:
    one, two, three = masked(3)
    found = split({0: reply(), 1: one, 2: two, 5: three}, {"g": (1, 2, 5)})
    assert found.plain.keys() == {0}
    assert (found.withheld, found.clients) == ([1, 2, 5], 4)
    (total,) = found.sums
    assert np.array_equal(total.stats.tables(), 3 * PLAIN[None])
    assert total.loss_sum == 4.5
    assert sum(part.examples for part in found.readable) == 4 * 6


@pytest.mark.parametrize(
    "groups",
    [{}, {"g": (1, 2, 3, 4)}, {"g": (1, 2)}, {"h": (1, 2, 3)}],
    ids=["unknown", "one missing", "one too many", "another"],
)
def test_a_group_that_is_not_complete_gives_nothing(groups: dict[str, tuple[int, ...]]) -> None:
    found = split(dict(enumerate(masked(3), 1)), groups)
    assert found.readable == []
    assert (found.withheld, found.clients) == ([1, 2, 3], 0)


def test_masks_that_did_not_cancel_are_noticed() -> None:
    one, two, _ = masked(3)
    found = split({1: one, 2: two, 3: one}, {"g": (1, 2, 3)})
    assert found.sums == []


@pytest.mark.parametrize(
    ("numbers", "one", "each", "any_number"),
    [
        ([3, 1, 4], True, True, True),
        ([5, -1, 4], False, False, False),
        ([3, 2, 4], False, True, True),
        ([5, 0, 4], False, False, True),
        ([0, 0, 4], False, True, True),
        ([2**63 - 1, 2**63 - 1, 2, 0], False, False, False),
        ([2**40, 1, 2**40 + 1], False, False, False),
    ],
)
def test_a_sum_with_masks_in_it_is_no_number_of_images(
    numbers: list[int], one: bool, each: bool, any_number: bool
) -> None:
    """Of one class an image the counts add up to the images; of several labels none is above them."""
    per_image: PerImage
    for per_image, good in (("one class", one), ("one of each", each), ("any number", any_number)):
        found = masked_codec.unmasked(np.array(numbers), per_image)
        assert (found is not None) == good
        assert found is None or found.numbers() == numbers


def crafted(counts: Sequence[int]) -> list[RecordDict]:
    """What a client measures of models under which one class alone costs anything: 1,000 nats."""
    return [reply(np.diag(counts), loss=1000.0 * count) for count in counts]


def test_crafted_models_reveal_no_hidden_class_counts() -> None:
    """The summed loss of a model that costs nothing but on class c is 1,000 times that class's count."""
    evaluations = [codec.decode_evaluation(content) for content in crafted([3, 0, 7])]
    assert [one.loss_sum / 1000 for one in evaluations] == [3, 0, 7]
    for one, other in zip(crafted([3, 0, 7]), crafted([5, 4, 1]), strict=True):
        assert masked_codec.drop_counts(one) == masked_codec.drop_counts(other)
        hidden = [masked_codec.mask_counts(x, masked_codec.numbers_to_mask(x) * 0, "g") for x in (one, other)]
        assert hidden[0] == hidden[1], "nothing bare stands beside what is masked"


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e30])
def test_a_diverged_loss_is_infinite_in_the_sum(loss: float) -> None:
    found = split(dict(enumerate(masked(3, loss=loss))), {"g": (0, 1, 2)})
    assert found.sums[0].loss_sum == math.inf


def test_withheld_counts_reveal_only_the_number_of_images() -> None:
    content = masked_codec.drop_counts(reply())
    evaluation = codec.decode_evaluation(content)
    assert evaluation.stats.examples == 0
    assert (codec.reported_examples(content), evaluation.loss_sum) == (6, 0.0)
    found = split({4: content}, {"none": (4,)})
    assert (found.readable, found.withheld) == ([], [4])


def test_cards_and_masked_counts_survive_the_way() -> None:
    cards = [{"public": "a"}, {"public": "b"}]
    assert masked_codec.decode_group(masked_codec.encode_group(cards)) == cards
    numbers = [-(2**63), 2**63 - 1, 0]
    assert masked_codec.decode_masked(masked_codec.encode_masked(numbers)).tolist() == numbers


def request(round: int = 2, control: float = 0.0, **tensors: torch.Tensor) -> RecordDict:
    client_config = ClientConfig(tensors={"control": {"w": torch.tensor([control])}})
    config = ConfigRecord({codec.ROUND: round})
    return codec.encode_client_config(client_config, codec.encode_state(tensors), config)


def test_query_key_by_model_and_statistic() -> None:
    """A question is the same for whoever counts with the same model and for nobody else."""
    w, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    mine = masked_codec.question("train", request(w=w, b=b))
    # What a strategy sends a single client has no part in what is counted.
    assert masked_codec.question("train", request(control=9.0, b=b, w=w)) == mine
    others = [
        ("evaluate", request(w=w, b=b)),
        ("train", request(3, w=w, b=b)),
        ("train", request(w=b, b=w)),
        ("train", request(v=w, b=b)),
        ("train", request(w=w.reshape(2, 1), b=b)),
        ("train", request(w=w, b=b + 1)),
    ]
    assert mine not in {masked_codec.question(*one) for one in others}


def test_message_size_of_withheld_and_masked_counts() -> None:
    """The pairs that a masked client named would reveal which ones occur."""
    content = reply(np.diag([0, 5, 0, 0, 2]))
    assert codec.size(content) == 2 * 2 * 8
    assert codec.size(masked_codec.drop_counts(content)) == 0
    numbers = masked_codec.numbers_to_mask(content)
    assert numbers[:-1].reshape(5, 5).tolist() == np.diag([0, 5, 0, 0, 2]).tolist()
    hidden = masked_codec.mask_counts(content, numbers, "g")
    assert codec.size(hidden) == 5 * 5 * 8
    found = split({1: hidden}, {"g": (1,)})
    assert found.sums[0].stats.tables().tolist() == [np.diag([0, 5, 0, 0, 2]).tolist()]


def test_a_group_of_matrices_and_pairs_gives_nothing() -> None:
    one, two, three = masked(3)
    pairs = RecordDict({**masked_codec.drop_counts(reply()), "config": three["config"]})
    with pytest.raises(ValueError, match="its masked counts are no tables"):
        split({3: pairs}, {})
    other = masked_codec.encode_hidden(np.zeros((1, 3, 3), np.int64), 6)
    other["config"] = three["config"]
    found = split({1: one, 2: two, 3: other}, {"g": (1, 2, 3)})
    assert (found.readable, found.withheld) == ([], [1, 2, 3])


def test_a_masked_evaluation_without_its_loss_is_refused() -> None:
    one, _, _ = masked(3)
    for damage in (2**63, 0.5):
        one["config"]["masked-loss"] = damage
        with pytest.raises(ValueError, match="lacks its masked loss"):
            split({1: one}, {})
    del one["config"]["masked-loss"]
    with pytest.raises(ValueError, match="lacks its masked loss"):
        split({1: one}, {})


def test_counts_whose_sum_would_wrap_around_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rests on more than 2\^40 images"):
        split({1: reply(np.diag([1 << 62, 0]))}, {})
