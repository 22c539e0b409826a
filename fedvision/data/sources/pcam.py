"""PatchCamelyon, the one set of torchvision's that lies in HDF5 files: 7 GB that need not fit in memory.

Veeling et al. 2018, "Rotation Equivariant CNNs for Digital Pathology", arXiv:1806.03962.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pcam_arrays(made: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return one part of the set.

    Args:
        made: ``torchvision.datasets.PCAM``; it has imported h5py.

    Returns:
        Images uint8 [N, 96, 96, 3], a memory map where the file stores them in one piece, else in memory;
        labels int64 [N].
    """
    names = made._FILES[made._split]
    folder = Path(made._base_folder)
    with made.h5py.File(folder / names["targets"][0], "r") as file:
        labels = np.asarray(file["y"][:]).reshape(-1).astype(np.int64)
    path = folder / names["images"][0]
    with made.h5py.File(path, "r") as file:
        stored = file["x"]
        # h5py: where the bytes begin, or None where they are in chunks or compressed.
        offset = stored.id.get_offset()
        if offset is None:
            return np.asarray(stored[:]), labels
        shape = stored.shape
    return np.memmap(path, np.uint8, "r", offset, shape), labels
