"""Exported models beside PyTorch's: the same decisions, int8's cost for the worst class, and latency.

    python benchmarks/export.py [--runs FOLDER] [--rounds N] [--only first long-tail elpv]

Runs of simulations/: first.toml (digits), long-tail.toml (Fashion-MNIST, long tail) and elpv.toml (solar
cells), each with the logit-adjusted loss and the file's first seed, made with this script or found in FOLDER.
Of each, PyTorch's model, ONNX in float32 and ONNX in int8 are measured on all test images: the greatest
difference of a probability, decisions that differ, size, accuracy, the worst class's recall, and processor
time an image on one thread (median of interleaved turns). int8's ranges follow from 500 training images. All
three calibration methods are measured, with the first and the last layer in float32 and in int8. Raw figures
go to benchmarks/results/export.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedvision
from fedvision import ExperimentConfig, registry, simulate
from fedvision.data.decoding.pixels import read
from fedvision.data.shards import Shard
from fedvision.experiment import Experiment
from fedvision.export import checks, comparison, onnx_format
from fedvision.export.facts import facts_of
from fedvision.export.graph import PredictionGraph
from fedvision.export.quantization import METHODS, quantize
from fedvision.sweep import load_sweep
from fedvision.trained_model import TrainedModel

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RUNS = ("first", "long-tail", "elpv")


def experiment(name: str, rounds: int | None) -> ExperimentConfig:
    """Return the first experiment of a file of simulations/ that adjusts logits by global counts."""
    overrides = [f"rounds={rounds}"] if rounds else []
    found = load_sweep(HERE.parent / "simulations" / f"{name}.toml", overrides).experiments
    label = next(one for one in found if "logit-adjusted" in one and "local" not in one)
    return found[label]


def finished(folder: Path, config: ExperimentConfig) -> TrainedModel:
    """Return the model of a run, made where it is not there."""
    if not (folder / "model.json").is_file():
        simulate(config, out=folder)
    return fedvision.load(folder, device="cpu")


def images(model: TrainedModel, config: ExperimentConfig) -> tuple[Shard, Shard]:
    """Return the run's own test images, and the training images that its clients have."""
    built = Experiment.build(config)
    own = np.unique(built.split.used())
    train, _ = model.labelled(built.dataset, part="train")
    return model.labelled(built.dataset, part="test")[0], dataclasses.replace(train, indices=own)


def measure(model: TrainedModel, config: ExperimentConfig) -> dict[str, Any]:
    """Measure one run's model in all versions."""
    test, train = images(model, config)
    graph = PredictionGraph(model, "stretch").eval()
    content = onnx_format.encode(graph, graph.example(), facts_of(model, "stretch"))
    plain = onnx_format.OnnxPredictor(content)
    agreement = checks.compare(model, plain, test.images, indices=test.indices)
    files: dict[str, bytes] = {"onnx": content}
    for method in METHODS:
        for edges in (False, True):
            name = f"int8 {method}{', first and last layer too' if edges else ''}"
            files[name] = quantize(content, train, {}, method=method, edges=edges)
    versions: dict[str, checks.Predictor] = {"pytorch": checks.reference(model)}
    versions |= {name: onnx_format.OnnxPredictor(file) for name, file in files.items()}
    few = test.images[test.indices[:32]]
    took = comparison.latencies(versions, few)
    table: dict[str, Any] = {}
    scored = {name: comparison.measure(one, test, len(model.classes), 64) for name, one in versions.items()}
    for name, found in scored.items():
        same = float((found.decided == scored["pytorch"].decided).mean())
        worst = None if found.worst_class is None else model.classes[found.worst_class]
        before = _recall_of(scored["pytorch"].worst_class, found.decided, test)
        size = (model.path / "model.safetensors").stat().st_size if name == "pytorch" else len(files[name])
        table[name] = {
            "bytes": size,
            "latency_ms": took[name],
            "accuracy": found.accuracy,
            "balanced_accuracy": found.balanced_accuracy,
            "worst_class": worst,
            "worst_recall": found.worst_recall,
            "recall_of_pytorchs_worst_class": before,
            "equal_decisions": same,
        }
    facts = {"images": len(test), "classes": len(model.classes), "rounds": model.description.rounds}
    return {**facts, "agreement": agreement._asdict(), "versions": table}


def _recall_of(label: int | None, decided: Any, test: Shard) -> float:
    own = test.labels[test.indices] == label
    return float((decided[own] == label).mean())


def files_beside_pillow(model: TrainedModel, folder: Path, most: int = 500) -> dict[str, Any]:
    """Compare files decoded by Pillow with the same pixels resized in the graph, at twice and once the size.

    Args:
        model: A model whose run's images were files.
        folder: Where they are.
        most: Files, at most.
    """
    from PIL import Image

    how = model.description.decoding
    assert how is not None
    channels = model.description.image.channels
    graph = PredictionGraph(model, how.fit).eval()
    predict = onnx_format.OnnxPredictor(onnx_format.encode(graph, graph.example(), {}))
    names = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))
    drawn = np.random.default_rng(0).permutation(len(names))[:most]
    levels, differences, decisions = [], [], 0
    for number in drawn:
        with Image.open(names[number]) as opened:
            whole = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
        whole = whole.reshape(*whole.shape[:2], channels)
        small = read(names[number], size=how.size, channels=channels, fit=how.fit, white=how.range).pixels
        pixels = torch.from_numpy(whole.copy()).permute(2, 0, 1)[None].to(torch.float32)
        own = graph.fitted(pixels)[0].permute(1, 2, 0).numpy()
        levels.append(np.abs(own - small).max())
        wanted, found = model.predict(small[None]).probabilities, predict(whole[None], None)
        differences.append(np.abs(wanted - found).max())
        decisions += int(wanted.argmax() != found.argmax())
    return {
        "files": len(drawn),
        "side": list(whole.shape[:2]),
        "network_side": how.size,
        "most_gray_levels": float(max(levels)),
        "median_greatest_gray_levels": float(np.median(levels)),
        "greatest_difference": float(max(differences)),
        "median_difference": float(np.median(differences)),
        "other_decisions": decisions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="exported models beside PyTorch's")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: a temporary one)")
    parser.add_argument("--rounds", type=int, help="rounds of each run (default: its file's)")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    page: dict[str, Any] = {"machine": comparison.machine(), "runs": {}}
    with tempfile.TemporaryDirectory() as home:
        for name in options.only:
            registry.allow_folder(HERE.parent / "simulations")
            config = experiment(name, options.rounds)
            model = finished((options.runs or Path(home)) / name, config)
            page["runs"][name] = measure(model, config)
            if model.description.decoding is not None:
                folder = Path(str(config.data.args["path"])).expanduser()
                page["runs"][name]["files_beside_pillow"] = files_beside_pillow(model, folder)
            _show(name, page["runs"][name])
    (RESULTS / "export.json").write_text(json.dumps(page, indent=1) + "\n")


def _show(name: str, found: dict[str, Any]) -> None:
    agreement = found["agreement"]
    print(f"{name}: {found['images']:,} images, ONNX: greatest difference {agreement['difference']:.2g}, "
          f"{agreement['decisions']} other decisions")  # fmt: skip
    for version, row in found["versions"].items():
        took = row["latency_ms"]
        print(f"  {version:<44} {row['bytes'] / 1000:7.0f} kB  {took['1']:.3f} ms  {took['32']:.3f} ms  "
              f"{row['accuracy']:.4f}  {row['balanced_accuracy']:.4f}  {row['worst_recall']:.4f} "
              f"{row['worst_class']}  {row['equal_decisions']:.4f} equal")  # fmt: skip
    if beside := found.get("files_beside_pillow"):
        print(f"  files: {beside}")


if __name__ == "__main__":
    main()
