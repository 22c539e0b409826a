"""W1 on one device: the vectorized engine, the serial one and Apple's pfl, in turns, and a roofline beside.

    python benchmarks/gpu.py [--device cuda] [--rounds 30] [--repetitions 3] [--stack 0] [--rivals pfl]

All train the network of benchmarks/workloads.py on the same clients in the same rounds in batches of one
size, each measurement in a process of its own, another one first each time. The time is that of the training
phases, from the choice of clients to the new model, of all rounds but the first, which warms up; on a shared
machine the ratio of the processor's time is the steadier one. First of all the models of both engines are
compared after two rounds, and the kernels counted that the steps of a round launch (the mean of the first
four): small clients wait for launches, and their number is the same on every machine. A GPU records a step
and plays it back in one launch; it is measured without that, too. Where there is no GPU
the same is run on the CPU for a few rounds and the GPU's row says "not measured", as does the column of a
rival that pip cannot install.

A measurement that is done is kept in results/gpu-DEVICE.json and not taken again unless ``--again``; a
command that was broken off goes on where it stopped. Table and picture are in results/gpu-DEVICE.md and .svg.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import environments
import figures
import torch
from harness import Store, Turn, take, turns
from meter import measure
from peers import SCRIPTS, file, surroundings
from phases import experiment, run
from roofline import images_and_steps, launches, peaks, plays, work
from workloads import SEED, WORKLOADS

from fedvision.runs.environment import environment
from fedvision.types import PluginSpec

HERE = Path(__file__).parent
RESULTS = HERE / "results"
W1 = WORKLOADS["w1"]
RIVALS = ("pfl",)
ROUNDS_ON_CPU = 4
LIMITS = Turn("w1", "limits", 0)
"""Where the store keeps what is found once: agreement, kernels, roofline."""
APART = 1e-3
"""How far the engines' models may be apart after two rounds, relative to the largest weight."""
COLUMNS = {
    "serial, s": ("serial_s", "{:.2f}"),
    "vectorized, s": ("vectorized_s", "{:.2f}"),
    "not played back, s": ("launched_s", "{:.2f}"),
    "pfl, s": ("pfl_s", "{:.2f}"),
    "vectorized / serial": ("of_serial", "{:.3f}"),
    "of the processor's time": ("of_processor", "{:.3f}"),
    "vectorized / pfl": ("of_pfl", "{:.3f}"),
    "roofline, s": ("roofline_s", "{:.3f}"),
    "serial at": ("serial_share", "{:.1%}"),
    "vectorized at": ("vectorized_share", "{:.1%}"),
    "launches, serial": ("serial_launches", "{:,.0f}"),
    "launches, vectorized": ("vectorized_launches", "{:,.0f}"),
    "played back": ("played_launches", "{:,.1f}"),
}


def engines(stack: int, device: str = "cpu") -> dict[str, PluginSpec]:
    """Return the engines that are compared, with their arguments; a GPU's steps are played back and not."""
    compared = {
        "serial": PluginSpec(use="serial"),
        "vectorized": PluginSpec(use="vectorized", args={"stack": stack}),
    }
    if device.startswith("cuda"):
        compared["launched"] = PluginSpec(use="vectorized", args={"stack": stack, "record": False})
    return compared


def command(turn: Turn, options: argparse.Namespace) -> list[str]:
    """Return what takes a measurement."""
    numbers = ["--rounds", str(options.rounds), "--device", options.device]
    if turn.rival == "pfl":
        program = [str(environments.python("pfl")), str(SCRIPTS / "apple_pfl.py"), str(file("w1"))]
        return [*program, "--batch", str(W1["batch"]), "--every", str(options.rounds), *numbers]
    engine = json.dumps(vars(engines(options.stack, options.device)[turn.rival]))
    return [sys.executable, str(HERE / "phases.py"), "--engine", engine, *numbers]


def installed(rivals: Sequence[str]) -> list[str]:
    """Return the rivals whose environment is there or can be made, and note which are left out."""
    found = []
    for rival in rivals:
        try:
            environments.python(rival)
            found.append(rival)
        except (subprocess.CalledProcessError, OSError):
            wanted = ", ".join(environments.REQUIREMENTS[rival])
            print(f"{rival} is not measured: pip could not install {wanted}", flush=True)
    return found


def difference(device: str, stack: int) -> float:
    """Return how far the engines' models are apart after two rounds, relative to the largest weight.

    Raises:
        SystemExit: Further than ``APART``; with one sentence.
    """
    # Without TF32: what the two must have in common is what they compute, not how it is rounded.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, fp32_precision="ieee"):
        one, other = (run(experiment(2, device), engine)[1] for engine in engines(stack).values())
    largest = max(float(tensor.abs().max()) for tensor in one.values())
    apart = max(float((one[name] - other[name]).abs().max()) for name in one) / largest
    print(f"after two rounds the engines' models are {apart:.1e} apart (relative to the largest weight)")
    if not apart < APART:
        raise SystemExit(f"the engines disagree: their models must be less than {APART:.0e} apart")
    return apart


def limits(options: argparse.Namespace) -> dict[str, float]:
    """Return what is found once: whether the engines agree, the roofline, the kernels of a round's steps."""
    apart = difference(options.device, options.stack)
    config = experiment(options.rounds, options.device)
    flop, bytes_ = work(config, *images_and_steps(file("w1"), options.rounds, W1["batch"]))
    operations_rate, bytes_rate = peaks(torch.device(options.device))
    if options.device.startswith("cuda"):
        torch.cuda.empty_cache()
    # A GPU holds a whole cohort at once. The rounds are the same wherever kernels are counted.
    counted, both = experiment(ROUNDS_ON_CPU, "cpu"), engines(options.stack or W1["cohort"]).items()
    return {
        "apart": apart,
        "tflop": flop / 1e12,
        "gbyte": bytes_ / 1e9,
        "peak_tflop_s": operations_rate / 1e12,
        "peak_gbyte_s": bytes_rate / 1e9,
        "roofline_s": max(flop / operations_rate, bytes_ / bytes_rate),
        **{f"{name}_launches": launches(counted, engine) for name, engine in both},
        "played_launches": plays(file("w1"), ROUNDS_ON_CPU, W1["batch"]),
    }


def seconds(found: Mapping[str, Any]) -> float:
    """Return the seconds of a measurement's rounds but the first; of a rival, without its evaluation."""
    if "train_s" in found:
        return float(found["train_s"])
    marks = found["marks"]
    return float(marks[-1] - marks[0] - found["evaluation_s"])


def row(found: Mapping[str, Mapping[str, Any]], once: Mapping[str, float]) -> dict[str, float]:
    """Return a repetition's seconds, their ratios and shares of the roofline; what is not there is left out.

    Args:
        found: Measurements by rival.
        once: As ``limits`` returns it; empty where it is not there.
    """
    times = {rival: seconds(one) for rival, one in found.items()}
    made = {f"{rival}_s": time for rival, time in times.items()}
    if "vectorized" in times:
        made |= {f"of_{rival}": times["vectorized"] / time for rival, time in times.items()}
    if {"serial", "vectorized"} <= found.keys():
        made["of_processor"] = found["vectorized"]["processor_s"] / found["serial"]["processor_s"]
    if once:
        made |= {f"{rival}_share": once["roofline_s"] / time for rival, time in times.items()}
    return made | once


def rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return a row for each repetition.

    Raises:
        ValueError: The measurements are not of the same images.
    """
    if len({found["examples"] for found in runs if "examples" in found}) > 1:
        raise ValueError("the measurements trained on unlike numbers of images: take them anew with --again")
    once: dict[str, float] = {}
    by_turn: dict[int, dict[str, Mapping[str, Any]]] = {}
    for found in runs:
        if found["rival"] == LIMITS.rival:
            once = {key: found[key] for key, _ in COLUMNS.values() if key in found}
        else:
            by_turn.setdefault(found["repetition"], {})[found["rival"]] = found
    return [row(found, once) for found in by_turn.values()]


def table(device: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the medians over the repetitions, with their ranges, as a Markdown table."""
    made = rows(runs)
    names = ["device", "n", *COLUMNS]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    if not device.startswith("cuda"):
        lines.append("| GPU |" + " not measured |" * (len(names) - 1))
    cells = [figures.cell(made, key, form) for key, form in COLUMNS.values()]
    cells = ["not measured" if cell == "-" else cell for cell in cells]
    return "\n".join([*lines, f"| {device} | {len(made)} | " + " | ".join(cells) + " |"])


def drawn(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the measurements as the picture wants them."""
    ours = [*engines(0, "cuda")]
    return [
        {**run, "loop_s": seconds(run), "rival": "fedvision-" * (run["rival"] in ours) + run["rival"]}
        for run in runs
        if run["rival"] != LIMITS.rival
    ]


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the measurements depend on."""
    return {
        "environment": environment(options.device),
        "rivals": {name: environments.REQUIREMENTS[name][0] for name in RIVALS},
        "rounds": {"w1": options.rounds},
        "stack": options.stack,
        "seed": SEED,
    }


def parsed_options() -> argparse.Namespace:
    """Return the command line's options, the rounds and the name of the results settled."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, help=f"{W1['rounds']}, or {ROUNDS_ON_CPU} without a GPU")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--stack", type=int, default=0, help="clients at once; 0 chooses")
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--name", help="of the files in results/; gpu-DEVICE where it is left out")
    parser.add_argument("--again", action="store_true", help="take everything anew")
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    options.rounds = options.rounds or (W1["rounds"] if cuda else ROUNDS_ON_CPU)
    if not 3 <= options.rounds <= W1["rounds"]:
        parser.error(f"--rounds must be 3 to {W1['rounds']}: the first warms up and the last evaluates")
    options.name = options.name or f"gpu-{options.device.partition(':')[0]}"
    return options


def main() -> None:
    """Compare, take the measurements that are missing, print and write the table."""
    options = parsed_options()
    # A stop from outside ends a measurement's processes as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(1)
    os.environ["FEDVISION_DATA"] = str(environments.images())
    path = RESULTS / f"{options.name}.json"
    if options.again:
        path.unlink(missing_ok=True)
    store = Store(path, facts(options))
    if not store.find(LIMITS):
        store.add(LIMITS, limits(options))
    plan = turns(
        ["w1"], [*engines(options.stack, options.device), *installed(options.rivals)], options.repetitions
    )
    take(
        store,
        list(plan),
        lambda turn: measure(command(turn, options), surroundings()),
        lambda line: print(line, flush=True),
    )
    made = table(store.facts["environment"]["device"], store.runs)
    notes = sorted({f"{run['rival']}: {note}" for run in store.runs for note in run.get("notes", ())})
    title = f"seconds of {options.rounds} rounds but the first"
    text = "\n\n".join([figures.header(store.facts, store.runs), f"W1, {title}", made, *notes])
    path.with_suffix(".md").write_text(text + "\n")
    figures.draw(drawn(store.runs), ["w1"], path.with_suffix(".svg"), f"{title}, {options.device}")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(str(error)) from error
