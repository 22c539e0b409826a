"""Plug-ins by name: built-ins and others are found the same way; wrong names or keys are refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedvision import registry
from fedvision.errors import DataError, PluginError
from fedvision.types import PluginSpec


def doubled(*, counts: list[int], factor: float = 2.0, note: str = "", power: int = 1) -> list[float]:
    """A plug-in's factory."""
    if factor < 0:
        raise ValueError(f"factor must be >= 0, not {factor}")
    return [count * factor**power for count in counts]


def open_ended(**anything: Any) -> dict[str, Any]:
    return anything


def unreadable() -> None:
    raise DataError("there is no such folder")


HERE = "tests.test_registry" if __name__.startswith("tests.") else __name__


def spec(use: str, **args: Any) -> PluginSpec:
    return PluginSpec(use=use, args=args)


def test_a_plugin_is_built_from_its_path_with_runtime_and_own_keys() -> None:
    assert registry.build("loss", spec(f"{HERE}:doubled", factor=3), counts=[1, 2], round=4) == [3, 6]


@pytest.mark.parametrize(
    ("use", "args", "sentence"),
    [
        ("focall", {}, "there is no such loss; did you mean 'focal'?"),
        ("nowhere:thing", {}, "there is no module 'nowhere'; put nowhere.py beside the experiment"),
        (f"{HERE}:nothing", {}, "has no 'nothing'"),
        (f"{HERE}:HERE", {}, "is no function or class"),
        (f"{HERE}:doubled", {"facto": 1.0}, "it takes no key 'facto'; did you mean 'factor'?"),
        (f"{HERE}:doubled", {"counts": [1]}, "it takes no key 'counts'"),
        (f"{HERE}:doubled", {"factor": "big"}, "factor must be float, not 'big'"),
        (f"{HERE}:doubled", {"power": True}, "power must be int, not True"),
        (f"{HERE}:doubled", {"power": 1.5}, "power must be int, not 1.5"),
        (f"{HERE}:doubled", {"factor": -1.0}, "factor must be >= 0, not -1.0"),
    ],
)
def test_a_wrong_plugin_gets_one_sentence(use: str, args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        registry.build("loss", spec(use, **args), counts=[1])
    assert sentence in str(caught.value)
    assert f"[loss] use = {use!r}" in str(caught.value)


def test_a_maker_looks_up_once_and_builds_often(monkeypatch: pytest.MonkeyPatch) -> None:
    make = registry.maker("optimizer", spec("sgd", nesterov=False), frozenset({"params", "lr"}))
    monkeypatch.setattr(registry, "resolve", None)
    import torch

    built = [make(params=[torch.zeros(1, requires_grad=True)], lr=lr) for lr in (0.1, 0.2)]
    assert [optimizer.param_groups[0]["lr"] for optimizer in built] == [0.1, 0.2]
    with pytest.raises(PluginError, match=r"\[optimizer\] use = 'sgd': lr must be >= 0, not -1"):
        make(params=[torch.zeros(1, requires_grad=True)], lr=-1.0)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(PluginError, match="the key 'counts' is missing"):
        registry.build("loss", spec(f"{HERE}:doubled"))


def test_open_ended_factories_take_any_key_but_no_runtime_one() -> None:
    assert registry.build("model", spec(f"{HERE}:open_ended", depth=3)) == {"depth": 3}
    with pytest.raises(PluginError, match="takes no key 'counts'"):
        registry.build("loss", spec(f"{HERE}:open_ended", counts=[1]), counts=[1])


def test_an_error_of_our_own_passes_unchanged() -> None:
    with pytest.raises(DataError, match="no such folder"):
        registry.build("data", spec(f"{HERE}:unreadable"))


def test_optimisers_of_torch_go_by_any_case() -> None:
    import torch

    assert registry.resolve("optimizer", "AdamW").call is torch.optim.AdamW
    assert registry.resolve("optimizer", "rMSprop").call is torch.optim.RMSprop
    assert "rmsprop" in registry.names("optimizer")


def test_a_folder_opens_its_modules_to_experiments(tmp_path: Path) -> None:
    (tmp_path / "plugin_of_a_folder.py").write_text("def make():\n    return 42\n")
    (tmp_path / "broken_plugin.py").write_text("import not_installed_anywhere\n")
    registry.allow_folder(tmp_path)
    assert registry.build("data", spec("plugin_of_a_folder:make")) == 42
    with pytest.raises(PluginError, match="needs 'not_installed_anywhere', which is not installed"):
        registry.resolve("data", "broken_plugin:make")
