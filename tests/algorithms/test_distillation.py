"""Distillation: the loss by hand and its limits, equal bits on every engine, a teacher that travels once."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.algorithms.distillation import DistillationClient, kl_divergence
from fedvision.api import simulate
from fedvision.errors import ClientError, ConfigError, FedVisionError
from fedvision.experiment import Experiment
from fedvision.losses.logits import sharpened
from fedvision.training.teacher import TeacherDescription
from fedvision.types import ClientConfig, PluginSpec, State, TrainRequest
from tests.experiments import tiny


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    simulate(tiny(rounds=3, model={"use": "resnet8", "width": 4}), out=out)
    return out


def taught(teacher: Path, **args: Any) -> dict[str, Any]:
    return {"use": "distillation", "teacher": str(teacher), **args}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_divergence_is_that_of_the_definition() -> None:
    """Student (1/4, 3/4), teacher (1/2, 1/2); at tau = 2 the student is 1 : sqrt(3)."""
    student, target = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[2.0, 2.0]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(student, target, 1.0).tolist() == pytest.approx([expected], rel=1e-6)
    share = 1 / (1 + math.sqrt(3))
    expected = 0.5 * math.log(0.5 / share) + 0.5 * math.log(0.5 / (1 - share))
    assert kl_divergence(student, target, 2.0).tolist() == pytest.approx([expected], rel=1e-6)


def test_a_class_that_the_teacher_rules_out_gives_numbers() -> None:
    student = torch.tensor([[0.0, 1.0, 3.0]], requires_grad=True)
    found = kl_divergence(student, torch.tensor([[0.0, 0.0, -math.inf]]), 1.0)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(student.grad).all()


class _Fixed(nn.Module):
    """A teacher that has an opinion of its own."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


def test_the_loss_is_the_blend_of_task_and_teacher() -> None:
    algorithm = DistillationClient()
    algorithm._alpha, algorithm._tau = 0.25, 2.0
    opinion = torch.tensor([[1.0, 0.0, -1.0]])
    algorithm._teacher = _Fixed(opinion)  # type: ignore[assignment]
    model = nn.Linear(2, 3)
    x, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, 1])

    def task_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(3 * logits, labels, reduction="none")

    found = algorithm.loss(model, x, labels, sharpened(task_loss, 3.0))
    target = (opinion / 2).log_softmax(1).expand(4, -1)
    divergence = F.kl_div((3 * model(x) / 2).log_softmax(1), target, log_target=True, reduction="none").sum(1)
    assert torch.allclose(found, 0.75 * task_loss(model(x), labels) + 0.25 * 4 * divergence, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vectorized", pytest.param("ray", marks=pytest.mark.slow)])
def test_engines_agree_to_the_bit(engine: str, teacher: Path, tmp_path: Path) -> None:
    config = tiny(strategy=taught(teacher, fraction=0.6))
    spec = PluginSpec(use=engine, args={"workers": 2} if engine == "ray" else {})
    one, other = simulate(config, out=tmp_path / "serial"), simulate(config, out=tmp_path / "x", engine=spec)
    assert same(one.state, other.state)
    assert [r["bytes"] for r in one.rounds] == [r["bytes"] for r in other.rounds]


@pytest.mark.slow
def test_nothing_of_the_teacher_is_fedavg_and_all_of_it_looks_at_no_label(
    teacher: Path, tmp_path: Path
) -> None:
    fedavg = simulate(tiny(), out=tmp_path / "fedavg")
    nothing = simulate(tiny(strategy=taught(teacher, alpha=0.0)), out=tmp_path / "nothing")
    assert same(fedavg.state, nothing.state)
    # Losses that look at the labels in other ways cannot differ where the labels do not count.
    alone = [
        simulate(tiny(strategy=taught(teacher, alpha=1.0), loss={"use": use}), out=tmp_path / use).state
        for use in ("cross-entropy", "focal")
    ]
    assert same(*alone)
    assert not same(alone[0], fedavg.state)


@pytest.mark.slow
def test_the_student_comes_to_agree_with_its_teacher(teacher: Path, tmp_path: Path) -> None:
    """With nothing but the teacher, and no label, it predicts what the teacher does."""
    import fedvision

    training = {"batch_size": 16, "lr": 0.1, "epochs": 6}
    config = tiny(rounds=6, strategy=taught(teacher, alpha=1.0), model={"use": "cnn"}, training=training)
    result = simulate(config, out=tmp_path / "student")
    images = _digits()
    one, other = (
        fedvision.load(path, device="cpu").predict(images) for path in (result.folder.path, teacher)
    )
    assert (one.labels == other.labels).mean() > 0.7


def _digits() -> Any:
    from fedvision.experiment import read_data

    return read_data(tiny()).test.images[:200]  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_teacher_travels_to_each_client_once(teacher: Path, tmp_path: Path) -> None:
    strategy = Experiment.build(tiny(strategy=taught(teacher))).strategy.inner  # type: ignore[attr-defined]
    size = sum(tensor.nbytes for tensor in strategy.constant_tensors()["teacher"].values())
    with_teacher = simulate(tiny(strategy=taught(teacher, fraction=0.6)), out=tmp_path / "taught").rounds
    without = simulate(tiny(strategy={"use": "fedavg", "fraction": 0.6}), out=tmp_path / "fedavg").rounds
    seen: set[int] = set()
    for one, other in zip(with_teacher, without, strict=True):
        new = set(one["clients"]) - seen
        seen |= new
        assert one["bytes"]["down"] - other["bytes"]["down"] == len(new) * size
        assert one["bytes"]["up"] == other["bytes"]["up"]
    assert size > 0


def test_resumes_to_the_same_bits_and_bytes(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_simulation import stopping_after

    config = tiny(strategy=taught(teacher, fraction=0.6))
    whole = simulate(config, out=tmp_path / "whole")
    with monkeypatch.context() as patched:
        stopping_after(1, patched)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, out=tmp_path / "resumed")
    resumed = simulate(config, out=tmp_path / "resumed", resume=True)
    assert same(whole.state, resumed.state)
    assert whole.rounds == resumed.rounds


def test_a_checkpoint_holds_the_teachers_digest_and_another_teacher_is_refused(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_simulation import stopping_after

    own = tmp_path / "teacher"
    shutil.copytree(teacher, own)
    config = tiny(strategy=taught(own))
    with monkeypatch.context() as patched:
        stopping_after(1, patched)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, out=tmp_path / "run")
    checkpoint = sum(f.stat().st_size for f in (tmp_path / "run/checkpoint").rglob("*") if f.is_file())
    assert checkpoint < (own / "model.safetensors").stat().st_size
    shutil.rmtree(own)
    simulate(tiny(rounds=2, seed=9, model={"use": "resnet8", "width": 4}), out=own)
    with pytest.raises(FedVisionError, match="another model than the run began with"):
        simulate(config, out=tmp_path / "run", resume=True)


def test_a_frozen_front_is_passed_by_images_as_the_teacher_looks_at_them(
    teacher: Path, tmp_path: Path
) -> None:
    config = tiny(strategy=taught(teacher), model={"use": "cnn", "width": 4, "frozen": ["backbone.*"]})
    result = simulate(config, out=tmp_path / "run")
    assert result.rounds[-1]["changed"]
    notices = (result.folder.path / "events.jsonl").read_text()
    assert "'distillation' looks at the images themselves" in notices


def test_wrong_keys_are_one_sentence(teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategy.teacher is empty; name the folder of the finished run"):
        Experiment.build(tiny(strategy={"use": "distillation"}))
    with pytest.raises(ConfigError, match="alpha"):
        Experiment.build(tiny(strategy=taught(teacher, alpha=1.5)))
    with pytest.raises(ConfigError, match="tau"):
        Experiment.build(tiny(strategy=taught(teacher, tau=0.0)))


def test_a_client_builds_no_network_that_the_message_does_not_name(teacher: Path) -> None:
    strategy = Experiment.build(tiny(strategy=taught(teacher))).strategy.inner  # type: ignore[attr-defined]
    sent = strategy.configure(1, {}, 0)
    assert sent.models == TeacherDescription.from_text(sent.texts["teacher"]).code == ("resnet8",)
    constants = strategy.constant_tensors()
    config = ClientConfig(numbers=sent.numbers, texts=sent.texts, constants=constants)
    request = TrainRequest(round=1, client=4, state={}, client_config=config)
    with pytest.raises(ClientError, match="networks that the message does not name"):
        DistillationClient().begin(nn.Linear(1, 1), {}, request, {})
    with pytest.raises(ClientError, match="got no teacher"):
        DistillationClient().begin(nn.Linear(1, 1), {}, TrainRequest(round=1, client=4, state={}), {})
