"""The vectorized engine against the serial one on one device, with a roofline beside.

    python benchmarks/gpu.py [--device cuda] [--rounds 30] [--stack 0] [--seeds 0 1 2]

Fashion-MNIST, 1000 clients, Dirichlet 0.1, 20 a round, batches of 32, SGD 0.05, the CNN, FedAvg. Both engines
get the same cohorts and mini-batches and take turns; the time is that of the training phase of all rounds
but the first, which warms up. On a shared machine the ratio of the processor's time is the steadier one.
First of all their models are compared after two rounds. Where there is no GPU the same is run on the CPU for
a few rounds and the GPU's row says "not measured".

The roofline is the least time that the arithmetic could take on the device: operations at the rate of a large
matrix product, or bytes (inputs and outputs of every operation, without fusion) at the rate of a large copy,
whichever is longer. Both rates are measured on the spot, TF32 allowed, as it is in cuDNN's convolutions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fedvision import ExperimentConfig, seeding, simulate
from fedvision.federation import Federation
from fedvision.reporting.environment import environment
from fedvision.reporting.progress import Silent
from fedvision.strategies.averaging import FedAvg
from fedvision.training.worker import loop_settings, place
from fedvision.types import PluginSpec, State

RESULTS = Path(__file__).parent / "results"
CLIENTS, FRACTION, BATCH = 1000, 0.02, 32
ROUNDS_ON_CPU = 4


def experiment(seed: int, rounds: int, device: str) -> ExperimentConfig:
    return ExperimentConfig.from_dict(
        {
            "name": "gpu",
            "seed": seed,
            "rounds": rounds,
            "data": {"use": "fashion-mnist"},
            "partition": {"use": "dirichlet", "clients": CLIENTS, "alpha": 0.1},
            "model": {"use": "cnn"},
            "training": {"lr": 0.05, "batch_size": BATCH, "device": device},
            "strategy": {"use": "fedavg", "fraction": FRACTION},
            "evaluation": {"every": rounds},
        }
    )


class Clock(Silent):
    """Keeps the seconds of each round's training phase, and this process's own seconds when it ended."""

    def start(self, rounds: int, first_round: int) -> None:
        self.train: list[float] = []
        self.processor: list[float] = []

    def round_done(self, round: int, record: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        self.train.append(seconds["train"])
        self.processor.append(time.process_time())


def run(config: ExperimentConfig, engine: PluginSpec) -> tuple[float, float, State]:
    """Return seconds of all training phases but the first, processor seconds, and the final state.

    The processor's are those of all rounds but the first, which warms up, and the last, which evaluates.
    """
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(config, engine=engine, out=Path(folder) / "run", progress=clock)
    return sum(clock.train[1:]), clock.processor[-2] - clock.processor[0], result.state


def engines(stack: int) -> list[tuple[str, PluginSpec]]:
    return [
        ("serial", PluginSpec(use="serial")),
        ("vectorized", PluginSpec(use="vectorized", args={"stack": stack})),
    ]


def difference(device: str, stack: int) -> float:
    """Return how far the engines' models are apart after two rounds, relative to the largest weight."""
    config = experiment(0, 2, device)
    one, other = (run(config, engine)[2] for _, engine in engines(stack))
    largest = max(float(tensor.abs().max()) for tensor in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


class Traffic(TorchDispatchMode):
    """Counts the bytes of every operation's inputs and outputs; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def work(config: ExperimentConfig) -> tuple[float, float]:
    """Return operations and bytes of all rounds but the first, counted on steps of the network."""
    federation = Federation.build(config)
    settings = loop_settings(config, 1)
    model = place(federation.model, settings).train()
    parameters = list(model.parameters())

    def step(images: int) -> None:
        pixels = torch.zeros(images, 28, 28, 1, dtype=torch.uint8, device=settings.device)
        x = settings.transform.normalise(pixels)
        labels = torch.zeros(images, dtype=torch.int64, device=settings.device)
        gradients = torch.autograd.grad(F.cross_entropy(model(x), labels), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=0.0)

    def counted(images: int) -> tuple[float, float]:
        with FlopCounterMode(display=False) as flops:
            step(images)
        with Traffic() as traffic:
            step(images)
        return float(flops.get_total_flops()), float(traffic.bytes)

    step(2)
    # Both grow by a constant for each image.
    (few_flop, few_bytes), (flop, bytes_) = counted(1), counted(BATCH)
    images, steps = _images_and_steps(config, federation)
    slopes = ((flop - few_flop) / (BATCH - 1), (bytes_ - few_bytes) / (BATCH - 1))
    starts = (few_flop - slopes[0], few_bytes - slopes[1])
    return starts[0] * steps + slopes[0] * images, starts[1] * steps + slopes[1] * images


def _images_and_steps(config: ExperimentConfig, federation: Federation) -> tuple[int, int]:
    images = steps = 0
    for number in range(2, config.rounds + 1):
        rng = seeding.numpy_stream(config.seed, "select", number)
        for client in FedAvg(fraction=FRACTION).select(number, range(CLIENTS), rng):
            size = len(federation.split.clients[client])
            images, steps = images + size, steps + -(-size // BATCH)
    return images, steps


def peaks(device: torch.device) -> tuple[float, float]:
    """Return operations a second of a matrix product and bytes a second, in and out, of a copy."""
    side, length = (8192, 2**28) if device.type == "cuda" else (1024, 2**26)
    a, b = torch.rand(2, side, side, device=device)
    source = torch.rand(length, device=device)
    target = torch.empty_like(source)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    product = _fastest(device, lambda: torch.mm(a, b))
    torch.set_float32_matmul_precision(precision)
    copy = _fastest(device, lambda: target.copy_(source))
    return 2 * side**3 / product, 2 * source.nbytes / copy


def _fastest(device: torch.device, call: Callable[[], object], repeats: int = 10) -> float:
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found)


def measure(device: str, rounds: int, stack: int, seeds: list[int]) -> list[dict[str, float]]:
    """Return a row for each seed: both engines' seconds, their ratio, and the roofline's."""
    rows = []
    operations, traffic = peaks(torch.device(device))
    for seed in seeds:
        config = experiment(seed, rounds, device)
        turns = engines(stack)
        found = {name: run(config, engine) for name, engine in (turns if seed % 2 == 0 else turns[::-1])}
        (serial, serial_cpu, _), (vectorized, vectorized_cpu, _) = found["serial"], found["vectorized"]
        flop, bytes_ = work(config)
        floor = max(flop / operations, bytes_ / traffic)
        rows.append(
            {
                "seed": seed,
                "serial_s": serial,
                "vectorized_s": vectorized,
                "ratio": vectorized / serial,
                "processor_ratio": vectorized_cpu / serial_cpu,
                "tflop": flop / 1e12,
                "gbyte": bytes_ / 1e9,
                "peak_tflop_s": operations / 1e12,
                "peak_gbyte_s": traffic / 1e9,
                "roofline_s": floor,
                "serial_share": floor / serial,
                "vectorized_share": floor / vectorized,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def table(device: str, rows: list[dict[str, float]]) -> str:
    """Return the medians over the seeds as a Markdown table."""
    names = ["device", "serial, s", "vectorized, s", "vectorized / serial", "of the processor's time"]
    names += ["roofline, s", "serial at", "vectorized at"]
    keys = ["serial_s", "vectorized_s", "ratio", "processor_ratio", "roofline_s"]
    keys += ["serial_share", "vectorized_share"]
    forms = ["{:.2f}"] * 5 + ["{:.1%}"] * 2
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    if not device.startswith("cuda"):
        lines.append("| GPU |" + " not measured |" * (len(names) - 1))
    medians = [statistics.median(row[key] for row in rows) for key in keys]
    cells = [form.format(value) for form, value in zip(forms, medians, strict=True)]
    return "\n".join([*lines, f"| {device} | " + " | ".join(cells) + " |"])


def main() -> None:
    """Compare, measure, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, help=f"30, or {ROUNDS_ON_CPU} without a GPU")
    parser.add_argument("--stack", type=int, default=0, help="clients at once; 0 chooses")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = options.rounds or (30 if options.device.startswith("cuda") else ROUNDS_ON_CPU)
    if rounds < 3:
        parser.error("--rounds must be >= 3: the first warms up and the last evaluates")
    apart = difference(options.device, options.stack)
    print(f"after two rounds the engines' models are {apart:.1e} apart (relative to the largest weight)")
    assert apart < 1e-3, "the engines disagree"
    rows = measure(options.device, rounds, options.stack, options.seeds)
    facts = {
        "environment": environment(options.device),
        "options": {**vars(options), "rounds": rounds},
        "apart": apart,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    kind = options.device.partition(":")[0]
    (RESULTS / f"gpu-{kind}.json").write_text(json.dumps(facts, indent=1))
    print(table(options.device, rows))


if __name__ == "__main__":
    main()
