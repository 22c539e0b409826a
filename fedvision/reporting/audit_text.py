"""A line of an audit log as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedvision.formatting import one_line


def audit_line(line: Mapping[str, Any]) -> str:
    """Return one line of text; what others wrote in it is kept to that line.

    Args:
        line: As ``runs.audit_log`` describes it.
    """
    who = f" {line['client']}" if line["client"] else ""
    facts = [f"{key} {line[key]}" for key in ("key", "stage", "sharing", "version") if line.get(key)]
    where = f" from {line['address']}" if line.get("address") else ""
    by = f" by {line['by']}" if line["by"] != line["client"] else ""
    rest = f" ({', '.join(facts)})" if facts else ""
    reason = f": {line['reason']}" if line.get("reason") else ""
    time = str(line["time"])[:19].replace("T", " ")
    return one_line(f"{time} UTC  round {line['round']}  {line['what']}{who}{where}{by}{rest}{reason}")
