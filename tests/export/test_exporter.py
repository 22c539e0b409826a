"""A run's model in other formats: the same decisions, what a file says of itself, what is not written."""

from __future__ import annotations

import dataclasses
import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import fedvision
from fedvision import simulate
from fedvision.data.sources.arrays import digits
from fedvision.errors import ConfigError, RunError, RunFolderError
from fedvision.export import checks, exporter, onnx_format, torch_format
from fedvision.export.exporter import Calibration, export
from fedvision.export.measurement import Labelled
from fedvision.runs.model_versions import read_versions
from fedvision.trained_model import TrainedModel
from tests.experiments import FEDPER, tiny
from tests.export.models import noise, untrained

WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
images = numpy.load(sys.argv[2])
facts = session.get_modelmeta().custom_metadata_map
(found,) = session.run(["probabilities"], {"images": images})
print(json.dumps([json.loads(facts["classes"])[number] for number in found.argmax(1)]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "run"
    simulate(tiny(rounds=2, model={"use": "cnn", "width": 8, "dense": 16}), out=path)
    return path


@pytest.fixture(scope="module")
def onnx_file(run: Path) -> Path:
    """The run's model as ONNX, in the run folder."""
    return export(fedvision.load(run, device="cpu"), "onnx").file


@pytest.fixture
def model(run: Path, tmp_path: Path) -> TrainedModel:
    """The model in a folder of its own."""
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    return fedvision.load(tmp_path, device="cpu")


def test_an_onnx_file_names_the_same_classes_where_there_is_no_torch(
    model: TrainedModel, onnx_file: Path, tmp_path: Path
) -> None:
    test = digits().test
    assert test is not None
    np.save(tmp_path / "images.npy", test.images)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(onnx_file), str(tmp_path / "images.npy")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wanted = model.predict(test.images)
    assert json.loads(printed) == [model.classes[number] for number in wanted.labels]


def test_an_onnx_file_says_what_it_is(model: TrainedModel, run: Path, onnx_file: Path) -> None:
    import onnx

    found = onnx.load(str(onnx_file))
    facts = {one.key: one.value for one in found.metadata_props}
    assert json.loads(facts["classes"]) == list(model.classes)
    assert json.loads(facts["image"]) == {"height": 8, "width": 8, "channels": 1}
    assert (facts["task"], facts["fit"]) == ("classification", "stretch")
    assert facts["sha256"] == model.description.sha256
    assert facts["fedvision"] == fedvision.__version__
    assert "softmax" in facts["output"]
    content = onnx_file.read_bytes()
    assert str(Path(fedvision.__file__).parent).encode() not in content
    assert b".py" not in content
    assert any(node.op_type == "If" for node in found.graph.node)
    (version,) = read_versions(run)
    assert (version.name, version.file, version.bytes) == ("ONNX", "model.onnx", len(content))


def test_images_of_any_size_are_taken_and_other_channels_refused(onnx_file: Path) -> None:
    predict = onnx_format.OnnxPredictor(onnx_file.read_bytes())
    assert predict(noise(3, (50, 31, 1))).shape == (3, 10)
    assert predict(noise(1, (8, 8, 1))).shape == (1, 10)
    with pytest.raises(Exception, match="invalid dimensions for input: images"):
        predict(noise(1, (8, 8, 3)))


@pytest.mark.slow
def test_exact_images_are_taken_alone(model: TrainedModel) -> None:
    predict = onnx_format.OnnxPredictor(export(model, "onnx", fit="exact").file.read_bytes())
    assert predict(noise(3, (8, 8, 1))).shape == (3, 10)
    with pytest.raises(Exception, match="invalid dimensions for input: images"):
        predict(noise(1, (9, 8, 1)))


@pytest.mark.slow
def test_a_program_of_torch_export_is_the_same(model: TrainedModel) -> None:
    done = export(model, "torch-export")
    extra = {"classes": "", "sha256": ""}
    torch.export.load(done.file, extra_files=extra)
    assert json.loads(extra["classes"]) == list(model.classes)
    predict = torch_format.ProgramPredictor(done.file.read_bytes())
    for count in (1, 5):
        images = noise(count, (8, 8, 1))
        wanted = model.predict(images).probabilities
        np.testing.assert_allclose(predict(images), wanted, atol=1e-6)
    assert predict(noise(2, (30, 7, 1))).shape == (2, 10)
    assert b".py" not in done.file.read_bytes()


def test_safetensors_hold_the_weights_and_the_whole_description(model: TrainedModel) -> None:
    from safetensors import safe_open

    done = export(model, "safetensors")
    with safe_open(done.file, "pt") as opened:
        facts = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    state = model.network.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    assert json.loads(facts["model.json"]) == json.loads((model.path / "model.json").read_text())
    assert json.loads(facts["classes"]) == list(model.classes)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", pytest.param("torch-export", marks=pytest.mark.slow)])
def test_a_file_that_computes_something_else_is_not_written(
    format: Any, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network changes between the export and the check."""
    target = onnx_format if format == "onnx" else torch_format
    before = target.encode

    def damaged(*args: Any) -> bytes:
        content = before(*args)
        with torch.no_grad():
            model.network.head.bias[3] += 0.01  # type: ignore[index, union-attr, operator]
        return content

    monkeypatch.setattr(target, "encode", damaged)
    with pytest.raises(RunError, match=r"not written: on 48 images .* differ from PyTorch's by up to 0\.00"):
        export(model, format)
    assert {path.name for path in model.path.iterdir()} == {"model.json", "model.safetensors"}


@pytest.mark.parametrize("found", [checks.Agreement(9, 2e-5, 0), checks.Agreement(9, 1e-7, 1)])
def test_a_probability_or_a_decision_alone_is_enough_to_refuse(found: checks.Agreement) -> None:
    with pytest.raises(RunError, match=r"file: not written: on 9 images"):
        checks.require_agreement(found, "file")
    checks.require_agreement(checks.Agreement(9, 9e-6, 0), "file")


def test_numbers_that_are_none_differ(model: TrainedModel) -> None:
    found = checks.compare(model, lambda x, _: np.full((len(x), 10), np.nan, np.float32), noise(4, (8, 8, 1)))
    assert (found.images, found.difference) == (4, np.inf)


def test_a_decision_by_less_than_the_tolerance_may_fall_otherwise() -> None:
    wanted = np.array([[0.5, 0.5 - 1e-6], [0.6, 0.4]], np.float32)
    assert checks._others(wanted, wanted[:, ::-1], False, 1e-5) == 1
    assert checks._others(wanted[:1], wanted[:1, ::-1], False, 1e-5) == 0
    assert checks._others(np.array([[0.5, 0.9]]), np.array([[0.5 - 1e-6, 0.2]]), True, 1e-5) == 1


@pytest.mark.slow
def test_a_run_in_bfloat16_is_written_in_float32_with_a_notice(tmp_path: Path) -> None:
    model = untrained({"use": "cnn", "width": 4, "dense": 8})
    inference = dataclasses.replace(model.description.inference, precision="bfloat16")
    model = dataclasses.replace(
        model,
        path=tmp_path,
        description=dataclasses.replace(model.description, inference=inference),
        settings=dataclasses.replace(model.settings, precision="bfloat16"),
    )
    done = export(model, "onnx", fit="crop")
    assert done.notices == ("the file computes in float32, the run measured in bfloat16",)
    assert done.agreement is not None
    assert done.agreement.difference < 1e-6


def test_what_stayed_on_clients_is_not_exported(tmp_path: Path) -> None:
    simulate(tiny(rounds=1, evaluation={"holdout": 0.2}, **FEDPER), out=tmp_path / "run")
    with pytest.raises(RunFolderError, match="were trained and stayed on the clients"):
        export(fedvision.load(tmp_path / "run", device="cpu"), "onnx")


@pytest.mark.slow
def test_a_network_that_cannot_be_exported_is_refused_in_one_sentence(model: TrainedModel) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)).repeat(1, 10) * (2.0 if float(x.sum()) > 0 else 1.0)

    odd = dataclasses.replace(model, network=Odd())
    with pytest.raises(ConfigError, match="the network cannot be written as ONNX: PyTorch's exporter says"):
        export(odd, "onnx")


@pytest.mark.slow
def test_int8_is_smaller_and_nearly_as_right_and_both_are_measured(model: TrainedModel) -> None:
    data = digits()
    calibration = Calibration(model.labelled(data, part="train")[0], 200)
    measured = Labelled(model.labelled(data)[0], "test images of digits")
    done = export(model, "onnx", calibration=calibration, data=measured)
    assert done.original is not None
    first, second = done.original, done.version
    assert (first.name, second.name) == ("PyTorch, as trained", "ONNX, int8")
    assert first.accuracy == model.evaluate(data).scores["accuracy"]
    assert first.accuracy is not None
    assert second.accuracy is not None
    assert abs(first.accuracy - second.accuracy) <= 0.03
    assert (first.images, second.images) == (355, 355)
    assert all(one.latency_ms[batch] > 0 for one in (first, second) for batch in ("1", "32"))
    assert first.worst_recall == min(model.evaluate(data).by_class["recall"])
    assert read_versions(model.path) == [first, second]
    float32 = export(model, "onnx")
    assert second.bytes is not None
    assert float32.version.bytes is not None
    assert second.bytes < float32.version.bytes
    again = export(model, "onnx", calibration=calibration, data=measured)
    assert [one.name for one in read_versions(model.path)] == [first.name, "ONNX", second.name]
    assert again.file.read_bytes() == done.file.read_bytes()
    with pytest.raises(ConfigError, match="--quantize int8 is for --format onnx, not torch-export"):
        export(model, "torch-export", calibration=calibration)


class Grays(NamedTuple):
    """Means of images' gray values, and of what is read beside them, in a graph's place."""

    fit: str
    size: tuple[int, int] = (8, 6)
    image_channels: int = 3
    further: int = 2

    def __call__(self, images: torch.Tensor, further: torch.Tensor) -> torch.Tensor:
        """Return [N, 1]; what is read beside the images must be absent."""
        assert further.isnan().all()
        return images.float().mean((1, 2, 3))[:, None] / 255


def test_a_file_that_resizes_otherwise_is_not_written() -> None:
    sizes: list[tuple[int, ...]] = []

    def predict(images: Any, further: Any, *, off: float = 0.0) -> Any:
        sizes.append(images.shape)
        assert further.shape == (2, 2)
        assert np.isnan(further).all()
        return images.mean((1, 2, 3))[:, None] / 255 + off

    graph: Any = Grays("stretch")
    checks.require_other_sizes(graph, predict, "file")
    assert sizes == [(2, 13, 6, 3), (2, 4, 13, 3), (2, 1, 1, 3)]
    with pytest.raises(RunError, match=r"file: not written: of images of 13 x 6 .* with --fit exact"):
        checks.require_other_sizes(graph, lambda *given: predict(*given, off=0.06), "file")
    exact: Any = Grays("exact")
    checks.require_other_sizes(exact, lambda *given: predict(*given, off=1.0), "file")


def test_a_file_that_cannot_be_written_is_a_sentence(
    model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporter, "replace_file", full)
    with pytest.raises(RunError, match=r"x.safetensors: it cannot be written: No space left on device; name"):
        export(model, "safetensors", tmp_path / "x.safetensors")
