"""The client: a Flower ClientApp that answers training and evaluation messages.

It does not depend on what carries the messages: the same app runs in one process, on Ray and on a machine far
away. A failure is raised as a ``ClientError`` that names client, stage and cause; every carrier turns it into
an error reply, and the round goes on without this client.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedvision.aggregation.fixed_point import to_fixed_point
from fedvision.data.shards import Shard
from fedvision.errors import ClientError
from fedvision.flower import codec
from fedvision.flower.internals import PARTITION
from fedvision.flower.internals_message import answer
from fedvision.flower.query_codec import STATISTIC, decode_request, encode_sums
from fedvision.training.client_half import client_half
from fedvision.training.client_trainer import ClientTrainer


def build(trainer: ClientTrainer, test: Shard | None = None) -> ClientApp:
    """Return the ClientApp of a machine that hosts clients.

    Args:
        trainer: Trains and measures.
        test: The server's test images, where the machine has them, as in a simulation: it then answers
            requests to measure a model on a part of them.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def work(client: int) -> RecordDict:
            return codec.encode_update(trainer.train(codec.decode_task(message, client)))

        return _answer(message, context, "training", work)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def work(client: int) -> RecordDict:
            request = codec.decode_task(message, client)
            found = trainer.evaluate(client, request.round, request.state, client_half(request))
            return codec.encode_evaluation(found)

        return _answer(message, context, "evaluation", work)

    _answer_statistics(app, trainer)
    if test is not None:
        _answer_measurements(app, trainer, test)
    return app


def _answer_statistics(app: ClientApp, trainer: ClientTrainer) -> None:
    @app.query(STATISTIC.removeprefix("query."))
    def statistic(message: Message, context: Context) -> Message:
        def work(client: int) -> RecordDict:
            request = decode_request(message.content)
            sums, examples = trainer.statistic(client, request.round, request.state, request.query)
            return encode_sums(to_fixed_point(sums), examples, request.query.bits)

        return _answer(message, context, "statistic", work)


def _answer_measurements(app: ClientApp, trainer: ClientTrainer, test: Shard) -> None:
    @app.query(codec.MEASURE.removeprefix("query."))
    def measure(message: Message, context: Context) -> Message:
        def work(client: int) -> RecordDict:
            state, images = codec.decode_measure(message.content)
            return codec.encode_evaluation(
                trainer.measure(state, test.take(np.arange(images.start, images.stop)))
            )

        return _answer(message, context, "measurement", work)


def _answer(message: Message, context: Context, stage: str, work: Callable[[int], RecordDict]) -> Message:
    client = int(context.node_config[PARTITION])
    try:
        return answer(work(client), message)
    except ClientError:
        raise
    except (Exception, SystemExit) as error:
        raise ClientError(client, stage, _cause(error)) from error


def _cause(error: BaseException) -> str:
    """Return an exception as one sentence with the place it came from; no path of the machine."""
    frames = traceback.extract_tb(error.__traceback__)
    # An operating system's error names the file; what it says of the cause is enough.
    detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' * bool(detail)}{detail}{place}"
