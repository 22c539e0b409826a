"""Errors of plug-in code on the server, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from fedvision.errors import FedVisionError, RunError, with_kind

T = TypeVar("T")


class Stream(Generic[T]):
    """Replies on their way into code of others; what their carrier raises is not that code's fault."""

    def __init__(self, replies: Iterable[T]) -> None:
        self._replies = replies
        self.raised: BaseException | None = None
        """What the carrier raised."""

    def __iter__(self) -> Iterator[T]:
        try:
            # No "yield from": that would close the carrier's generator with a reader that stops early.
            for reply in self._replies:
                yield reply
                # Let go before the next one is made, or two models are in memory.
                del reply
        except BaseException as error:
            self.raised = error
            raise


@contextmanager
def guarded(where: str, stream: Stream[Any] | None = None) -> Iterator[None]:
    """Turn what code of others raises into an error of the run.

    Args:
        where: Round, method and whose it is.
        stream: What that code reads meanwhile.

    Raises:
        RunError: Whatever was raised, ``sys.exit()`` included. What the stream raised, errors of this package
            and Ctrl-C pass as they are.
    """
    try:
        yield
    except FedVisionError:
        raise
    except (Exception, SystemExit) as error:
        if stream is not None and error is stream.raised:
            raise
        raise RunError(f"{where} raised {with_kind(error)}; correct it and resume") from error
