"""The client: a Flower ClientApp that answers roster, training and evaluation messages.

It knows nothing of what carries the messages: the same app runs in one process, on Ray and on a machine far
away. A failure is raised as a ``ClientError`` that names client, stage and cause; every carrier turns it into
an error reply, and the round goes on without this client.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedvision.errors import ClientError
from fedvision.flower import codec
from fedvision.flower.internals import PARTITION
from fedvision.training.worker import Worker


def build(worker: Worker) -> ClientApp:
    """Return the ClientApp of a machine that hosts clients."""
    app = ClientApp()

    @app.query("roster")
    def roster(message: Message, context: Context) -> Message:
        def introduce(client: int) -> RecordDict:
            return codec.encode_roster(codec.RosterEntry(client=client, counts=worker.counts(client)))

        return _answer(message, context, "data", introduce)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def work(client: int) -> RecordDict:
            return codec.encode_update(worker.train(codec.decode_task(message, client)))

        return _answer(message, context, "training", work)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def work(client: int) -> RecordDict:
            task = codec.decode_task(message, client)
            return codec.encode_evaluation(worker.evaluate(client, task.round, task.state))

        return _answer(message, context, "evaluation", work)

    return app


def _answer(message: Message, context: Context, stage: str, work: Callable[[int], RecordDict]) -> Message:
    client = int(context.node_config[PARTITION])
    try:
        return Message(work(client), reply_to=message)
    except ClientError:
        raise
    except Exception as error:
        raise ClientError(client, stage, _cause(error)) from error


def _cause(error: Exception) -> str:
    """Return an exception as one sentence with the place it came from; no path of the machine."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
