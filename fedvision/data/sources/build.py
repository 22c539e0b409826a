"""Open the images and labels that a table names."""

from __future__ import annotations

from fedvision import registry
from fedvision.data.dataset import Dataset
from fedvision.errors import PluginError
from fedvision.types import PluginSpec


def build_dataset(spec: PluginSpec) -> Dataset:
    """Return what a data source gives.

    Args:
        spec: ``[data]`` of an experiment or of a client's machine.

    Raises:
        PluginError: The source is unknown, its keys do not fit, it fails, or it returns something else.
        DataError: Its files cannot be read.
    """
    found = registry.build("data", spec)
    if not isinstance(found, Dataset):
        raise PluginError(
            f"[data] use = {spec.use!r}: it returns {type(found).__name__}, not a Dataset of "
            "fedvision.data.dataset"
        )
    return found
