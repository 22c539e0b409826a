"""Detectors beside each other: what each reaches in one federation, and what it costs.

    python benchmarks/tasks/detectors.py [--jobs 2] [--only NAME] [--table] [--runs FOLDER]

The experiment of detection.py with each of fedvision's detectors on the same backbone, pyramid and learning
rate (0.03), with the loss of its paper: focal for a sigmoid of each class, cross-entropy for those
with a softmax. Nothing is tuned, and nobody trains alone or together.

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
        name: Method({"model": {"use": use}, "loss": {"use": loss}}, [{"training": {"lr": 0.03}}])
        for name, (use, loss) in {
            "FCOS": ("fcos", "sigmoid-focal"),
            "RetinaNet": ("retinanet", "sigmoid-focal"),
            "Faster R-CNN": ("faster-rcnn", "cross-entropy"),
            "SSDLite": ("ssdlite", "cross-entropy"),
        }.items()
    },
    scores=DETECTION.scores,
)

if __name__ == "__main__":
    run(TABLE)
