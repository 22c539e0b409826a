"""Messages and records by their parts, beside Flower's constructors (flwr 1.41 and 1.42; contract tests).

Flower's constructors check every argument, read the clock through ``datetime`` and take 4 to 6 us a message;
a round of thousands of small clients makes four messages for each. What is leaned on:

* ``Message.__dict__``: ``_metadata``, ``_content``, ``_error``; ``Metadata.__dict__``: the fields with ``_``
  before their names.
* ``__dict__["_data"]`` of records: the values by name.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict


def values(record: ArrayRecord | ConfigRecord | MetricRecord | RecordDict) -> dict[str, Any]:
    """Return what a record holds; not to be changed."""
    held: dict[str, Any] = record.__dict__["_data"]
    return held


def addressed(message: Message, node: int) -> Message:
    """Return ``Message(...)`` as an instruction was made, to another node; created when that one was."""
    return _message(message, message.content, {"_dst_node_id": node, "_message_id": ""})


def answer(content: RecordDict, message: Message) -> Message:
    """Return ``Message(content, reply_to=message)``."""
    source = message.__dict__["_metadata"].__dict__
    now = time.time()
    changed = {
        "_message_id": "",
        "_src_node_id": source["_dst_node_id"],
        "_dst_node_id": source["_src_node_id"],
        "_src_task_id": source["_dst_task_id"],
        "_dst_task_id": source["_src_task_id"],
        "_reply_to_message_id": source["_message_id"],
        "_created_at": now,
        "_ttl": source["_created_at"] + source["_ttl"] - now,
    }
    return _message(message, content, changed)


def _message(like: Message, content: RecordDict, changed: Mapping[str, Any]) -> Message:
    metadata, made = Metadata.__new__(Metadata), Message.__new__(Message)
    fields = metadata.__dict__
    fields.update(like.__dict__["_metadata"].__dict__)
    fields.update(changed)
    made.__dict__.update(_metadata=metadata, _content=content, _error=None)
    return made
