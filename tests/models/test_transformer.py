"""The encoder against torch's own layers with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedvision.models.transformer import Attention, Block, Transformer

KEYS = {"dim": 8, "depth": 1, "heads": 2}


def reference_of(block: Block) -> nn.TransformerEncoderLayer:
    """Return torch's layer with a block's weights."""
    theirs = nn.TransformerEncoderLayer(
        8, 2, dim_feedforward=16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    own = block.attention
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([own.query.weight, own.key_value.weight]),
            "self_attn.in_proj_bias": torch.cat([own.query.bias, own.key_value.bias]),
            **{f"self_attn.out_proj.{key}": value for key, value in own.out.state_dict().items()},
            **{f"linear1.{key}": value for key, value in block.expand.state_dict().items()},
            **{f"linear2.{key}": value for key, value in block.contract.state_dict().items()},
            **{f"norm1.{key}": value for key, value in block.norm1.state_dict().items()},
            **{f"norm2.{key}": value for key, value in block.norm2.state_dict().items()},
        }
    )
    return theirs


def randomise(module: nn.Module) -> None:
    """Give every parameter, biases and norms too, a value of its own."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2


@pytest.mark.parametrize("training", [True, False])
def test_a_block_is_torchs_encoder_layer(training: bool) -> None:
    block = Block(8, 2, 16, 0.0)
    randomise(block)
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(block.train(training)(x), reference_of(block).train(training)(x))


def test_attention_over_another_sequence_is_torchs() -> None:
    attention = Attention(8, 2)
    randomise(attention)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([attention.query.weight, attention.key_value.weight]),
            "in_proj_bias": torch.cat([attention.query.bias, attention.key_value.bias]),
            "out_proj.weight": attention.out.weight,
            "out_proj.bias": attention.out.bias,
        }
    )
    x, memory = torch.randn(3, 1, 8), torch.randn(3, 7, 8)
    torch.testing.assert_close(attention(x, memory), theirs(x, memory, memory)[0])


def test_order_of_tokens_enters_through_positions_only() -> None:
    model = Transformer(6, (1, 4), **KEYS)  # type: ignore[arg-type]
    tokens = torch.randn(2, 4, 6)
    assert not torch.allclose(model(tokens), model(tokens.flip(1)), atol=1e-4)
    nn.init.zeros_(model.positions.table)
    torch.testing.assert_close(model(tokens), model(tokens.flip(1)))


def test_pools_differ_and_mean_has_no_class_token() -> None:
    model = Transformer(6, (1, 4), pool="mean", **KEYS)  # type: ignore[arg-type]
    assert "class_token" not in model.state_dict()
    tokens = torch.randn(2, 4, 6)
    x = model.norm(model.blocks(model.positions(model.embedding(tokens))))
    torch.testing.assert_close(model(tokens), x.mean(1))


def test_blocks_begin_unlike_each_other() -> None:
    first, second = Transformer(6, (1, 4), dim=8, depth=2, heads=2).blocks
    assert not torch.equal(first.expand.weight, second.expand.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"heads": 3}, "heads = 3 does not divide dim = 8"),
        ({"depth": 0}, "depth must be >= 1, not 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be > 0, not 0.0"),
        ({"dropout": 1.5}, "dropout must be >= 0 and < 1, not 1.5"),
        ({"pool": "max"}, "pool must be one of 'class', 'mean', not 'max'"),
        ({"positional": "none"}, "positional must be one of"),
    ],
)
def test_wrong_keys_are_refused(keys: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Transformer(6, (1, 4), **{**KEYS, **keys})  # type: ignore[arg-type]
