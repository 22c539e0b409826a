"""Stands in for an agent of Ray: reports that its services are not in use, and lives as long as its parent.

A program of its own, started by Ray's scheduler without site-packages; it imports nothing of fedvision.

    python -I -S agent.py FOLDER NODE PORT_NAME...
"""

from __future__ import annotations

import os
import sys
import time

UNUSED = "-1"
"""What Ray's own agent writes for a service that it does not offer."""


def main(folder: str, node: str, *names: str) -> None:
    """Write a port file for each service and wait until whoever started this process is gone.

    Args:
        folder: The session's.
        node: Ray's id of the node.
        names: The services, as Ray names their port files.
    """
    parent = os.getppid()
    for name in names:
        file = os.path.join(folder, f"{name}_{node}")
        with open(file + ".part", "w") as part:
            part.write(UNUSED)
        os.replace(file + ".part", file)
    while os.getppid() == parent:
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
