"""How a client says that its owner's policy does not allow a task, and how the server reads it."""

from __future__ import annotations

import json
import math

from fedvision.errors import MALFORMED, FedVisionError
from fedvision.formatting import one_line

AGAIN_S = 60.0
"""Seconds after which the server may ask again where no clock tells when."""
_YEAR_S = 365 * 86_400.0
"""In place of never, which JSON cannot say."""


class Declined(FedVisionError):
    """The owner's policy does not allow a task.

    Args:
        reason: One sentence.
        again: Seconds after which the server may ask again; infinite where it need not.
    """

    def __init__(self, reason: str, again: float = AGAIN_S) -> None:
        super().__init__(reason)
        self.again = again

    def to_text(self) -> str:
        """Return what an error reply says, as ``from_text`` reads it."""
        return json.dumps({"reason": str(self), "again": min(self.again, _YEAR_S)})

    @classmethod
    def from_text(cls, text: str) -> Declined:
        """Read what a client said; what is none of ``to_text``'s is the reason itself."""
        try:
            page = json.loads(text)
            reason, again = str(page["reason"]), float(page["again"])
        except MALFORMED:
            reason, again = text, AGAIN_S
        return cls(one_line(reason), again if 0 < again < math.inf else AGAIN_S)
