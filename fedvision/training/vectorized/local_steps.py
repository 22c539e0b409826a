"""The local steps of K clients at once: the loop of ``fit``, with a dimension of clients before all others.

Torch's own optimisers, which work element by element, step on stacked parameters [K, ...] (see ``stack``).
So kernels are launched as often as for a single client, which is what small models wait for on a GPU; where
even that is too often, ``recorded`` plays the steps back. Batches, augmentation, losses, algorithms and
schedules are those of ``fit``, and so is the result but for the order of float32 sums. What cannot be stacked
is named by ``fedvision.training.vectorized.vmap_support``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from fedvision.data.shards import Shard
from fedvision.models.freezing import training_mode
from fedvision.models.state import floating
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.evaluate import Evaluation
from fedvision.training.loop import LoopSettings, has_batch_norm, positions, rate
from fedvision.training.vectorized.batch_schedule import BatchSchedule, stacks
from fedvision.training.vectorized.client_batch import ClientBatch, ClientBatchResult
from fedvision.training.vectorized.client_stack import ClientStack, StackedClientAlgorithm, fill
from fedvision.training.vectorized.cuda_graph import CudaGraphRunner
from fedvision.training.vectorized.device_cache import DeviceDatasetCache
from fedvision.types import LossFn, State, TrainRequest


def fit_many(
    model: nn.Module,
    shards: Sequence[Shard],
    requests: Sequence[TrainRequest],
    *,
    loss: Callable[[torch.Tensor], LossFn],
    counts: torch.Tensor,
    algorithms: Sequence[ClientAlgorithm],
    settings: LoopSettings,
    memories: Sequence[State] = (),
    personals: Sequence[State] = (),
    measured: Sequence[Evaluation | None] = (),
    chunk: int = 0,
    device_cache: DeviceDatasetCache | None = None,
    recorded: CudaGraphRunner | None = None,
) -> Iterator[tuple[list[int], ClientBatchResult]]:
    """Train a model on many clients' shards, each from its task's state, as ``fit`` would.

    Args:
        model: The network, on ``settings.device``, one that ``supports_vmap`` passes; its tensors stay.
        shards: Each client's training images, at least one; all images have one shape.
        requests: Each client's task, all of one round.
        loss: Class counts [K, C] of some clients -> ``loss(logits [K, B, C], labels [K, B]) -> [K, B]``.
        counts: Each client's class counts [K, C], on the device.
        algorithms: What the method adds, one object for each client, all of one class.
        settings: Optimiser, transforms, device, seed.
        memories: What the algorithm returned for each client before; empty where nobody keeps anything.
        personals: Each client's tensors that do not travel; what is left out is as in the model.
        measured: What each client counted before, to be handed on.
        chunk: Clients that are trained at once; 0 trains all at once.
        device_cache: Holds image sets on the device.
        recorded: Plays steps back, where it can.

    Yields:
        Places in ``requests`` and these clients after their training.

    Raises:
        ValueError: The tasks belong to several rounds.
        ConfigError: A task's state is not that of the model.
        ClientError: An algorithm lacks something.
    """
    if len({request.round for request in requests}) > 1:
        raise ValueError("the clients of a stack have one learning rate: give them tasks of one round")
    training_mode(model)
    norm, both = has_batch_norm(model), zip(shards, requests, strict=True)
    batches = [list(positions(len(shard), request, settings, norm)) for shard, request in both]
    for places in stacks(batches, chunk or len(requests)):
        own = [requests[i] for i in places]
        plan = BatchSchedule.make(
            [shards[i] for i in places], own, [batches[i] for i in places], settings, device_cache
        )
        who = ClientBatch.of(
            model,
            own,
            [personals[i] if personals else {} for i in places],
            algorithms=[algorithms[i] for i in places],
            memories=[memories[i] if memories else {} for i in places],
            counts=counts[places],
            measured=[measured[i] if measured else None for i in places],
        )
        stacked = None if recorded is None else recorded.train(plan, who, loss)
        yield places, _train(model, who, plan, loss, settings) if stacked is None else stacked


def _train(
    model: nn.Module,
    who: ClientBatch,
    plan: BatchSchedule,
    loss: Callable[[torch.Tensor], LossFn],
    settings: LoopSettings,
) -> ClientBatchResult:
    """Take all steps of a stack and close the round."""
    own, clients, device = floating(model), len(who.requests), settings.device
    tensors = {
        name: own[name].detach().new_empty((clients, *own[name].shape))
        for name in [*who.trained, *who.per_client]
    }
    for name, values in {**who.trained, **who.per_client}.items():
        fill(tensors[name], values)
    trained = {name: tensors[name] for name in who.trained}
    lr, rates = settings.lr(who.requests[0].round), [rate(request) for request in who.requests]
    lrs = [lr * own for own in rates]
    alike = len(set(rates)) == 1
    parameters = {name: nn.Parameter(tensor) for name, tensor in trained.items()}
    algorithm = StackedClientAlgorithm(model, trained, who)
    stack = ClientStack(
        model=model,
        settings=settings,
        parameters=parameters,
        own={name: tensors[name] for name in who.per_client},
        shared=who.shared,
        algorithm=algorithm,
        groups=algorithm.groups,
        numbers=algorithm.numbers,
        optimizer=settings.make_optimizer(list(parameters.values()), lrs[0] if alike else lr),
        scales=None if alike else torch.tensor(rates, device=device),
    )
    sums, active = torch.zeros(clients, device=device), 0
    for step, count in enumerate(plan.active):
        if count != active:
            active, current = count, loss(who.counts[:count])
            stack.narrow(count)
        sums[:active] += stack.step(plan.images, plan.labels, plan.slots(step), current)
    return ClientBatchResult(
        model=model,
        who=who,
        plan=plan,
        tensors=tensors,
        shared=who.shared,
        sums=sums,
        ends=algorithm.finish(plan.steps, lrs),
    )
