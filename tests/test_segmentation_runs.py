"""Runs with a class for each pixel: engines and resumed runs agree, the model is used, misfits refused."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedvision import simulate
from fedvision.baselines.gains import HELD_OUT, TEST, read_baselines
from fedvision.cli import main
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.errors import ConfigError, DataError, FedVisionError
from fedvision.experiment import Experiment
from fedvision.export.exporter import export
from fedvision.reporting.inspect_experiment import inspect_experiment
from fedvision.reporting.render import comparison_table, run_table
from fedvision.runs.folder import RunFolder
from fedvision.tasks.mask_predictions import MaskPredictions
from fedvision.trained_model import load
from tests.methods import STRATEGIES, tables
from tests.segments import CLASSES, SIDE, segments, squares

LEARNING = {"batch_size": 4, "lr": 0.1, "momentum": 0.9, "epochs": 8}
WORKING = {
    *(
        "apfl",
        "ditto",
        "fedadagrad",
        "fedadam",
        "fedavg",
        "fedavgm",
        "feddyn",
        "fednova",
        "fedper",
        "fedprox",
    ),
    *("fedrep", "fedyogi", "flexlora", "krum", "median", "q-fedavg", "scaffold", "trimmed-mean"),
    "zero-shot",
}
"""Strategies that take any outputs; the others are about images of one class or rows of features."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segments") / "run"
    config = segments(
        rounds=6,
        training=LEARNING,
        loss={"use": "dice", "cross_entropy": 1.0},
        task={"use": "segmentation", "background": 0},
    )
    simulate(config, engine="serial", out=folder)
    return folder


def test_it_learns_and_what_is_measured_is_what_the_model_predicts(run: Path) -> None:
    rounds = RunFolder(run).rounds()
    first, last = (rounds[place]["server"] for place in (0, -1))
    assert last["loss"] < first["loss"]
    assert last["scores"]["mean_iou"] > max(0.3, first["scores"]["mean_iou"])
    assert last["pixels"] == 9 * SIDE * (SIDE - 1)
    local = rounds[-1]["local"]
    assert len(local["mean_iou"]) == 3
    assert local["spread"]["clients"] == sum(score is not None for score in local["mean_iou"].values())
    test = squares().test
    assert test is not None
    found = load(run).predict(test.images)
    assert isinstance(found, MaskPredictions)
    known = test.labels != 255
    for c in range(3):
        both = int(((found.masks == c) & (test.labels == c)).sum())
        either = int((((found.masks == c) | (test.labels == c)) & known).sum())
        assert last["classes"]["right_pixels"][c] == both
        assert last["classes"]["iou"][c] == pytest.approx(both / either)
    assert found.shares().sum(1) == pytest.approx(1)
    measured = load(run).evaluate(squares())
    assert (measured.scores, measured.loss) == (last["scores"], last["loss"])
    record = measured.to_record()
    assert record["pixels"] == last["pixels"]
    assert record["classes"]["bright"].keys() >= {"training_pixels", "iou", "dice", "case_dice"}
    assert "confusion" not in record
    assert not any("interval" in key for key in record["classes"]["bright"])


def test_classes_are_found_by_their_names(run: Path) -> None:
    test = squares().test
    assert test is not None
    turned = np.array([2, 1, 0, *[255] * 253], np.uint8)[test.labels]
    data = Dataset(train=ImageSet(images=test.images, labels=turned), classes=CLASSES[::-1])
    assert load(run).evaluate(data).scores == RunFolder(run).rounds()[-1]["server"]["scores"]
    small = Dataset(train=ImageSet(images=test.images, labels=turned[:, :8]), classes=CLASSES)
    with pytest.raises(DataError, match="images and masks must be of one size, not 16 x 16 and 8 x 16"):
        load(run).evaluate(small)


def test_engines_agree(tmp_path: Path) -> None:
    config = segments(transforms={"flip": True, "crop": 2})
    serial = simulate(config, engine="serial", out=tmp_path / "serial")
    stacked = simulate(config, engine="vectorized", out=tmp_path / "stacked")
    assert all(torch.equal(tensor, stacked.state[name]) for name, tensor in serial.state.items())
    notices = RunFolder(tmp_path / "stacked").summary()["notices"]
    assert any("one by one: the task 'segmentation' has no form for several" in one for one in notices)
    assert [one["local"]["scores"] for one in serial.rounds] == [
        one["local"]["scores"] for one in stacked.rounds
    ]


@pytest.mark.slow
def test_ray_gives_the_same_bits(tmp_path: Path) -> None:
    serial = simulate(segments(), engine="serial", out=tmp_path / "serial")
    ray = simulate(segments(), engine="ray", out=tmp_path / "ray")
    assert all(torch.equal(tensor, ray.state[name]) for name, tensor in serial.state.items())
    assert serial.rounds[-1]["local"]["scores"] == ray.rounds[-1]["local"]["scores"]
    assert serial.rounds[-1]["local"]["classes"] == ray.rounds[-1]["local"]["classes"]


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    whole = simulate(segments(rounds=3), engine="serial", out=tmp_path / "whole")
    simulate(segments(rounds=1), engine="serial", out=tmp_path / "parts")
    parts = simulate(segments(rounds=3), engine="serial", out=tmp_path / "parts", resume=True)
    assert all(torch.equal(tensor, parts.state[name]) for name, tensor in whole.state.items())
    assert whole.rounds == parts.rounds


def test_cells_that_wait_are_counted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = simulate(segments(rounds=1), engine="serial", out=tmp_path / "plain")
    monkeypatch.setattr("fedvision.training.evaluate._CELLS", 100)
    parts = simulate(segments(rounds=1), engine="serial", out=tmp_path / "parts")
    assert plain.rounds == parts.rounds


def lacking() -> Dataset:
    """Return images of which one client has no pixel of two classes, and nobody has one of the last."""
    found = squares(columns=True)
    labels = np.where((found.train.columns["ward"] == "a")[:, None, None], 0, found.train.labels)
    train = ImageSet(images=found.train.images, labels=labels.astype(np.uint8), columns=found.train.columns)
    return Dataset(train=train, test=found.test, classes=(*CLASSES, "nowhere"))


@pytest.mark.parametrize("prior", ["local", "global", "mixed"])
@pytest.mark.parametrize(
    "loss",
    [
        *({"use": use, "scheme": "inverse"} for use in ("dice", "tversky", "focal-tversky", "weighted")),
        *({"use": use} for use in ("class-balanced-focal", "logit-adjusted", "ldam", "fedlc", "fedrs")),
    ],
    ids=lambda loss: loss["use"],
)
def test_classes_that_clients_lack_leave_all_finite(loss: dict[str, Any], prior: str, tmp_path: Path) -> None:
    config = segments(
        data={"use": f"{__name__}:lacking"},
        partition={"use": "column", "name": "ward"},
        loss={**loss, "prior": prior},
        rounds=1,
    )
    result = simulate(config, engine="serial", out=tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in result.state.values())
    last = result.rounds[-1]
    assert math.isfinite(last["train_loss"])
    assert math.isfinite(last["server"]["loss"])
    assert last["local"]["spread"]["clients"] == 3


@pytest.mark.parametrize("use", STRATEGIES)
def test_every_strategy_works_or_is_refused_before_the_start(use: str, run: Path, tmp_path: Path) -> None:
    own = tables(use, {"use": "unet", "width": 4, "depth": 2}, teacher=run)
    own["partition"] = {"use": "iid", "clients": 5}
    own["evaluation"] = {"holdout": 0.0}
    if use not in WORKING:
        with pytest.raises(ConfigError) as refused:
            Experiment.build(segments(**own))
        assert "\n" not in str(refused.value)
        return
    result = simulate(segments(rounds=1, **own), engine="serial", out=tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in result.state.values())
    assert not result.rounds[-1].get("refused")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"model": {"use": "cnn"}}, r"returns \[2, 3\], and segmentation needs logits of each pixel"),
        ({"data": {"use": "digits"}}, r"needs a class for each pixel \(mask-folder.* has one class an image"),
        ({"task": {"use": "classification"}}, "needs one class an image, .* has a class for each pixel"),
        ({"task": {"use": "segmentation", "background": 3}}, "background = 3: the classes are 0 to 2"),
        ({"loss": {"use": "asymmetric"}}, "'asymmetric' is for multi-label"),
        ({"transforms": {"mixup": 0.2}}, "has no form for blended masks"),
        ({"transforms": {"size": 8}}, "would resize images and not the targets"),
        (
            {"model": {"use": "unet", "width": 4, "mirrored": True}},
            "average features of pixels",
        ),
        (
            {"training": {"sampler": "balanced"}},
            "sampler goes by class and needs one class an image",
        ),
        ({"evaluation": {"holdout": 0.2, "keep": "best", "score": "accuracy"}}, "there is no such score"),
        (
            {"evaluation": {"holdout": 0.2, "statistics": ["calibration"]}},
            "of images of one class",
        ),
        (
            {"evaluation": {"holdout": 0.2, "statistics": ["faithfulness"]}},
            "decides on pixels",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_sentence(more: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(FedVisionError, match=problem) as found:
        simulate(segments(**more), engine="serial", out=tmp_path / "run")
    assert "\n" not in str(found.value)


def no_class() -> Dataset:
    """Return images with a mask that holds what is no class."""
    found = squares()
    found.train.labels[7, 3, 3] = 9
    return found


def test_a_mask_with_another_value_is_refused() -> None:
    with pytest.raises(DataError, match="the mask of image 7 holds 9, and 3 classes have the values 0 to 2"):
        Experiment.build(segments(data={"use": f"{__name__}:no_class"}))


def test_reports_tell_of_pixels(run: Path, tmp_path: Path) -> None:
    text, page = run_table(RunFolder(run)), (run / "report.html").read_text()
    assert "mean IoU" in text
    rare = next(line for line in text.splitlines() if line.startswith("rarest classes"))
    assert rare.split() == ["rarest", "classes", "pixels", "IoU", "Dice"]
    for told in (page, (run / "README.md").read_text() if (run / "README.md").is_file() else page):
        assert "recall" not in told.lower().replace("recalled", "")
    assert "training pixels" in page
    assert "the mean IoU of classes is" in page
    assert "Dice of an image" in page
    other = tmp_path / "other"
    simulate(segments(rounds=1), engine="serial", out=other)
    table = comparison_table([RunFolder(run), RunFolder(other)])
    assert "IoU of a class (training pixels)" in table
    inspected = inspect_experiment(Experiment.build(segments()))
    assert f"{Experiment.build(segments()).split.totals.sum():,} pixels in all" in inspected


def test_masks_are_written_at_the_size_of_the_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = squares().test
    assert test is not None
    pictures = tmp_path / "pictures"
    (pictures / "in").mkdir(parents=True)
    Image.fromarray(test.images[0, ..., 0]).save(pictures / "a.png")
    Image.fromarray(test.images[1, ..., 0]).save(pictures / "in/b.png")
    out = tmp_path / "masks"
    main.main(["predict", str(run), str(pictures), "--out", str(out), "--jsonl", str(tmp_path / "l")])
    assert capsys.readouterr().out.split()[:2] == ["file", "classes"]
    wanted = load(run).predict(test.images)
    assert isinstance(wanted, MaskPredictions)
    for name, mask in (("a.png", wanted.masks[0]), ("in/b.png", wanted.masks[1])):
        with Image.open(out / name) as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), mask)
            assert image.convert("RGB").getcolors(9) is not None
    lines = [json.loads(line) for line in (tmp_path / "l").read_text().splitlines()]
    assert [line["shares"] for line in lines] == [
        dict(zip(CLASSES, row, strict=True)) for row in wanted.shares()[:2].tolist()
    ]
    before = (pictures / "a.png").read_bytes()
    assert main.main(["predict", str(run), str(pictures / "a.png"), "--out", str(pictures)])
    assert "would overwrite it; name another folder" in capsys.readouterr().err
    assert (pictures / "a.png").read_bytes() == before


def test_it_is_evaluated_by_command(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    test = squares().test
    assert test is not None
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number, (image, mask) in enumerate(zip(test.images, test.labels, strict=True)):
        Image.fromarray(image[..., 0]).save(tmp_path / f"data/images/{number}.png")
        Image.fromarray(mask).save(tmp_path / f"data/masks/{number}.png")
    table = (
        f"use = 'mask-folder', path = '{tmp_path / 'data'}', cache = '{tmp_path / 'cache'}', "
        f"classes = {list(CLASSES)}"
    )
    main.main(["evaluate", str(run), "--data", table, "--json", str(tmp_path / "found.json")])
    told = capsys.readouterr().out
    assert f"{9 * SIDE * (SIDE - 1):,} pixels of images" in " ".join(told.split())
    assert "Dice of" in told
    page = json.loads((tmp_path / "found.json").read_text())
    assert page["scores"] == pytest.approx(RunFolder(run).rounds()[-1]["server"]["scores"])

    # Numbers in masks that nothing names are the model's classes.
    monkeypatch.setenv("FEDVISION_CACHE", str(tmp_path / "cache"))
    unnamed = ["evaluate", str(run), "--data", str(tmp_path / "data"), "--json", str(tmp_path / "again.json")]
    assert main.main(unnamed) == 0
    assert json.loads((tmp_path / "again.json").read_text()) == page
    Image.new("L", (SIDE, SIDE), 3).save(tmp_path / "data/masks/0.png")
    assert main.main(unnamed)
    assert "the value 3 is no class: 3 are named, so 0 to 2" in capsys.readouterr().err


@pytest.mark.slow
def test_baselines_are_compared_by_mean_iou(tmp_path: Path) -> None:
    config = segments(training=LEARNING, evaluation={"holdout": 0.3}, partition={"use": "iid", "clients": 2})
    simulate(config, engine="serial", out=tmp_path / "run", baselines=("local", "central"))
    folder = RunFolder.read(tmp_path / "run")
    found = read_baselines(folder)
    assert found is not None
    assert found.central["scores"].keys() == folder.rounds()[-1]["server"]["scores"].keys()
    for on in (TEST, HELD_OUT):
        gains = found.gains(on)
        assert gains is not None
        assert (gains.score, gains.clients) == ("mean_iou", (0, 1))
        own = [
            line["server" if on == TEST else "local"]["scores"]["mean_iou"] for line in found.local.values()
        ]
        assert gains.alone.tolist() == own
    page = " ".join((tmp_path / "run/report.html").read_text().split())
    assert "from a client's own model to the federated one, mean IoU changes by" in html.unescape(page)


@pytest.mark.slow
def test_it_is_exported_and_not_explained(run: Path, tmp_path: Path) -> None:
    model = load(run, device="cpu")
    found = export(model, "onnx", tmp_path / "model.onnx", fit="exact")
    assert found.agreement is not None
    assert found.agreement.decisions == 0
    import onnxruntime

    session = onnxruntime.InferenceSession((tmp_path / "model.onnx").read_bytes())
    test = squares().test
    assert test is not None
    (probabilities,) = session.run(None, {"images": test.images})
    wanted = model.predict(test.images)
    assert isinstance(wanted, MaskPredictions)
    assert probabilities.shape == (9, 3, SIDE, SIDE)
    assert (probabilities.argmax(1) == wanted.masks).mean() > 0.999
    with pytest.raises(ConfigError, match="decides on pixels"):
        model.explain(test.images)
