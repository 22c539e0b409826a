"""The experiments of a sweep: each is built once, and data that they share are read once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision import api
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.errors import ConfigError
from fedvision.experiment import Experiment
from fedvision.experiment_builder import ExperimentBuilder
from fedvision.sweep import Sweep
from fedvision.sweep_runner import simulate_sweep

READ: list[weakref.ref[Dataset]] = []
MOST: list[int] = []


def few(*, shade: int = 0) -> Dataset:
    """Twelve images of two classes; notes that they were read, and how many data sets there are."""
    gc.collect()
    images = np.full((12, 8, 8, 1), shade, np.uint8)
    made = Dataset(train=ImageSet(images=images, labels=np.arange(12) % 2), classes=("a", "b"))
    READ.append(weakref.ref(made))
    MOST.append(sum(read() is not None for read in READ))
    return made


@pytest.fixture(autouse=True)
def _nothing_read() -> Iterator[None]:
    """Forget what was read, and keep what is there out of the many collections of garbage in these tests."""
    READ.clear()
    MOST.clear()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def config(name: str, **changes: Any) -> ExperimentConfig:
    table: dict[str, Any] = {
        "name": name,
        "rounds": 1,
        "data": {"use": "tests.test_experiment_builder:few"},
        "partition": {"use": "iid", "clients": 2},
        "model": {"use": "cnn", "width": 2, "dense": 4},
    }
    return ExperimentConfig.from_dict(table | changes)


def shade(number: int) -> dict[str, Any]:
    return {"use": "tests.test_experiment_builder:few", "shade": number}


def test_a_sweep_builds_each_experiment_once_and_reads_its_data_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    build = Experiment.build

    def noted(own: ExperimentConfig, **options: Any) -> Experiment:
        built.append(own.name)
        return build(own, **options)

    monkeypatch.setattr(Experiment, "build", noted)
    sweep = Sweep(name="s", experiments={name: config(name, seed=n) for n, name in enumerate("abc")})
    done = simulate_sweep(sweep, out=tmp_path / "out")
    assert (list(done.results), done.failures) == (["a", "b", "c"], {})
    assert built == ["a", "b", "c"]
    assert len(READ) == 1
    gc.collect()
    assert READ[0]() is None, "nothing is kept after the sweep"


def test_a_run_of_a_sweep_has_the_bits_of_a_run_alone(tmp_path: Path) -> None:
    sweep = Sweep(name="s", experiments={name: config(name, seed=n) for n, name in enumerate("ab")})
    simulate_sweep(sweep, out=tmp_path / "out")
    api.simulate(sweep.experiments["b"], out=tmp_path / "alone")
    together, alone = ((tmp_path / way / "rounds.jsonl").read_bytes() for way in ("out/b", "alone"))
    assert together == alone


def test_a_wrong_experiment_is_an_error_before_the_first_run(tmp_path: Path) -> None:
    wrong = config("b", partition={"use": "iid", "clients": 99})
    sweep = Sweep(name="s", experiments={"a": config("a"), "b": wrong})
    with pytest.raises(ConfigError):
        simulate_sweep(sweep, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_small_data_sets_are_each_read_once() -> None:
    configs = {str(n): config(str(n), data=shade(n % 2), seed=n) for n in range(4)}
    builder = ExperimentBuilder(configs)
    builder.check()
    taken = [builder.take(label) for label in configs]
    assert len(READ) == 2
    assert [one.config.name for one in taken] == list("0123")
    assert [int(one.dataset.train.images.max()) for one in taken] == [0, 1, 0, 1]
    assert taken[0].dataset is taken[2].dataset
    assert len({id(one.model) for one in taken}) == 4, "nothing that a run changes is shared"


def test_of_large_data_sets_one_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExperimentBuilder, "RETAINED_BYTES", 100)
    configs = {str(n): config(str(n), data=shade(n % 2), seed=n) for n in range(4)}
    builder = ExperimentBuilder(configs)
    builder.check()
    assert len(READ) == 2, "those with the same data are checked together"
    for n, label in enumerate(configs):
        assert int(builder.take(label).dataset.train.images.max()) == n % 2
    assert set(MOST) == {1}


def test_large_models_wait_unbuilt_and_share_their_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExperimentBuilder, "RETAINED_BYTES", 100)
    configs = {str(n): config(str(n), seed=n) for n in range(3)}
    builder = ExperimentBuilder(configs)
    builder.check()
    first = weakref.ref(builder.take("0").model)
    assert builder.take("1").config.seed == 1
    gc.collect()
    assert first() is None
    assert len(READ) == 1


def test_data_that_differ_in_a_type_alone_are_not_shared() -> None:
    one, other = config("a", data=shade(1)), config("b", data={**shade(1), "shade": True})
    assert one.data == other.data
    builder = ExperimentBuilder({"a": one, "b": other})
    with pytest.raises(ConfigError, match="shade must be int, not True"):
        builder.check()


def test_what_was_taken_is_not_kept() -> None:
    builder = ExperimentBuilder({"a": config("a"), "b": config("b", seed=1)})
    builder.check()
    model = weakref.ref(builder.take("a").model)
    gc.collect()
    assert model() is None
