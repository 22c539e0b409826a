"""Run a module that ends with the process that started it.

``python -m fedvision.deployment.server.parent_watchdog MODULE``

Standard input is the tether: it ends when the other process does, however that dies.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def main() -> None:
    """Watch standard input and run the module with the rest of the arguments."""

    def watch() -> None:
        # Not sys.stdin: its lock would be held while the interpreter ends.
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
