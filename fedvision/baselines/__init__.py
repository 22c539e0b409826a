"""Baselines beside a federated run: each client alone (``local``), and all images together (``central``).

Every training image is seen as often in a baseline as in the federated run (``budget``), from the same first
model, with the same local training, in a simulation alone: nobody has all images elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedvision.errors import ConfigError, nearest

NAMES = ("central", "local")
"""The baselines, in the order in which they are made."""


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Return the baselines of these names, each once, in the order in which they are made.

    Raises:
        ConfigError: There is none of a name.
    """
    for name in names:
        if name not in NAMES:
            raise ConfigError(
                f"--baselines: there is no baseline {name!r}{nearest(name, NAMES)}; name "
                f"{' or '.join(NAMES)}, or both with a comma"
            )
    return tuple(name for name in NAMES if name in names)
