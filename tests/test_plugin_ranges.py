"""Each number that an experiment can give a built-in plug-in: out of range, it is refused by its name."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fedvision import registry
from fedvision.errors import FedVisionError
from fedvision.types import PluginSpec
from tests.data.annotated import document, voc_xml

RUNTIME: dict[str, dict[str, Any]] = {
    "model": {"num_classes": 3, "in_channels": 3, "image_size": (16, 16)},
    "expansion": {"in_features": 6},
    "head": {"in_features": 6, "num_classes": 3},
    "loss": {"counts": torch.tensor([5.0, 3.0, 2.0]), "round": 1, "rounds": 5},
    "sampler": {"round": 1, "rounds": 5},
    "partition": {"columns": {}},
    "optimizer": {"params": [nn.Parameter(torch.zeros(2))]},
    "statistic": {"model": nn.Identity(), "data": None, "tensors": {}},
}
REQUIRED: dict[str, dict[str, Any]] = {
    "dirichlet": {"alpha": 1.0},
    "population": {"alpha": 1.0},
    "step": {"every": 2},
    "clip": {"max_norm": 1.0},
    "cosine": {"embeddings": "names.npy"},
    "top-k": {"fraction": 0.1},
    "image-folder": {"path": "folder", "size": 8},
    "manifest": {"path": "list.csv", "size": 8},
    "mask-folder": {"path": "pixels", "size": 8},
    "nifti": {"path": "volumes", "size": 8},
    "coco": {"path": "boxes.json", "size": 8},
    "coco-masks": {"path": "boxes.json", "size": 8},
    "voc": {"path": "voc", "size": 8},
    "yolo": {"path": "yolo", "size": 8, "classes": ["a"]},
    "npz": {"path": "images.npz"},
    "elsewhere": {"classes": ["a", "b"], "height": 8, "width": 8},
}
OFF = "0 switches it off"
ANY = "0 is the end of its range"
DEFAULT = "0 leaves the choice to the program"
_FILES = {"range": DEFAULT, "validation": OFF, "max_unreadable": ANY, "workers": DEFAULT}
_TILES = {"tile": OFF, "overlap": OFF}
ZERO_ALLOWED: dict[tuple[str, str], dict[str, str]] = {
    ("data", "digits"): {"validation": OFF},
    ("data", "npz"): {"channels": DEFAULT, "validation": OFF},
    ("data", "nifti"): {"channel": ANY, "ignore": ANY, "validation": OFF, "workers": DEFAULT},
    ("data", "image-folder"): _FILES,
    ("data", "manifest"): _FILES | {"ignore": ANY},
    ("data", "mask-folder"): _FILES | {"ignore": ANY},
    ("data", "coco"): _FILES | _TILES,
    ("data", "coco-masks"): _FILES,
    ("data", "voc"): _FILES | _TILES | {"origin": "plain coordinates"},
    ("data", "yolo"): _FILES | _TILES,
    ("data", "mnist"): _FILES | {"size": DEFAULT},
    ("partition", "quantity"): {"exponent": "equal clients"},
    ("partition", "population"): {"sigma": "equal clients"},
    ("model", "cnn"): {"dropout": OFF},
    ("model", "rnn"): {"dropout": OFF},
    ("model", "vit"): {"dropout": OFF},
    ("model", "unet"): {"dropout": OFF},
    ("model", "fusion"): {"dropout": OFF, "patch": "reads the extractor's tokens"},
    ("model", "fcos"): {"levels": DEFAULT, "depth": "no tower", "score_threshold": "keeps all"},
    ("model", "retinanet"): {"levels": DEFAULT, "depth": "no tower", "score_threshold": "keeps all"},
    ("model", "ssdlite"): {"levels": DEFAULT, "score_threshold": "keeps all"},
    ("model", "faster-rcnn"): {"levels": DEFAULT, "score_threshold": "keeps all"},
    ("loss", "sigmoid-focal"): {"gamma": OFF, "beta": "equal weights"},
    ("loss", "class-balanced-sigmoid-focal"): {"gamma": OFF, "beta": "equal weights"},
    ("loss", "equalization"): {"rare_share": "vacant classes alone"},
    ("loss", "seesaw"): {"p": OFF, "q": OFF},
    ("expansion", "random-relu"): {"seed": ANY},
    ("expansion", "bucket-groups"): {"groups": DEFAULT, "seed": ANY},
    ("head", "cosine"): {"size": DEFAULT},
    ("head", "etf"): {"size": DEFAULT, "sparse": OFF, "seed": ANY},
    ("head", "realigned"): {"sparse": OFF, "seed": ANY},
    ("loss", "weighted"): {"beta": "equal weights"},
    ("loss", "focal"): {"gamma": OFF, "beta": "equal weights"},
    ("loss", "class-balanced-focal"): {"gamma": OFF, "beta": "equal weights"},
    ("loss", "ldam"): {"max_margin": OFF, "drw_round": OFF, "beta": "equal weights"},
    ("loss", "logit-adjusted"): {"tau": OFF},
    ("loss", "fedlc"): {"tau": OFF},
    ("loss", "fedrs"): {"alpha": ANY},
    ("loss", "fedlf"): {"alpha": ANY},
    ("loss", "class-balanced"): {"beta": "equal weights"},
    ("loss", "asymmetric"): {"gamma_pos": OFF, "gamma_neg": OFF, "margin": OFF},
    ("loss", "distribution-balanced"): {
        "alpha": ANY,
        "beta": "equal weights",
        "mu": ANY,
        "kappa": OFF,
        "gamma": OFF,
    },
    ("loss", "dice"): {"beta": "equal weights", "cross_entropy": OFF},
    ("loss", "tversky"): {"alpha": ANY, "beta": ANY, "cross_entropy": OFF},
    ("loss", "focal-tversky"): {"alpha": ANY, "beta": ANY, "cross_entropy": OFF},
    ("task", "segmentation"): {"background": "the first class"},
    ("optimizer", "sgd"): {
        "lr": "the program sets it",
        "momentum": OFF,
        "dampening": OFF,
        "weight_decay": OFF,
    },
    ("sampler", "effective"): {"beta": "each image once"},
    ("schedule", "cosine"): {"final": ANY, "warmup": OFF},
    ("strategy", "fedprox"): {"mu": OFF},
    ("strategy", "ccvr"): {"every": "after the last round"},
    ("strategy", "closed-form"): {"balance": "all images weigh alike"},
    ("strategy", "fedntd"): {"beta": OFF},
    ("strategy", "fednova"): {"mu": OFF},
    ("strategy", "moon"): {"mu": OFF},
    ("strategy", "fedvls"): {"vacant": OFF, "suppression": OFF},
    ("strategy", "fedlf"): {"centre": OFF, "decorrelation": OFF},
    ("strategy", "fedyoyo"): {"distillation": OFF, "strength": OFF},
    ("strategy", "longtail"): {"momentum": OFF, "share": OFF},
    ("strategy", "ditto"): {"lam": OFF, "personal_epochs": DEFAULT},
    ("strategy", "apfl"): {"alpha": ANY},
    ("strategy", "q-fedavg"): {"q": ANY, "lipschitz": DEFAULT},
    ("strategy", "distillation"): {"alpha": OFF},
    ("strategy", "balancefl"): {"vacant": OFF, "augment": OFF, "entropy": OFF},
    ("strategy", "fedgrab"): {"tail": OFF, "kp": OFF, "ki": OFF, "kd": OFF},
    ("statistic", "rectified-head"): {"low": ANY, "seed": ANY},
    ("strategy", "fedrela"): {"share": OFF, "warmup": "from the first round on"},
    ("strategy", "rucr"): {"weight": OFF, "steps": OFF, "low": ANY},
    ("strategy", "fedgan"): {"share": OFF, "warmup": "from the first round on"},
    ("strategy", "fedavgm"): {"momentum": OFF},
    ("strategy", "fedadam"): {"beta1": OFF, "beta2": ANY},
    ("strategy", "fedyogi"): {"beta1": OFF, "beta2": ANY},
    ("strategy", "fedadagrad"): {"beta1": OFF},
    ("strategy", "trimmed-mean"): {"share": OFF},
    ("strategy", "krum"): {"malicious": ANY},
    ("engine", "auto"): {"workers": DEFAULT},
    ("engine", "ray"): {"workers": DEFAULT, "gpus_per_worker": DEFAULT},
    ("engine", "vectorized"): {"stack": DEFAULT},
}


def _numbers() -> Iterator[tuple[str, str, str, bool]]:
    """Yield kind, name, argument and whether it is a float, torchvision's sets once: they share a factory."""
    for kind, builtins in registry.BUILTINS.items():
        for use, builtin in builtins.items():
            if "dataset" in builtin.preset and use != "mnist":
                continue
            for name, parameter in inspect.signature(registry.resolve(kind, use).call).parameters.items():
                types = {part.strip() for part in str(parameter.annotation).split("|")}
                if types & {"int", "float"} and name not in {*builtin.preset, *RUNTIME.get(kind, {})}:
                    yield kind, use, name, "float" in types


NUMBERS = list(_numbers())


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change into a folder with the smallest sources of images that the plug-ins read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDVISION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDVISION_DATA", str(tmp_path / "sets"))
    for name in ("a", "b"):
        Path("folder", name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(Path("folder", name, "1.png"))
    Path("list.csv").write_text("file,label\nfolder/a/1.png,a\nfolder/b/1.png,b\n")
    content = document([{"id": 1, "file_name": "folder/a/1.png"}], [], [{"id": 1, "name": "a"}])
    Path("boxes.json").write_text(json.dumps(content))
    for folder in ("voc", "yolo"):
        Path(folder).mkdir()
        Image.new("RGB", (8, 8)).save(Path(folder, "1.png"))
    voc_xml(Path("voc/1.xml"), "1.png", [("a", (1, 1, 2, 2))])
    np.savez("images.npz", train_images=np.zeros((2, 8, 8), np.uint8), train_labels=np.arange(2))


@pytest.mark.usefixtures("arguments")
@pytest.mark.parametrize(("kind", "use", "name", "real"), NUMBERS, ids=[":".join(row[:3]) for row in NUMBERS])
def test_out_of_range(kind: str, use: str, name: str, real: bool) -> None:
    """-1, NaN, infinity, and 0 where it is not listed, are refused by a sentence with the argument's name."""
    absurd: list[float] = [-1, *((-1e-9, math.nan, math.inf, -math.inf) if real else ())]
    if name not in ZERO_ALLOWED.get((kind, use), {}):
        absurd.append(0)
    for value in absurd:
        spec = PluginSpec(use=use, args={**REQUIRED.get(use, {}), name: value})
        with pytest.raises(FedVisionError, match=rf"\b{name}\b"):
            registry.build(kind, spec, **RUNTIME.get(kind, {}))


def test_list_of_zeros() -> None:
    """What the list of allowed zeros names is there."""
    known = {(kind, use, name) for kind, use, name, _ in NUMBERS}
    assert {(*plugin, name) for plugin, names in ZERO_ALLOWED.items() for name in names} <= known
