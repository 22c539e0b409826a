"""A trained model's predictions beside plain PyTorch: the same network, images, batches and threads.

    python benchmarks/predict.py [--images 10000] [--turns 5] [--threads 1] [--device cpu]

10,000 images of Fashion-MNIST's shape, the CNN after a run of one round. fedvision's side is
``TrainedModel.predict`` on the array and on as many PNG files; plain PyTorch's is the loop that one would
write: the same network, images normalised a batch at a time, softmax and argmax, no gradient. The tuned loop
lays images and weights out as channels_last and uses oneDNN's layout, as fedvision does. Both read files with
Pillow, plain PyTorch in one process. The rivals take turns in one process; the medians and their ratios are
printed, and raw figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import fedvision
from fedvision import ExperimentConfig, simulate
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.models.mkldnn_layout import may_block
from fedvision.runs.environment import environment
from fedvision.trained_model import TrainedModel

RESULTS = Path(__file__).parent / "results"


def pictures(count: int, seed: int = 0) -> Dataset:
    """Return images uint8 [count, 28, 28, 1] of ten classes: noise, as only the time counts."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 28, 28, 1), np.uint8)
    labels = np.arange(count, dtype=np.int64) % 10
    return Dataset(train=ImageSet(images=images, labels=labels), classes=tuple("0123456789"))


def trained(folder: Path) -> Path:
    """Run one round of the CNN and return its run folder."""
    config = {
        "name": "predict",
        "rounds": 1,
        "data": {"use": f"{__name__}:pictures", "count": 640},
        "partition": {"use": "iid", "clients": 2},
    }
    simulate(ExperimentConfig.from_dict(config), out=folder)
    return folder


@torch.no_grad()
def plain(
    network: nn.Module,
    batches: Callable[[int], NDArray[np.uint8]],
    model: TrainedModel,
    images: int,
    tuned: bool,
) -> NDArray[np.int64]:
    """Predict as one writes it; ``batches(start)`` returns the batch that begins at an image."""
    network.eval()
    size, device = model.description.inference.batch_size, model.settings.device
    mean, std = model.description.transforms.mean[0], model.description.transforms.std[0]
    labels, probabilities = [], []
    for start in range(0, images, size):
        x = torch.from_numpy(batches(start)).to(device)
        x = (x.permute(0, 3, 1, 2).float() / 255 - mean) / std
        if tuned:
            x = x.contiguous(memory_format=torch.channels_last)
        with may_block() if tuned else nullcontext():
            logits = network(x)
        labels.append(logits.argmax(1).cpu())
        probabilities.append(logits.softmax(1).cpu())
    torch.cat(probabilities)
    return torch.cat(labels).numpy()


def rivals(model: TrainedModel, images: NDArray[np.uint8], files: Path) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name; each returns the classes."""
    size, count = model.description.inference.batch_size, len(images)
    names = sorted(files.iterdir())

    def from_array(start: int) -> NDArray[np.uint8]:
        return images[start : start + size]

    def from_files(start: int) -> NDArray[np.uint8]:
        opened = [np.asarray(Image.open(name)) for name in names[start : start + size]]
        return np.stack(opened)[..., None]

    tuned = model.network
    as_written = copy.deepcopy(tuned).to(memory_format=torch.contiguous_format)
    return {
        "plain, array": partial(plain, as_written, from_array, model, count, False),
        "tuned, array": partial(plain, tuned, from_array, model, count, True),
        "fedvision, array": lambda: model.predict(images).labels,
        "plain, files": partial(plain, as_written, from_files, model, count, False),
        "fedvision, files": lambda: model.predict(files).labels,
        "fedvision, files, one process": lambda: model.predict(files, workers=1).labels,
    }


def measure(found: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Let the rivals take turns, after one that warms up; return their seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(turns + 1):
        for name, run in found.items():
            begun = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="predictions beside plain PyTorch")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as home:
        model = fedvision.load(trained(Path(home) / "run"), device=options.device)
        images, files = pictures(options.images).train.images, Path(home) / "files"
        files.mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(files / f"{number:06}.png")
        found = rivals(model, images, files)
        labels = {name: run() for name, run in found.items()}
        equal = {name: float((one == labels["fedvision, array"]).mean()) for name, one in labels.items()}
        seconds = measure(found, options.turns)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        kind = name.split(", ")[1]
        ratio = median / medians[f"plain, {kind}"]
        print(f"{name:<30} {median:8.3f} s  {options.images / median:9.0f} images/s  {ratio:5.2f} of plain"
              f"  {equal[name]:.4f} equal classes")  # fmt: skip
    facts = {"environment": environment(options.device), **vars(options)}
    page = {"facts": facts, "seconds": seconds, "equal": equal}
    (RESULTS / f"predict-{options.device}.json").write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
