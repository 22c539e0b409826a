"""Patches and positions against torch's own unfold and numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedvision.models.tokens import Positions, as_tokens, patch_grid, patches, sine_positions


@pytest.mark.parametrize("size", [(2, 2), (1, 6), (4, 3), (4, 6)])
def test_patches_are_what_unfold_cuts(size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, 4, 6)
    expected = F.unfold(images, size, stride=size).transpose(1, 2)
    assert torch.equal(patches(images, size), expected)
    assert torch.equal(patches(images.to(memory_format=torch.channels_last), size), expected)


def test_a_map_becomes_tokens_row_by_row_and_tokens_pass() -> None:
    features = torch.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4)
    tokens = as_tokens(features)
    assert tokens.shape == (2, 8, 3)
    assert tokens[1, 5].tolist() == features[1, :, 1, 1].tolist()
    assert as_tokens(tokens) is tokens


def test_patch_grid_counts_rows_and_columns() -> None:
    assert patch_grid((8, 12), 4) == (2, 3)


@pytest.mark.parametrize(
    ("size", "patch", "fits"),
    [
        ((28, 28), 5, 4),
        ((28, 28), 6, 7),
        ((28, 28), 100, 28),
        ((20, 36), 3, 2),
        ((7, 9), 4, 1),
        ((8, 8), 0, 1),
    ],
)
def test_a_patch_that_does_not_fit_names_one_that_does(size: tuple[int, int], patch: int, fits: int) -> None:
    sentence = f"patch = {patch} does not divide an image of {size[0]} x {size[1]}; .* is {fits}$"
    with pytest.raises(ValueError, match=sentence):
        patch_grid(size, patch)


def test_sine_positions_by_hand() -> None:
    table = sine_positions((2, 3), 8)
    # Token 5 stands in row 1, column 2; frequencies are 1 and 1/100.
    expected = [f(1 * w) for f in (math.sin, math.cos) for w in (1, 0.01)]
    expected += [f(2 * w) for f in (math.sin, math.cos) for w in (1, 0.01)]
    torch.testing.assert_close(table[5], torch.tensor(expected))
    assert len({tuple(row.tolist()) for row in table}) == 6


def test_sine_positions_differ_from_beyers_as_documented() -> None:
    """Beyer et al.'s posemb_sincos_2d, written out: the column first, exponents i / (dim / 4 - 1)."""
    rows, columns = np.mgrid[:3, :2]
    theirs = np.concatenate(
        [
            wave(place.reshape(-1, 1) / 10000.0 ** (np.arange(4) / 3))
            for place in (columns, rows)
            for wave in (np.sin, np.cos)
        ],
        axis=1,
    )
    ours = sine_positions((3, 2), 16).numpy()
    column_first = np.concatenate([ours[:, 8:], ours[:, :8]], axis=1)
    highest = [0, 4, 8, 12]  # The frequency 1 is all that both have.
    np.testing.assert_allclose(column_first[:, highest], theirs[:, highest], atol=1e-6)
    assert np.abs(column_first - theirs)[:, [1, 2, 3]].max() > 0.02


def test_learned_positions_are_a_parameter_and_sines_no_part_of_the_state() -> None:
    assert list(Positions((2, 2), 4, "learned").state_dict()) == ["table"]
    sine = Positions((2, 2), 4, "sine")
    assert not sine.state_dict()
    tokens = torch.randn(3, 4, 4)
    assert torch.equal(sine(tokens), tokens + sine_positions((2, 2), 4))


def test_wrong_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one of 'learned', 'sine', not 'sin'; did you mean 'sine'\?"):
        Positions((2, 2), 4, "sin")
    with pytest.raises(ValueError, match="a multiple of 4, not 6"):
        Positions((2, 2), 6, "sine")
