"""Which tensors are shared, personal and frozen, and that patterns which cannot be meant are refused."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fedvision.config import ModelConfig
from fedvision.errors import ConfigError
from fedvision.models.parameter_groups import ParameterGroups
from tests.experiments import tiny


class Net(nn.Module):
    """Two layers, a batch norm between them, and a layer tied to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)
        self.again = self.body


STATISTICS = ("norm.running_mean", "norm.running_var")
NORM = ("norm.weight", "norm.bias", *STATISTICS)
HEAD = ("head.weight", "head.bias")


def groups(**keys: Any) -> ParameterGroups:
    return ParameterGroups.of(Net(), ModelConfig(**keys))


def test_everything_is_shared_by_default() -> None:
    assert groups() == ParameterGroups(("body.weight", *NORM, *HEAD), (), ())


def test_patterns_sort_tensors_in_the_models_order() -> None:
    found = groups(personal=("head.*", "norm.running_*"), frozen=("b?dy.*",))
    assert found == ParameterGroups(("norm.weight", "norm.bias"), (*STATISTICS, *HEAD), ("body.weight",))


def test_patterns_stand_beside_what_shared_keeps_on_clients() -> None:
    found = groups(personal=("head.bias",), shared="no-batch-norm-statistics")
    assert found.shared == ("body.weight", "norm.weight", "norm.bias", "head.weight")
    assert found.personal == (*STATISTICS, "head.bias")
    assert groups(frozen=("norm.*",), shared="trainable") == ParameterGroups(("body.weight", *HEAD), (), NORM)


def test_a_tied_tensor_is_found_under_any_of_its_names() -> None:
    assert groups(personal=("again.*",)).personal == ("body.weight",)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"personal": ("heads.*",)}, r"model\.personal: 'heads\.\*' matches no tensor .*mean 'head\.\*'\?"),
        (
            {"frozen": ("backbone.*",)},
            r"model\.frozen: 'backbone\.\*' matches no .*known: again\.\*, body\.\*",
        ),
        ({"personal": ("norm.num_batches_tracked",)}, r"'norm\.num_batches_tracked' matches no tensor"),
        ({"personal": ("head.*",), "frozen": ("*.bias",)}, r"both match 'head\.bias'"),
        ({"personal": ("again.*",), "frozen": ("body.*",)}, r"both match 'body\.weight'"),
        ({"frozen": ("*",)}, r"model\.frozen = \['\*'\]: no tensor is left to train"),
        ({"personal": ("*",)}, r"model\.personal = \['\*'\]: no tensor is left to share"),
        (
            {"personal": ("head.*",), "frozen": ("body.*", "norm.*")},
            r"model\.personal = \['head\.\*'\] and model\.frozen = .*: no tensor is left to share",
        ),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        groups(**keys)


def test_a_network_that_trains_nothing_is_refused_by_its_own_name() -> None:
    with pytest.raises(ConfigError, match=r"\[model\] use = 'cnn' with shared = 'all': no tensor is left to"):
        ParameterGroups.of(nn.Linear(2, 2).requires_grad_(False), ModelConfig())


def test_patterns_come_from_toml_as_lists() -> None:
    config = tiny(model={"use": "cnn", "personal": ["head.*"], "frozen": ["backbone.dense.*"]})
    assert (config.model.personal, config.model.frozen) == (("head.*",), ("backbone.dense.*",))
    assert type(config).from_toml(config.to_toml()) == config
