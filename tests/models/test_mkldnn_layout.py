"""oneDNN's layout inside a model: the same function and gradients, and only where a loop selects it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.models import mkldnn_layout
from fedvision.models.cnn import cnn
from fedvision.models.fusion import fusion
from fedvision.models.mkldnn_layout import (
    LEAST,
    SubsampledConv2d,
    avoid_narrow_strides,
    blocked,
    may_block,
    plain,
)
from fedvision.training.evaluate import predict
from tests.training.client_cases import CLASSES, Cohort, assert_equal, network, settings


@pytest.fixture
def gaining(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mkldnn_layout, "gains", lambda: True)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each convolution got a tensor in oneDNN's layout."""
    kinds: list[bool] = []
    real = F.conv2d

    def spy(x: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        kinds.append(x.is_mkldnn)
        return real(x, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "conv2d", spy)
    yield kinds
    assert kinds, "no convolution was called"


def graded(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    logits = model(images)
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.usefixtures("gaining")
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (28, 28)), (3, (32, 32)), (3, (19, 40)), (1, (12, 12)), (2, (33, 18))]
)
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout_changes_no_function_and_no_gradient(
    channels: int, size: tuple[int, int], channels_last: bool, seen: list[bool]
) -> None:
    model = cnn(num_classes=5, in_channels=channels, image_size=size)
    images = torch.randn(1 + LEAST // (size[0] * size[1]), channels, *size)
    # Flat areas, as real images have them: several largest values in one window.
    images[:, :, : size[0] // 2] = 0.25
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(memory_format=torch.channels_last)
    expected = graded(model, images)
    assert not any(seen)
    with may_block():
        found = graded(model, images)
    assert seen[-3:] == [True] * 3
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


@pytest.mark.usefixtures("gaining")
def test_a_fusion_reads_patches_of_the_images_beside_a_blocked_extractor(seen: list[bool]) -> None:
    model = fusion(num_classes=3, in_channels=1, image_size=(28, 28), patch=7, join="gated", dim=16)
    images = torch.randn(12, 1, 28, 28)
    expected = graded(model, images)
    with may_block():
        found = graded(model, images)
    assert seen == [False] * 3 + [True] * 3
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("gaining")
@pytest.mark.parametrize("use", ["cnn", "fusion"])
def test_the_fallback_to_the_loop_has_a_notice_and_equals_the_stack(
    use: str, monkeypatch: pytest.MonkeyPatch, seen: list[bool]
) -> None:
    monkeypatch.setattr(mkldnn_layout, "LEAST", 1)
    cohort = Cohort(model=network(use, double=False), settings=settings(epochs=2, momentum=0.9))
    seen.clear()
    one_by_one = cohort.one_by_one()
    assert all(seen)
    assert_equal(cohort.at_once(), one_by_one, tolerance=1e-4)


@pytest.mark.usefixtures("gaining")
@pytest.mark.parametrize(("precision", "expected"), [("float32", True), ("bfloat16", False)])
def test_measurement_uses_it_where_the_precision_has_it(
    precision: str, expected: bool, monkeypatch: pytest.MonkeyPatch, seen: list[bool]
) -> None:
    monkeypatch.setattr(mkldnn_layout, "LEAST", 1)
    cohort = Cohort(model=network(double=False), settings=settings(precision=precision))
    seen.clear()
    forward = cohort.settings.forward
    predict(cohort.model, cohort.shards[0], forward, batch_size=4, num_classes=CLASSES)
    assert set(seen) == {expected}


@pytest.mark.usefixtures("gaining")
def test_a_tensor_is_unchanged_without_setting_or_gain() -> None:
    enough = torch.zeros(LEAST // 49, 1, 7, 7)
    assert blocked(enough) is enough
    with may_block():
        assert blocked(enough).is_mkldnn
        for other in (enough[1:], enough.double(), enough.bfloat16(), enough.to("meta")):
            assert blocked(other) is other
    assert blocked(enough) is enough
    assert plain(enough) is enough


def test_an_error_inside_ends_the_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mkldnn_layout, "gains", lambda: True)
    enough = torch.zeros(LEAST, 1, 1, 1)
    with pytest.raises(ZeroDivisionError), may_block():
        raise ZeroDivisionError
    assert blocked(enough) is enough


@pytest.mark.parametrize(
    ("available", "capability", "expected"),
    [(True, "AVX512", True), (True, "AVX2", False), (True, "DEFAULT", False), (False, "AVX512", False)],
)
def test_only_processors_on_which_it_was_measured_to_gain(
    monkeypatch: pytest.MonkeyPatch, available: bool, capability: str, expected: bool
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert mkldnn_layout.gains() is expected


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_narrow_strides(memory_format: torch.memory_format) -> None:
    """Values and gradients are those of the stride, in double precision, where oneDNN is not used."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 1, 2), nn.Conv2d(8, 16, 1, (1, 2)), nn.Conv2d(16, 8, 3, 2)).double()
    wanted = copy.deepcopy(model)
    avoid_narrow_strides(model)
    assert [type(layer) for layer in model] == [SubsampledConv2d, nn.Conv2d, nn.Conv2d]
    assert model.state_dict().keys() == wanted.state_dict().keys()
    x = torch.randn(5, 4, 17, 16, dtype=torch.double).to(memory_format=memory_format)
    found, expected = model(x), wanted(x)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for mine, its in zip(model.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)


@pytest.mark.long
def test_a_narrow_network_trains_without_overrunning_memory() -> None:
    """A child process, as the fault ends its process; glibc checks every block it frees."""
    script = (
        "import torch\n"
        "from fedvision.config import ModelConfig\n"
        "from fedvision.models.build import build_model\n"
        "config = ModelConfig(use='resnet8', args={'width': 4})\n"
        "from fedvision.tasks.classification import Classification\n"
        "shape = {'num_classes': 4, 'in_channels': 1, 'image_size': (8, 8)}\n"
        "model = build_model(config, task=Classification(), seed=0, **shape)\n"
        "model = model.to(memory_format=torch.channels_last)\n"
        "for _ in range(100):\n"
        "    x = torch.randn(5, 1, 8, 8).to(memory_format=torch.channels_last)\n"
        "    model(x).square().sum().backward()\n"
    )
    environment = {**os.environ, "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "5"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
