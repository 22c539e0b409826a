"""The recurrent network: what it reads, in which order, and what its head sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedvision.models.base import ImageModel
from fedvision.models.rnn import RecurrentFeatures, RnnBackbone, rnn


def build(**keys: object) -> tuple[ImageModel, RecurrentFeatures]:
    torch.manual_seed(0)
    model = rnn(num_classes=4, in_channels=2, image_size=(6, 9), hidden=5, **keys)  # type: ignore[arg-type]
    assert isinstance(model, ImageModel)
    assert isinstance(model.backbone, RnnBackbone)
    return model, model.backbone.features


def test_a_row_is_a_token() -> None:
    model, features = build()
    images = torch.randn(3, 2, 6, 9)
    rows = torch.stack([images[:, :, row].flatten(1) for row in range(6)], dim=1)
    expected = features.recurrent(rows)[1][-1]
    assert torch.equal(model(images), model.head(expected))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 2])
def test_last_is_each_directions_final_state(cell: str, layers: int) -> None:
    model, features = build(cell=cell, layers=layers, bidirectional=True, tokens="patches", patch=3)
    images = torch.randn(3, 2, 6, 9)
    tokens = nn.functional.unfold(images, 3, stride=3).transpose(1, 2)
    final = features.recurrent(tokens)[1]
    hidden = final[0] if cell == "lstm" else final
    torch.testing.assert_close(model(images), model.head(torch.cat([hidden[-2], hidden[-1]], dim=1)))


def test_mean_is_over_all_states() -> None:
    model, features = build(pool="mean")
    images = torch.randn(3, 2, 6, 9)
    torch.testing.assert_close(model(images), model.head(features(images).mean(1)))


def test_one_direction_sees_no_later_row() -> None:
    features = RecurrentFeatures(1, (4, 3), hidden=5)
    images = torch.randn(1, 1, 4, 3)
    changed = images.clone()
    changed[:, :, 2] += 1
    before, after = features(images), features(changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.isclose(before[:, 2:], after[:, 2:]).all()


@pytest.mark.parametrize(("keys", "grid"), [({}, (6, 1)), ({"tokens": "patches", "patch": 3}, (2, 3))])
def test_the_grid_counts_the_tokens(keys: dict[str, object], grid: tuple[int, int]) -> None:
    features = RecurrentFeatures(2, (6, 9), hidden=5, bidirectional=True, **keys)  # type: ignore[arg-type]
    assert features.grid == grid
    assert features(torch.zeros(1, 2, 6, 9)).shape == (1, grid[0] * grid[1], features.channels)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"cell": "gruu"}, r"cell must be one of 'gru', 'lstm', not 'gruu'; did you mean 'gru'\?"),
        ({"tokens": "pixels"}, "tokens must be one of 'rows', 'patches', not 'pixels'"),
        ({"pool": "max"}, "pool must be one of 'last', 'mean', not 'max'"),
        ({"layers": 0}, "layers must be >= 1, not 0"),
        ({"dropout": -0.1}, "dropout must be >= 0 and < 1, not -0.1"),
        ({"tokens": "patches", "patch": 4}, "patch = 4 does not divide an image of 6 x 9; .* is 3"),
    ],
)
def test_wrong_keys_are_refused(keys: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**keys)
