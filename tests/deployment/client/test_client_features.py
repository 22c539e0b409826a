"""A client behind a frozen backbone trains on features that it computed once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision.deployment.client.trainer import Trainer
from fedvision.deployment.transport import message_format
from fedvision.flower import codec
from fedvision.training.features import FeatureExtractor
from tests.deployment.client import test_trainer


def test_features_are_computed_once_and_kept_with_the_clients_state(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"use": "cnn", "width": 4, "dense": 8, "frozen": ["backbone.*"]}
    passed: list[int] = []
    compute = FeatureExtractor._features

    def counted(self: FeatureExtractor, images: Any, *others: Any) -> Any:
        passed.append(len(images))
        return compute(self, images, *others)

    monkeypatch.setattr(FeatureExtractor, "_features", counted)

    def trained(run: str, **training: Any) -> np.ndarray:
        table = test_trainer.frozen_facts(run, model, training={"lr": 0.1, **training})
        opened = trainer.open(table)
        test_trainer.play(trainer, tmp_path, opened, 2)
        tensors = test_trainer.exactly(message_format.Expected.from_text(opened["expected"]["train"]))
        config = {codec.CONFIG: ("config", {codec.ROUND: 3})}
        layout = message_format.MessageHeader(tensors=tensors, records=config, client=0)
        (tmp_path / "task").write_bytes(bytes(layout.size))
        trainer.answer("train", layout.to_text(), tmp_path / "task", tmp_path / "reply")
        return np.frombuffer((tmp_path / "reply").read_bytes(), np.float32)

    on_images = trained("r1", cache_features=False)
    assert passed == []
    on_features = trained("r2")
    assert sum(passed) == 40
    np.testing.assert_allclose(on_features, on_images, rtol=0, atol=1e-5)
    assert np.array_equal(trained("r3"), on_features)
    assert sum(passed) == 40
    (kept,) = (tmp_path / "state/features").iterdir()
    os.utime(kept, (0, 0))
    trainer.open(test_trainer.facts("r4"))
    assert not kept.exists()
