"""The package's method with each of its parts taken out, one at a time.

    python benchmarks/longtail/ablation.py [--jobs 2] [--table]

The experiment of fashion.py with the setting that was chosen there for ``longtail``; nothing is tuned anew.
Needs what fashion.py needs, and its results. Results go to results/longtail/ablation.json, the picture to
results/longtail/ablation.svg.
"""

from __future__ import annotations

import statistics

from fashion import PROTOCOL as FASHION
from harness import Store
from methods import fixed, loss, sampler, strategy
from picture import draw
from protocol import RESULTS, Method, Protocol, Tables, merged, run, thirds

WHOLE = "whole"
TAKEN_OUT: dict[str, Tables] = {
    WHOLE: {},
    "without server momentum": strategy("longtail", momentum=0.0),
    "without the head in closed form": strategy("longtail", share=0.0),
    "with the head in closed form alone": strategy("longtail", share=1.0),
    "without logit adjustment": loss("cross-entropy", prior="local"),
    "adjusted by clients' own counts": loss("logit-adjusted", prior="local"),
    "without weight decay": {"training": {"weight_decay": 0.0}},
    "without mixup": {"transforms": {"mixup": 0.0}},
    "with a balanced sampler in place of logit adjustment": merged(
        loss("cross-entropy", prior="local"), sampler("balanced")
    ),
}


def protocol() -> Protocol:
    """Return the protocol.

    Raises:
        SystemExit: fashion.py has not chosen a setting yet.
    """
    setting = FASHION.chosen(FASHION.store(), "longtail")
    if setting is None:
        raise SystemExit("run benchmarks/longtail/fashion.py --only longtail first: it chooses the setting")
    own = FASHION.methods["longtail"]
    whole = merged(FASHION.experiment, own.tables, own.settings[setting])
    return Protocol(
        name="ablation",
        experiment=whole,
        methods={name: Method(tables, fixed()) for name, tables in TAKEN_OUT.items()},
        tuning={},
        seeds=FASHION.seeds,
    )


def differences(store: Store, own: Protocol) -> str:
    """Return what each variant loses beside the whole method of the same seed, in points, as Markdown."""
    whole = {run["repetition"]: thirds(run)["balanced_accuracy"] for run in own.measured(store, WHOLE)}
    lines = ["| | balanced accuracy less that of the whole | by seed |", "|---|---|---|"]
    for name in own.methods:
        runs = [run for run in own.measured(store, name) if run["repetition"] in whole]
        found = [thirds(run)["balanced_accuracy"] - whole[run["repetition"]] for run in runs]
        if found and name != WHOLE:
            mean, deviation = statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0
            each = ", ".join(f"{value:+.1f}" for value in found)
            lines.append(f"| {name} | {mean:+.1f} ± {deviation:.1f} | {each} |")
    return "\n".join(lines)


if __name__ == "__main__":
    ablation = protocol()
    kept = run(ablation)
    print(differences(kept, ablation))
    draw(kept, ablation, RESULTS / "ablation.svg")
