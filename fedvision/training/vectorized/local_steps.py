"""The local steps of K clients at once: the loop of ``fit``, with a dimension of clients before all others.

Torch's own optimisers, which work element by element, step on stacked parameters [K, ...] (``client_stack``).
So kernels are launched as often as for a single client, which is what small models wait for on a GPU; where
even that is too often, ``cuda_graph`` plays the steps back. Batches, augmentation, losses, algorithms and
schedules are those of ``fit``, and so is the result but for the order of float32 sums. What cannot be stacked
is named by ``fedvision.training.vectorized.vmap_support``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from fedvision.models.freezing import training_mode
from fedvision.models.state import floating
from fedvision.training.loop import LoopSettings, has_batch_norm, positions, rate
from fedvision.training.vectorized.batch_schedule import BatchSchedule, longest_first
from fedvision.training.vectorized.client_batch import ClientBatch, ClientBatchResult, ClientJob
from fedvision.training.vectorized.client_stack import ClientStack, StackedClientAlgorithm, fill
from fedvision.training.vectorized.cuda_graph import CudaGraphRunner
from fedvision.training.vectorized.device_cache import DeviceDatasetCache
from fedvision.types import LossFn


def fit_many(
    model: nn.Module,
    jobs: Sequence[ClientJob],
    *,
    loss: Callable[[torch.Tensor], LossFn],
    settings: LoopSettings,
    device_cache: DeviceDatasetCache | None = None,
    recorded: CudaGraphRunner | None = None,
) -> tuple[list[int], ClientBatchResult]:
    """Train a model on many clients' shards, each from its task's state, as ``fit`` would.

    Args:
        model: The network, on ``settings.device``, one that ``supports_vmap`` passes; its tensors stay.
        jobs: What each client does: images of one shape, tasks of one round, algorithms of one class.
        loss: Class counts [K, C] of some clients -> their loss, outputs and targets [K, B, ...] -> [K, B].
        settings: Optimiser, transforms, device, seed.
        device_cache: Holds image sets on the device.
        recorded: Plays steps back, where it can.

    Returns:
        Places in ``jobs`` the longest first, and these clients after their training.

    Raises:
        ValueError: The tasks belong to several rounds.
        ConfigError: A task's state is not that of the model.
        ClientError: An algorithm lacks something.
    """
    if len({job.request.round for job in jobs}) > 1:
        raise ValueError("the clients of a stack have one learning rate: give them tasks of one round")
    training_mode(model)
    for job in jobs:
        job.algorithm.lr = settings.lr(job.request.round) * rate(job.request)
    norm = has_batch_norm(model)
    batches = [list(positions(job.shard, job.request, settings, norm)) for job in jobs]
    places = longest_first(batches)
    own = [jobs[i] for i in places]
    plan = BatchSchedule.make(
        [job.shard for job in own],
        [job.request for job in own],
        [batches[i] for i in places],
        settings,
        device_cache,
    )
    who = ClientBatch.of(model, own, settings.device)
    stacked = None if recorded is None else recorded.train(plan, who, loss)
    return places, _train(model, who, plan, loss, settings) if stacked is None else stacked


def _train(
    model: nn.Module,
    who: ClientBatch,
    plan: BatchSchedule,
    loss: Callable[[torch.Tensor], LossFn],
    settings: LoopSettings,
) -> ClientBatchResult:
    """Take all steps of a stack and close the round."""
    own, clients, device = floating(model), len(who.jobs), settings.device
    tensors = {
        name: own[name].detach().new_empty((clients, *own[name].shape))
        for name in [*who.trained, *who.per_client]
    }
    for name, values in {**who.trained, **who.per_client}.items():
        fill(tensors[name], values)
    trained = {name: tensors[name] for name in who.trained}
    lr, rates = settings.lr(who.jobs[0].request.round), [rate(job.request) for job in who.jobs]
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
