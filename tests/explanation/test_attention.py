"""Rollout by hand; that attention is noted as the networks compute it, and computes what they return."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from fedvision.explanation.attention import Layout, RolloutProbe, library_layout, rollout, weighted_rollout
from fedvision.explanation.explainer import Explainer
from fedvision.explanation.plan import plan
from fedvision.models.transformer import Attention
from tests.explanation.networks import built, picture

FIRST = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
SECOND = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])


def test_plain_rollout_multiplies_blocks_half_of_which_are_shortcuts() -> None:
    """Means of heads [[.5, .5], [0, 1]], so A_1 = [[.75, .25], [0, 1]] and A_2 = [[.75, .25], [.5, .5]]."""
    expected = torch.tensor([[0.75 * 0.75, 0.75 * 0.25 + 0.25], [0.5 * 0.75, 0.5 * 0.25 + 0.5]])
    torch.testing.assert_close(rollout([FIRST, SECOND]), expected)


def test_weighted_rollout_counts_what_raises_the_logit() -> None:
    """G A of the first block: [[0, 2], [0, -1]] and [[4, 0], [0, 0]], cut at 0, mean [[2, 1], [0, 0]]."""
    first = torch.tensor([[[9.0, 2.0], [9.0, -1.0]], [[4.0, 9.0], [9.0, 0.0]]])
    second = torch.tensor([[[-1.0, 2.0], [1.0, 7.0]]])
    one = torch.eye(2) + torch.tensor([[2.0, 1.0], [0.0, 0.0]])
    two = one + torch.tensor([[0.0, 1.0], [1.0, 0.0]]) @ one
    torch.testing.assert_close(weighted_rollout([FIRST, SECOND], [first, second]), two)


def test_explicit_attention_is_what_the_kernel_computes() -> None:
    torch.manual_seed(0)
    layer = Attention(8, 2)
    x, memory = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    mask = torch.tensor([[True] * 5, [True, False, True, False, True], [True] + [False] * 4])
    for there in (None, mask):
        read, weights = layer.explicit(x, memory, there)
        torch.testing.assert_close(read, layer(x, memory, there))
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 4))
    assert weights[2, :, :, 1:].abs().max() == 0


TRANSFORMERS = {
    "ours": {"use": "vit", "patch": 8, "dim": 8, "depth": 2, "heads": 2},
    "ours, mean": {"use": "vit", "patch": 8, "dim": 8, "depth": 2, "heads": 2, "pool": "mean"},
    "timm": {"use": "timm/vit_tiny_patch16_224", "patch_size": 8, "depth": 2, "embed_dim": 8, "num_heads": 2},
    "timm, mean": {
        "use": "timm/vit_tiny_patch16_224",
        **{"patch_size": 8, "depth": 2, "embed_dim": 8, "num_heads": 2},
        **{"global_pool": "avg", "reg_tokens": 2},
    },
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_attention_of_each_block_is_noted_and_logits_stay(name: str) -> None:
    network = built(TRANSFORMERS[name], (3, 32, 32))
    network.network.eval()
    batch = network.inputs(picture((3, 32, 32)), None)
    probe = plan(network.network, batch.repeat(2, 1, 1, 1), "attention-rollout").probes[""]
    expected = network.logits(batch)
    with probe.attached():
        found = network.logits(batch)
    torch.testing.assert_close(found, expected)
    assert len(probe.noted) == 2
    tokens = {"ours, mean": 16, "timm, mean": 19}.get(name, 17)
    for attention in probe.noted:
        assert attention.shape == (1, 2, tokens, tokens)
        torch.testing.assert_close(attention.sum(-1), torch.ones(1, 2, tokens))
    assert probe.map([torch.ones_like(one) for one in probe.noted], 1).shape == (4, 4)


def test_torchvisions_attention_is_noted_head_by_head() -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8).eval()
    layout = library_layout(network)
    assert layout is not None
    assert (layout.prefix, layout.grid, layout.reads_class_token) == (1, (2, 2), True)
    probe, images = RolloutProbe(layout), torch.randn(1, 3, 16, 16, requires_grad=True)
    expected = network(images)
    with probe.attached():
        torch.testing.assert_close(network(images), expected)
    assert [tuple(one.shape) for one in probe.noted] == [(1, 2, 5, 5)] * 2


def test_a_class_token_and_a_mean_read_rows_of_their_own() -> None:
    def layout(prefix: int, own: bool) -> Layout:
        return Layout(blocks=(), hook=_none, prefix=prefix, grid=(1, 2), reads_class_token=own)

    weights = torch.tensor([[[[0.2, 0.5, 0.3], [0.0, 0.1, 0.9], [0.0, 0.3, 0.7]]]])
    gradient = torch.ones_like(weights)
    # Row 0, places 1 and 2: 0.5 and 0.3; the least is 0.
    torch.testing.assert_close(
        RolloutProbe(layout(1, True)).relevance([weights], [gradient]), torch.tensor([[0.2, 0.0]])
    )
    # Rows 1 and 2 with the shortcut's ones: means (1.1 + 0.3) / 2 and (0.9 + 1.7) / 2.
    torch.testing.assert_close(
        RolloutProbe(layout(1, False)).relevance([weights], [gradient]), torch.tensor([[0.0, 0.6]])
    )


def test_without_gradients_behind_expanded_features_plain_rollout_is_left() -> None:
    expand = {"use": "random-relu", "features": 20}
    table = {**TRANSFORMERS["ours"], "expand": expand, "train": "head"}
    found = Explainer(built(table, (3, 32, 32))).explain(picture((3, 32, 32)))
    assert found.method == "attention-rollout"
    assert found.map.max() == 1


def _none(block: object, noted: list[torch.Tensor], stack: ExitStack) -> None:
    """No block is hooked."""
