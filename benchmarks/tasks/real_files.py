"""Detection and segmentation on real files: tree crowns from the air, regions of a brain.

    python benchmarks/tasks/real_files.py [--jobs 2] [--only NAME] [--table] [--runs FOLDER]

Trees: four aerial photographs with the boxes of 951 crowns as VOC's XML files (914 are a tree, 28 a dead and
9 a living one), cut into tiles of 200 pixels that are shown at 128; one photograph is measured on, each other
one is a client. FCOS on a ResNet-8 in 40 rounds of two epochs, with cross-entropy.
Brain: the slices of one magnetic resonance volume and four regions of its atlas as NIfTI files, at 96 pixels,
spread evenly over four clients; a fifth of the slices is measured on. A U-Net of width 16 in 40 rounds of two
epochs, with cross-entropy and with Dice. Slices of one head are alike: the figures say how losses and who
trains compare, not how well another head would be segmented.

There is too little to set images aside for a choice of settings: they are those of simulations/medical.toml
and detection.py. Seeds change the split and the first model. Needs both sets where one_round.py looks for
data (trees/ and brain.npz: ``image`` and ``atlas``), and nibabel. Results go to results/tasks/trees.json and
results/tasks/brain.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from task_tables import DATA, Method, TaskTable, run

ROUNDS = 40
REGIONS = {
    "cerebellum": [*range(91, 109)],
    "hippocampus": [37, 38],
    "caudate": [71, 72],
    "thalamus": [77, 78],
}
VOLUMES = DATA / "brain-nifti"
COMMON: dict[str, Any] = {
    "rounds": ROUNDS,
    "checkpoint_every": ROUNDS,
    "strategy": {"use": "fedavg"},
    "evaluation": {"every": ROUNDS},
}
TREES = TaskTable(
    name="trees",
    seeded=False,
    tuning={},
    experiment={
        **COMMON,
        "name": "trees",
        "task": {"use": "detection"},
        "data": {
            "use": "voc",
            "path": str(DATA / "trees"),
            "size": 128,
            "tile": 200,
            "validation": 0.4,
            "repair": True,
        },
        "partition": {"use": "column", "name": "source"},
        "model": {"use": "fcos", "backbone": "resnet8", "channels": 32},
        "transforms": {"flip": True},
        "training": {
            "batch_size": 4,
            "epochs": 2,
            "lr": 0.03,
            "momentum": 0.9,
            "schedule": "cosine",
            "clip_norm": 10.0,
        },
    },
    methods={"cross-entropy": Method({"loss": {"use": "cross-entropy"}}, [{}])},
    scores={"AP": "ap", "AP50": "ap50"},
)
BRAIN = TaskTable(
    name="brain",
    seeded=False,
    tuning={},
    experiment={
        **COMMON,
        "name": "brain",
        "task": {"use": "segmentation", "background": 0},
        "data": {
            "use": "nifti",
            "path": str(VOLUMES),
            "images": "image.nii.gz",
            "masks": "atlas.nii.gz",
            "size": 96,
            "group": "",
            "empty": False,
            "validation": 0.2,
            "regions": REGIONS,
        },
        "partition": {"use": "iid", "clients": 4},
        "model": {"use": "unet", "width": 16},
        "transforms": {"crop": 8},
        "training": {
            "batch_size": 8,
            "epochs": 2,
            "lr": 0.1,
            "momentum": 0.9,
            "schedule": "cosine",
            "clip_norm": 1.0,
        },
    },
    methods={
        "cross-entropy": Method({"loss": {"use": "cross-entropy"}}, [{}]),
        "Dice and cross-entropy": Method({"loss": {"use": "dice", "cross_entropy": 1.0}}, [{}]),
    },
    scores={"mean IoU": "mean_iou", "case Dice": "case_dice", "rarest region's IoU": "tail"},
)


def write_volumes(archive: Path, folder: Path) -> None:
    """Write the volume and its atlas as NIfTI files of 1 mm voxels, where they are not yet."""
    import nibabel

    folder.mkdir(parents=True, exist_ok=True)
    with np.load(archive, allow_pickle=False) as arrays:
        for name in ("image", "atlas"):
            if not (file := folder / f"{name}.nii.gz").exists():
                nibabel.save(nibabel.Nifti1Image(arrays[name], np.eye(4)), file)


if __name__ == "__main__":
    run(TREES)
    write_volumes(DATA / "brain.npz", VOLUMES)
    run(BRAIN)
