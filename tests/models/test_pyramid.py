"""What the layers on a feature pyramid share; detectors and semantic heads are tested with it."""

from __future__ import annotations

import pytest
import torch

from fedvision.models.pyramid import group_norm


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (32, 4), (12, 1)])
def test_a_norm_has_groups_of_eight_channels_where_these_divide_them(channels: int, groups: int) -> None:
    x = torch.randn(2, channels, 3, 5, generator=torch.Generator().manual_seed(0))
    own = x.reshape(2, groups, -1)
    expected = (own - own.mean(-1, keepdim=True)) / (own.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(group_norm(channels)(x), expected.reshape(x.shape), atol=1e-5)
