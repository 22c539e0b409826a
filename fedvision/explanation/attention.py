"""Attention rollout: how much a Transformer's result reads from each token, through all of its blocks.

Plain rollout (Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", arXiv 2005.00928)
multiplies the blocks' attention, half of it the shortcut; it is the same for every class. Weighted by
gradients (Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6), only attention that raises the class's
logit counts.

Shape letters: h heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from fedvision.explanation.probes import Probe
from fedvision.models.transformer import Attention, Transformer


def rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return R = A_L ... A_1 with A = (mean over heads + 1) / 2, rows normed: [T, T].

    Args:
        attentions: Of each block, [h, T, T], rows that add up to 1, the first block's first.
    """
    found = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for one in attentions:
        mean = one.mean(0)
        mixed = (mean + torch.eye(len(mean), device=mean.device)) / 2
        found = mixed / mixed.sum(-1, keepdim=True) @ found
    return found


def weighted_rollout(attentions: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return R [T, T], which begins as 1 and becomes R + A R in each block, A = mean over heads of relu(G A).

    Args:
        attentions: A of each block, [h, T, T].
        gradients: G, of the class's logit by A, likewise.
    """
    found = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for one, gradient in zip(attentions, gradients, strict=True):
        found = found + torch.relu(gradient * one).mean(0) @ found
    return found


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a Transformer's attention is, and which of its tokens are places of the image."""

    blocks: tuple[nn.Module, ...]
    """The layers of attention, in the order of the pass."""
    hook: Callable[[nn.Module, list[torch.Tensor], ExitStack], Iterator[RemovableHandle]]
    """Lets one of them note its attention [1, h, T, T]."""
    prefix: int
    """Tokens before those of places."""
    grid: tuple[int, int]
    """(h, w) of the places."""
    reads_class_token: bool
    """Whether the result is the first token's; otherwise the mean of those of places."""


class RolloutProbe(Probe):
    """Rollout through a Transformer.

    Args:
        layout: The Transformer's.
        weighted: Whether by gradients.
    """

    def __init__(self, layout: Layout, *, weighted: bool = True) -> None:
        super().__init__()
        self.name = "attention-rollout"
        self._layout, self._weighted = layout, weighted

    def plain(self) -> RolloutProbe:
        """Return the same without gradients."""
        return RolloutProbe(self._layout, weighted=False)

    def _hooks(self, stack: ExitStack) -> Iterator[RemovableHandle]:
        for block in self._layout.blocks:
            yield from self._layout.hook(block, self.noted, stack)

    def relevance(self, noted: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the map [h, w]: what the result reads from each place."""
        layout, attentions = self._layout, [one[0].detach().float() for one in noted]
        if self._weighted:
            through = weighted_rollout(attentions, [one[0].float() for one in gradients])
        else:
            through = rollout(attentions)
        places = slice(layout.prefix, layout.prefix + layout.grid[0] * layout.grid[1])
        row = through[0, places] if layout.reads_class_token else through[places, places].mean(0)
        # What is read of every place alike tells none of them apart.
        return (row - row.min()).reshape(layout.grid)


def own_layout(transformer: Transformer, grid: tuple[int, int], prefix: int = 0) -> Layout:
    """Return the layout of one of our Transformers.

    Args:
        transformer: The Transformer.
        grid: (h, w) of the tokens that it reads.
        prefix: Tokens that it reads before those.
    """
    own = transformer.class_token is not None
    return Layout(
        blocks=tuple(
            block.attention for block in transformer.blocks if isinstance(block.attention, Attention)
        ),
        hook=_ours,
        prefix=int(own) + prefix,
        grid=grid,
        reads_class_token=own,
    )


def library_layout(network: nn.Module) -> Layout | None:
    """Return the layout of a vision transformer of torchvision or timm; None of any other network."""
    from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

    if isinstance(network, VisionTransformer):
        side = network.image_size // network.patch_size
        layers = [block for block in network.encoder.layers if isinstance(block, EncoderBlock)]
        return Layout(
            blocks=tuple(block.self_attention for block in layers),
            hook=_multihead,
            prefix=1,
            grid=(side, side),
            reads_class_token=True,
        )
    attention = [getattr(block, "attn", None) for block in getattr(network, "blocks", ())]
    known = [one for one in attention if hasattr(one, "attn_drop") and hasattr(one, "fused_attn")]
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    prefix, pool = getattr(network, "num_prefix_tokens", None), getattr(network, "global_pool", None)
    if not known or len(known) != len(attention) or grid is None or prefix is None or pool is None:
        return None
    return Layout(
        blocks=tuple(one for one in known if one is not None),
        hook=_timm,
        prefix=int(prefix),
        grid=(int(grid[0]), int(grid[1])),
        reads_class_token=pool == "token",
    )


def _ours(layer: nn.Module, noted: list[torch.Tensor], stack: ExitStack) -> Iterator[RemovableHandle]:
    """Compute what our layer returns anew, from weights that can be noted: its own are inside a kernel."""
    assert isinstance(layer, Attention)
    yield layer.register_forward_hook(partial(_explicit, noted))


def _explicit(
    noted: list[torch.Tensor], layer: Attention, args: tuple[Any, ...], output: torch.Tensor
) -> torch.Tensor:
    read, weights = layer.explicit(*args)
    noted.append(weights)
    return read


def _multihead(layer: nn.Module, noted: list[torch.Tensor], stack: ExitStack) -> Iterator[RemovableHandle]:
    """Ask torch's layer for its weights, head by head."""

    def ask(
        layer: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**given, "need_weights": True, "average_attn_weights": False}

    def note(layer: nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        noted.append(output[1])

    yield layer.register_forward_pre_hook(ask, with_kwargs=True)
    yield layer.register_forward_hook(note)


def _timm(layer: Any, noted: list[torch.Tensor], stack: ExitStack) -> Iterator[RemovableHandle]:
    """Let timm's layer take its plain path, where its weights pass a dropout."""
    stack.callback(setattr, layer, "fused_attn", layer.fused_attn)
    layer.fused_attn = False

    def note(dropout: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        noted.append(output)
        return output

    yield layer.attn_drop.register_forward_hook(note)
