"""What a client may send of a failure: the server's log and records hold no path of a client.

A path says how a machine is built, and a file's name may be a patient's. A sentence that contains one is not
sent, not even in part: the client's own log has it in full.
"""

from __future__ import annotations

import re

from fedvision.deployment.client.config import ClientMachineConfig

AT_HOME = "it could not use a file of its own; its own log says which"
_ABSOLUTE = re.compile(
    r"""(?:^|[\s'"`(=\[{<|,;:]|//)  # where a word begins
    (?:~?/[^\s/]|[A-Za-z]:[\\/]|\\\\[^\s])  # /x, ~/x, C:\, \\x""",
    re.VERBOSE,
)


def cause(error: BaseException) -> str:
    """Return what went wrong; an operating system's error names a path of this machine, which is left out."""
    if isinstance(error, OSError):
        return f"this machine says: {error.strerror or type(error).__name__}"
    return str(error)


def redact_paths(reason: str, config: ClientMachineConfig) -> str:
    """Return a failure's sentence for the server: as it is, or another one where it holds a path.

    Args:
        reason: What went wrong.
        config: The machine's own file; what it names as a path is one, however it is written.
    """
    if _ABSOLUTE.search(reason) or any(name in reason for name in config.paths if len(name) > 1):
        return AT_HOME
    return reason
