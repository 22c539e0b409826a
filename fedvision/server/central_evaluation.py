"""Measure a model on the server's test images, the work spread over the processes that host clients."""

from __future__ import annotations

import itertools
import math

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedvision.errors import RunError
from fedvision.flower import codec
from fedvision.flower.client_registry import ClientRegistry
from fedvision.server.phase_result import PhaseResult, Undecoded
from fedvision.tasks.stats import MetricStats
from fedvision.training.evaluate import Evaluation
from fedvision.types import State

PARTS = 32
"""Parts of the test images at most: enough to keep as many processes busy."""


def evaluate_centrally(
    grid: Grid, client_registry: ClientRegistry, state: State, *, images: int, batch_size: int
) -> Evaluation:
    """Return the counts over all test images.

    The parts are whole batches and the same for every engine, and they are added in order, so neither counts
    nor loss depend on who measured what.

    Args:
        grid: Carries the requests to processes that hold the test images.
        client_registry: The federation's members.
        state: The travelling tensors to measure.
        images: N, the number of test images.
        batch_size: Images a forward pass.

    Raises:
        RunError: A part could not be measured.
    """
    arrays = codec.encode_state(state)
    clients = client_registry.present(grid)
    messages = [
        Message(codec.encode_measure(arrays, part), client_registry.node(clients[number]), codec.MEASURE)
        for number, part in enumerate(_parts(images, batch_size, min(PARTS, len(clients))))
    ]
    exchange = PhaseResult(client_registry=client_registry, stage="measurement", decoder=Undecoded())
    parts = [codec.decode_evaluation(reply.content) for reply in exchange.send(grid, messages, ordered=True)]
    if exchange.refused:
        raise RunError(f"the server's test images could not be measured: {exchange.refused[0]['reason']}")
    return Evaluation(
        stats=MetricStats.total([part.stats for part in parts]),
        loss_sum=math.fsum(part.loss_sum for part in parts),
    )


def _parts(images: int, batch_size: int, most: int) -> list[range]:
    batches = -(-images // batch_size)
    edges = np.linspace(0, batches, min(most, batches) + 1).round().astype(int) * batch_size
    return [range(int(a), min(int(b), images)) for a, b in itertools.pairwise(edges)]
