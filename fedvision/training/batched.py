"""The local steps of K clients at once: the loop of ``fit``, with a dimension of clients before all others.

One forward pass under ``torch.func.vmap`` serves K models (a convolution becomes one grouped convolution, a
linear layer one batched product); the sum of all clients' losses has as its gradient each client's own, as no
client's loss depends on another's weights; and torch's own optimisers, which work element by element, step on
stacked parameters [K, ...]. So kernels are launched as often as for a single client, which is what small
models wait for on a GPU. Batches, augmentation, losses, objectives and schedules are those of ``fit``, and so
is the result but for the order of float32 sums.

The gradient is taken outside ``vmap``: 0.8 of the time of ``vmap(grad)`` on a CPU, and a parameter without
gradient stays one without. What cannot be stacked is named by ``fedvision.training.stackable``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedvision.data.shards import Shard
from fedvision.models.state import check_state, floating, kept
from fedvision.training.loop import (
    LocalUpdate,
    LoopSettings,
    autocast,
    has_batch_norm,
    learning_rate,
    positions,
    rate,
)
from fedvision.training.objectives import Objective
from fedvision.training.plan import Plan, stacks
from fedvision.types import LossFn, State, Task

StackedLoss = Callable[[Sequence[int]], LossFn]
"""Places of K clients -> ``loss(logits [K, B, C], labels [K, B]) -> [K, B]``, a row for each client."""


def fit_many(
    model: nn.Module,
    shards: Sequence[Shard],
    tasks: Sequence[Task],
    *,
    loss: StackedLoss,
    objectives: Sequence[Objective],
    settings: LoopSettings,
    memories: Sequence[State] = (),
    personals: Sequence[State] = (),
    chunk: int = 0,
) -> list[LocalUpdate]:
    """Train a model on many clients' shards, each from its task's state, and return what ``fit`` would.

    Args:
        model: The network, on ``settings.device``, one that ``stackable`` passes; its tensors stay.
        shards: Each client's training images, at least one; all images have one shape.
        tasks: Each client's task, all of one round.
        loss: Per-example loss of clients by their places in ``tasks``.
        objectives: What the method adds, one object for each client, all of one class.
        settings: Optimiser, transforms, device, seed.
        memories: What the objective returned for each client before; empty where nobody keeps anything.
        personals: Each client's tensors that do not travel; what is left out is as in the model.
        chunk: Clients that are trained at once; 0 trains all at once.

    Returns:
        The updates in the order of the tasks.

    Raises:
        ValueError: The tasks belong to several rounds.
        ConfigError: A task's state is not that of the model.
        ClientError: An objective lacks something.
    """
    if len({task.round for task in tasks}) > 1:
        raise ValueError("the clients of a stack have one learning rate: give fit_many tasks of one round")
    model.train()
    batches = [
        list(positions(len(shard), task, settings, has_batch_norm(model)))
        for shard, task in zip(shards, tasks, strict=True)
    ]
    updates: dict[int, LocalUpdate] = {}
    for places in stacks(batches, chunk or len(tasks)):
        own = [tasks[i] for i in places]
        plan = Plan.make([shards[i] for i in places], own, [batches[i] for i in places], settings)
        stack = _Stack(model, own, [personals[i] if personals else {} for i in places], settings)
        chosen = [objectives[i] for i in places]
        stack.begin(chosen, [memories[i] if memories else {} for i in places])
        sums = stack.run(plan, lambda active, places=places: loss(places[:active]))  # type: ignore[misc]
        sizes = [len(shards[i]) for i in places]
        updates |= zip(places, stack.finish(plan, sums, sizes), strict=True)
    return [updates[i] for i in range(len(tasks))]


class _Stack:
    """K clients' tensors [K, ...], the optimiser that moves them, and their objectives."""

    def __init__(
        self, model: nn.Module, tasks: Sequence[Task], personals: Sequence[State], settings: LoopSettings
    ) -> None:
        self.model, self.tasks, self.settings = model, tasks, settings
        for task in tasks:
            check_state(model, task.state)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        starts = [personal | task.state for personal, task in zip(personals, tasks, strict=True)]
        self.fixed: State = {}
        self.full: State = {}
        self.still: State = {}
        for name, own in floating(model).items():
            values = [start.get(name, own) for start in starts]
            if name in trained:
                self.full[name] = _stacked(values, own)
            elif _same(values):
                self.fixed[name] = values[0].detach().to(own)
            else:
                self.still[name] = _stacked(values, own)
        self.parameters = {name: nn.Parameter(tensor) for name, tensor in self.full.items()}
        self.lr = learning_rate(settings.training, tasks[0].round, settings.rounds)
        self.rates = [rate(task) for task in tasks]
        alike = len(set(self.rates)) == 1
        self.lr, self.rates = (
            (self.lr * self.rates[0], [1.0] * len(tasks)) if alike else (self.lr, self.rates)
        )
        self.scales = None if alike else torch.tensor(self.rates, device=settings.device)
        self.optimizer = settings.make_optimizer(list(self.parameters.values()), self.lr)
        self.objectives: Sequence[Objective] = ()

    def begin(self, objectives: Sequence[Objective], memories: Sequence[State]) -> None:
        """Show each objective its client's parameters, as views of the stack."""
        self.objectives = objectives
        self.views = [
            {name: nn.Parameter(tensor[k]) for name, tensor in self.full.items()}
            for k in range(len(self.tasks))
        ]
        for objective, view, task, memory in zip(objectives, self.views, self.tasks, memories, strict=True):
            objective.begin(view, task, memory)

    def run(self, plan: Plan, loss: Callable[[int], LossFn]) -> torch.Tensor:
        """Take all steps; return each client's sum of losses [K], on the device."""
        sums = torch.zeros(len(self.tasks), device=self.settings.device)
        active, current = 0, None
        # The fused attention kernels have no batching rule, their plain form has.
        with sdpa_kernel(SDPBackend.MATH):
            for step in range(len(plan.active)):
                if current is None or plan.active[step] < active:
                    active = plan.active[step]
                    self._keep(active)
                    current = loss(active)
                sums[:active] += self._step(plan, step, current)
        return sums

    def _step(self, plan: Plan, step: int, loss: LossFn) -> torch.Tensor:
        """Move the active clients; return each one's sum of losses over the batch [K]."""
        clients, slots = plan.slots(step)
        weights = plan.weights[step, clients, slots]
        x, labels = self._batch(plan, step)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.settings.training, self.settings.device):
            still = {name: tensor[clients] for name, tensor in self.still.items()}
            losses = loss(vmap(self._logits)({**self.parameters, **still}, x), labels)
        losses = losses.masked_fill(weights == 0, 0)
        (losses * weights).sum().backward()  # type: ignore[no-untyped-call]
        self._adjust(plan.active[step])
        if self.settings.training.clip_norm:
            clip_each([p.grad for p in self.parameters.values()], self.settings.training.clip_norm)
        self._move()
        return losses.detach().sum(1)

    @torch.no_grad()
    def _move(self) -> None:
        """Step; where clients have rates of their own, each goes its multiple of the common step.

        That is the step at its own rate: optimisers that ``scalable`` lets through move by the rate times
        what does not depend on it.
        """
        before = [p.clone() for p in self.parameters.values()] if self.scales is not None else []
        self.optimizer.step()
        for parameter, old in zip(self.parameters.values(), before, strict=False):
            assert self.scales is not None
            scales = self.scales[: len(old)].view(-1, *[1] * (old.dim() - 1))
            parameter.copy_(old + (parameter - old) * scales)

    def _batch(self, plan: Plan, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a step's images [K, B, channels, H, W], normalised and augmented, and labels [K, B]."""
        clients, slots = plan.slots(step)
        at = plan.at[step, clients, slots]
        transform = self.settings.transform
        flat = at.flatten()
        x = transform.normalise(plan.images[flat], channels_last=self.settings.training.channels_last)
        drawn = {name: value[..., step, clients, slots].flatten(-2) for name, value in plan.drawn.items()}
        x = transform.apply(x, drawn)
        return x.view(*at.shape, *x.shape[1:]), plan.labels[flat].view(at.shape)

    def _logits(self, tensors: State, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = functional_call(self.model, {**self.fixed, **tensors}, (images,))
        return logits

    @torch.no_grad()
    def _adjust(self, active: int) -> None:
        """Let the objectives change the gradients of the first ``active`` clients."""
        kind = type(self.objectives[0])
        if kind is Objective:
            return
        for name, parameter in self.parameters.items():
            rows = [None] * active if parameter.grad is None else parameter.grad.unbind(0)
            for view, row in zip(self.views, rows, strict=False):
                view[name].grad = row
        kind.adjust_all(self.objectives[:active])

    def _keep(self, active: int) -> None:
        """Let all but the first ``active`` clients rest: the optimiser sees shorter views of the tensors."""
        for parameter in self.parameters.values():
            state = self.optimizer.state[parameter]
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[key] = value[:active]
            parameter.grad = None
            parameter.data = parameter.data[:active]

    def finish(self, plan: Plan, sums: torch.Tensor, sizes: Sequence[int]) -> list[LocalUpdate]:
        """Close the round: each client's tensors and facts, on the CPU."""
        ends = [
            objective.finish(steps, self.lr * own)
            for objective, steps, own in zip(self.objectives, plan.steps, self.rates, strict=True)
        ]
        stacked = {name: tensor.cpu() for name, tensor in {**self.full, **self.still}.items()}
        fixed = {name: tensor.cpu() for name, tensor in self.fixed.items()}
        at_home = kept(self.model, self.tasks[0].state)
        updates = []
        for k, (task, total, (tensors, memory)) in enumerate(
            zip(self.tasks, sums.tolist(), ends, strict=True)
        ):
            # Copies: a slice would keep the whole stack in memory, and share it with the other clients.
            own = {name: tensor[k] for name, tensor in stacked.items()} | fixed
            copies = {name: own[name].clone(memory_format=torch.contiguous_format) for name in own}
            updates.append(
                LocalUpdate(
                    state={name: copies[name] for name in task.state},
                    examples=sizes[k],
                    loss=total / plan.examples[k],
                    steps=plan.steps[k],
                    tensors=tensors,
                    memory=memory,
                    personal={name: copies[name] for name in at_home},
                )
            )
        return updates


@torch.no_grad()
def clip_each(gradients: Sequence[torch.Tensor | None], limit: float) -> None:
    """Scale each client's gradients [K, ...] in place so that their joint norm is at most ``limit``.

    What ``torch.nn.utils.clip_grad_norm_`` does for one client (Pascanu et al. 2013, arXiv 1211.5063).
    """
    present = [gradient for gradient in gradients if gradient is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in present])
    factors = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in present:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


def _same(values: Sequence[torch.Tensor]) -> bool:
    return all(value is values[0] or torch.equal(value.to(values[0]), values[0]) for value in values)


def _stacked(values: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy [K, ...] with the device and dtype of one client's tensor."""
    if all(value is values[0] for value in values):
        alone = values[0].detach().to(like)
        return alone.expand(len(values), *alone.shape).clone(memory_format=torch.contiguous_format)
    return torch.stack([value.detach().to(like) for value in values]).contiguous()
