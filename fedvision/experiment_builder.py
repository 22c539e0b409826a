"""The experiments of a sweep, built and checked before the first one runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedvision.config import ExperimentConfig
from fedvision.experiment import Experiment, read_data

if TYPE_CHECKING:
    from torch import nn

    from fedvision.data.dataset import Dataset


class ExperimentBuilder:
    """Builds the experiments of a sweep, each once, and reads data that several of them name once.

    All are built before the first one runs, so that a wrong one fails at once. What was built is kept for
    its run as far as it takes ``RETAINED_BYTES`` in all; of other experiments one is in memory at a time, and
    data that only they name are read again.

    Args:
        configs: The experiments by label.
    """

    RETAINED_BYTES = 1 << 30
    """Bytes of models, and of data sets where there are several, that wait for their run."""

    def __init__(self, configs: Mapping[str, ExperimentConfig]) -> None:
        self._configs = configs
        self._built: dict[str, Experiment] = {}
        self._read: tuple[str, Dataset] | None = None
        self.sizes: dict[str, tuple[int, int]] = {}
        """Bytes of each experiment's data and model by label, once checked."""

    def check(self) -> None:
        """Build all experiments.

        Raises:
            ConfigError: One of them is wrong.
        """
        keys = {label: _data_key(config) for label, config in self._configs.items()}
        several, waiting, counted = len(set(keys.values())) > 1, 0, set[str]()
        for key in dict.fromkeys(keys.values()):
            for label in (label for label, own in keys.items() if own == key):
                experiment = self._build(self._configs[label])
                data, size = _data_bytes(experiment.dataset), _model_bytes(experiment.model)
                self.sizes[label] = data, size
                if several and key not in counted:
                    size += data
                if waiting + size <= self.RETAINED_BYTES:
                    waiting += size
                    counted.add(key)
                    self._built[label] = experiment
                del experiment  # before the next data set is read

    def take(self, label: str) -> Experiment:
        """Return an experiment, which is the caller's alone from then on; its data set may be shared.

        Raises:
            ConfigError: Something in the experiment or its data is wrong.
        """
        return self._built.pop(label, None) or self._build(self._configs[label])

    def _build(self, config: ExperimentConfig) -> Experiment:
        key = _data_key(config)
        if self._read is None or self._read[0] != key:
            self._read = None  # before the next data set is read
            ready = [one.dataset for one in self._built.values() if _data_key(one.config) == key]
            self._read = (key, ready[0] if ready else read_data(config))
        return Experiment.build(config, dataset=self._read[1])


def _data_key(config: ExperimentConfig) -> str:
    """Return a text that is equal where ``[data]`` is; 1, 1.0 and true are not."""
    return repr(config.data)


def _model_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def _data_bytes(dataset: Dataset) -> int:
    """Return the bytes of the images, those that stay in a file included: they fill the page cache."""
    return sum(part.images.nbytes for part in (dataset.train, dataset.test) if part is not None)
