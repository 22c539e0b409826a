"""Detectors beside each other: what each reaches in one federation, and what it costs.

    python benchmarks/tasks/detectors.py [--jobs 2] [--only NAME] [--table] [--runs FOLDER]

The experiment of detection.py with each of fedvision's detectors on the same backbone, pyramid and learning
rate (0.03), with cross-entropy: binary for each class in FCOS and RetinaNet, of a softmax in the others.
Nothing is tuned, and nobody trains alone or together.

Needs what detection.py needs. Results go to results/tasks/detectors.json.
"""

from __future__ import annotations

from detection import TABLE as DETECTION
from task_tables import Method, TaskTable, run

TABLE = TaskTable(
    name="detectors",
    beside=(),
    experiment=DETECTION.experiment,
    methods={
        name: Method({"model": {"use": use}, "loss": {"use": "cross-entropy"}}, [{"training": {"lr": 0.03}}])
        for name, use in {
            "FCOS": "fcos",
            "RetinaNet": "retinanet",
            "Faster R-CNN": "faster-rcnn",
            "SSDLite": "ssdlite",
        }.items()
    },
    scores=DETECTION.scores,
)

if __name__ == "__main__":
    run(TABLE)
