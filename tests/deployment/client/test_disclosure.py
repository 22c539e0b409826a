"""What a client reports of its class counts, and the noise on them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fedvision.data.image_counts import ImageCounts
from fedvision.deployment.client.disclosure import ShareConfig, reported_counts
from fedvision.errors import ConfigError


def test_counts_are_reported_as_the_owner_allows(tmp_path: Path) -> None:
    memo = tmp_path / "run/counts.json"
    own, nothing = ImageCounts(images=302, counts=(5, 0, 300)), ImageCounts.none(3)
    assert reported_counts(own, ShareConfig(), memo, needed=False) == nothing
    assert reported_counts(own, ShareConfig(counts="plain"), memo, needed=True) == own
    with pytest.raises(ConfigError, match=r"set share\.counts"):
        reported_counts(own, ShareConfig(), memo, needed=True)
    masked = ShareConfig(counts="masked", certificate="client.crt")
    assert reported_counts(own, masked, memo, needed=True) == nothing, "they come in a sum"


def test_noise_is_drawn_once_for_a_run(tmp_path: Path) -> None:
    share = ShareConfig(counts="noisy", epsilon=0.1)
    own = ImageCounts(images=5000, counts=(100,) * 50)
    first = reported_counts(own, share, tmp_path / "a/counts.json", needed=True)
    assert reported_counts(own, share, tmp_path / "a/counts.json", needed=True) == first
    assert reported_counts(own, share, tmp_path / "b/counts.json", needed=True) != first
    # Laplace of scale 10: the mean of |noise| is 10; 50 draws lie within 4 standard errors (1.4 each).
    assert 4 < np.abs(np.array(first.counts) - 100).mean() < 16
    assert first.images == sum(first.counts), "what follows from the noisy counts costs nothing more"


def test_noise_covers_all_that_an_image_of_several_labels_changes(tmp_path: Path) -> None:
    """One image can change 50 counts and the number of images: 51 times the scale 10."""
    share = ShareConfig(counts="noisy", epsilon=0.1)
    own = ImageCounts(images=100, counts=(100,) * 50)
    reported = reported_counts(own, share, tmp_path / "counts.json", needed=True, per_image="one of each")
    # The mean of |noise| is 510; 51 draws lie within 4 standard errors (71 each).
    assert 225 < np.abs(np.array(reported.numbers()) - 100).mean() < 795
    assert reported.images != 100


@pytest.mark.parametrize("epsilon", [1.0, 0.5, 0.1])
def test_noise_does_not_raise_the_sum_over_many_clients(epsilon: float, tmp_path: Path) -> None:
    """100 clients x 200 classes with no image: the mean sum is 0 within 5 standard errors."""
    share = ShareConfig(counts="noisy", epsilon=epsilon)
    own = ImageCounts.none(200)
    reported = [reported_counts(own, share, tmp_path / f"{n}.json", needed=True).counts for n in range(100)]
    error = math.sqrt(2 * 100 / 200) / epsilon
    assert abs(np.sum(reported, axis=0).mean()) < 5 * error
    assert np.min(reported) < 0


def test_noise_is_refused_where_an_image_may_add_any_number(tmp_path: Path) -> None:
    """No noise of a known size hides an image that may hold a thousand boxes."""
    own, memo = ImageCounts(images=2, counts=(900, 1)), tmp_path / "counts.json"
    assert reported_counts(own, ShareConfig(counts="plain"), memo, needed=True, per_image="any number") == own
    with pytest.raises(ConfigError, match=r'may add any number .* set share\.counts to "masked"'):
        reported_counts(
            own, ShareConfig(counts="noisy", epsilon=1.0), memo, needed=False, per_image="any number"
        )
    assert not memo.exists()
