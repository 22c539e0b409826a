"""Further tokens: hand-computed ones, absent ones that nobody reads, and networks that read them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedvision.config import ModelConfig
from fedvision.errors import ConfigError, PluginError
from fedvision.inputs import GRAMS, InputConfig, Inputs, for_trial, places, width
from fedvision.models.build import build_model
from fedvision.models.input_tokens import CategoryToken, InputTokens, NumberToken, TextTokens
from fedvision.models.transformer import Transformer
from fedvision.tasks.classification import Classification

NAN = math.nan
INPUTS = {
    "age": InputConfig(kind="number"),
    "cell": InputConfig(kind="category", categories=("mono", "poly")),
    "note": InputConfig(kind="text", words=3, buckets=50),
    "vector": InputConfig(kind="vector", columns=("a", "b")),
}
SMALL: dict[str, Any] = {"dim": 8, "depth": 2, "heads": 2}


def network(extractor: str = "cnn", inputs: dict[str, InputConfig] = INPUTS, **keys: Any) -> torch.nn.Module:
    width = {} if extractor == "none" else {"width": 4}
    return build_model(
        ModelConfig(use="fusion", args={"extractor": extractor, **width, **SMALL, **keys}, inputs=inputs),
        task=Classification(),
        num_classes=3,
        in_channels=1,
        image_size=(8, 8),
        seed=0,
    ).eval()


def rows(count: int, seed: int = 0) -> torch.Tensor:
    """Return rows in which everything is present, two words of the text."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, width(INPUTS), generator=generator)
    for name, one, place in places(INPUTS):
        if one.kind == "category":
            found[:, place] = torch.randint(2, (count, 1), generator=generator).float()
        if one.kind == "text":
            words = torch.full((count, 3, GRAMS), NAN)
            words[:, :2, :4] = torch.randint(50, (count, 2, 4), generator=generator).float()
            found[:, place] = words.flatten(1)
        assert name
    return found


def place_of(name: str) -> slice:
    return next(place for own, _, place in places(INPUTS) if own == name)


def test_a_number_is_a_vector_times_its_value_and_an_offset() -> None:
    token = NumberToken(1, 4)
    with torch.no_grad():
        token.project.bias.copy_(torch.arange(4.0))
    tokens, present = token(torch.tensor([[2.0], [NAN]]))
    torch.testing.assert_close(tokens[0, 0], 2 * token.project.weight[:, 0] + torch.arange(4.0))
    assert not tokens[1].any()
    assert present.tolist() == [[True], [False]]


def test_a_category_has_a_vector_of_its_own() -> None:
    token = CategoryToken(3, 4)
    tokens, present = token(torch.tensor([[2.0], [NAN], [0.0]]))
    torch.testing.assert_close(tokens[[0, 2], 0], token.vectors.weight[[2, 0]])
    assert present.tolist() == [[True], [False], [True]]


def test_a_word_is_the_mean_of_its_n_grams_vectors() -> None:
    token = TextTokens(2, 10, 4)
    grams = torch.full((1, 2, GRAMS), NAN)
    grams[0, 0, :3] = torch.tensor([1.0, 7.0, 7.0])
    tokens, present = token(grams.flatten(1))
    mean = (token.vectors.weight[1] + 2 * token.vectors.weight[7]) / 3
    torch.testing.assert_close(tokens[0, 0], token.project(mean) + token.order[0])
    assert present.tolist() == [[True, False]]
    assert not tokens[0, 1].any()


def test_the_tokens_are_in_the_order_of_the_names() -> None:
    tokens, present = InputTokens(INPUTS, 8)(rows(2))
    assert tokens.shape == (2, 1 + 1 + 3 + 1, 8)
    assert present.tolist() == [[True, True, True, True, False, True]] * 2


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_absent_tokens_are_read_by_none(pool: str) -> None:
    """A sequence with absent tokens has the vector of the sequence without them."""
    transformer = Transformer(5, (2, 2), **SMALL, pool=pool).eval()
    own, tokens = torch.randn(3, 4, 5), torch.randn(3, 2, 8)
    reader = InputTokens({"a": InputConfig(kind="number")}, 8)
    further = reader(torch.randn(3, 1))
    padded = type(further)(
        torch.cat([further.tokens, tokens], 1),
        torch.cat([further.present, further.present.new_zeros(3, 2)], 1),
    )
    torch.testing.assert_close(transformer(own, padded), transformer(own, further))
    none = type(further)(tokens, further.present.new_zeros(3, 2))
    torch.testing.assert_close(transformer(own, none), transformer(own))
    assert not torch.allclose(transformer(own, further), transformer(own))


@pytest.mark.parametrize("extractor", ["cnn", "none"])
@pytest.mark.parametrize("name", INPUTS)
def test_a_network_reads_every_input_and_no_absent_one(extractor: str, name: str) -> None:
    model, images, full = network(extractor), torch.randn(2, 1, 8, 8), rows(2)
    other, absent = full.clone(), full.clone()
    other[:, place_of(name)] = rows(2, seed=1)[:, place_of(name)]
    if name == "cell":
        other[:, place_of(name)] = 1 - full[:, place_of(name)]
    absent[:, place_of(name)] = NAN
    logits = [model(Inputs(images, some)) for some in (full, other, absent)]
    assert all(one.isfinite().all() for one in logits)
    assert not torch.allclose(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


def test_a_network_with_all_inputs_absent_is_the_one_without_them() -> None:
    plain, images = network(inputs={}), torch.randn(2, 1, 8, 8)
    model = network()
    own = plain.state_dict()
    model.load_state_dict(own, strict=False)
    nothing = Inputs(images, torch.full((2, width(INPUTS)), NAN))
    torch.testing.assert_close(model(nothing), plain(images))


def test_no_pixel_is_read_without_an_extractor() -> None:
    model, full = network("none"), rows(2)
    one, other = (model(Inputs(torch.randn(2, 1, 8, 8), full)) for _ in range(2))
    assert torch.equal(one, other)


def test_every_tensor_learns_where_everything_is_present() -> None:
    model = network().train()
    model(Inputs(torch.randn(4, 1, 8, 8), rows(4))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("extractor", ["cnn", "none"])
def test_gradients_are_no_larger_where_everything_is_absent(extractor: str) -> None:
    """A class token of zeros that reads itself alone has gradients of more than 100,000."""
    model = network(extractor).train()
    batch = Inputs(torch.randn(2, 1, 8, 8), torch.full((2, width(INPUTS)), NAN))
    model(batch).sum().backward()
    largest = [float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None]
    assert max(largest) < 300


def test_inputs_that_are_missing_or_that_nobody_reads_are_errors() -> None:
    images = torch.randn(2, 1, 8, 8)
    with pytest.raises(ConfigError, match=r"reads 100 numbers of .*and none came with them"):
        network()(images)
    with pytest.raises(ConfigError, match=r"reads no numbers of .*and 1 came with them"):
        network(inputs={})(Inputs(images, torch.zeros(2, 1)))
    with pytest.raises(PluginError, match=r"reads \[model\.inputs\] alone, and there are none"):
        network("none", inputs={})
    with pytest.raises(ConfigError, match="'cnn': it reads pixels alone and not"):
        build_model(
            ModelConfig(use="cnn", inputs=INPUTS),
            task=Classification(),
            num_classes=3,
            in_channels=1,
            image_size=(8, 8),
            seed=0,
        )


def test_a_batch_is_cut_with_its_rows() -> None:
    batch = for_trial(torch.randn(5, 1, 8, 8), INPUTS)
    assert isinstance(batch, Inputs)
    assert len(batch) == 5
    assert batch.shape == (5, 1, 8, 8)
    for parts in (list(batch.split([2, 3])), batch.tensor_split(2)):
        torch.testing.assert_close(torch.cat([p.images for p in parts]), batch.images)
        torch.testing.assert_close(torch.cat([p.further for p in parts]), batch.further, equal_nan=True)
    torch.testing.assert_close(batch[1:3].further, batch.further[1:3], equal_nan=True)
    assert torch.equal(batch[1:3].images, batch.images[1:3])
    assert torch.equal(batch.flip(-1).images, batch.images.flip(-1))
