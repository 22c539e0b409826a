"""The local loop against a loop written by hand, and its parts one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision import seeding
from fedvision.config import TrainingConfig, TransformConfig
from fedvision.data.shards import Shard
from fedvision.data.transforms import prepare
from fedvision.errors import PluginError
from fedvision.tasks.classification import Classification
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.loop import LoopSettings, TrainResult, fit, learning_rate, optimizer_maker
from fedvision.types import LossFn, PluginSpec, State, TrainRequest

N, SIZE, CLASSES = 21, 6, 3
CPU = torch.device("cpu")


def plain(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def make_shard(examples: int = N) -> Shard:
    rng = np.random.default_rng(0)
    return Shard(
        images=rng.integers(0, 256, (examples, SIZE, SIZE, 1), np.uint8),
        labels=rng.integers(0, CLASSES, examples),
        indices=np.arange(examples),
    )


def make_model(*extra: nn.Module) -> nn.Module:
    with seeding.torch_global(1, "model"):
        return nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, CLASSES), *extra)


def settings(transforms: TransformConfig | None = None, **training: Any) -> LoopSettings:
    config = TrainingConfig(**{"lr": 0.1, "batch_size": 8, **training})
    transform = prepare(transforms or TransformConfig(), 1)
    return LoopSettings(
        task=Classification(), training=config, transform=transform, device=CPU, seed=5, rounds=10
    )


def state_of(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def train(model: nn.Module, chosen: LoopSettings, shard: Shard | None = None, **request: Any) -> TrainResult:
    task = TrainRequest(**{"round": 2, "client": 4, "state": state_of(model), **request})
    return fit(model, shard or make_shard(), task, loss=plain, algorithm=ClientAlgorithm(), settings=chosen)


def by_hand(model: nn.Module, epochs: int, momentum: float = 0.0) -> tuple[State, float]:
    """The same training written out: shuffled epochs, mean loss, plain SGD with momentum."""
    shard = make_shard()
    x = (torch.from_numpy(shard.images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    y = torch.from_numpy(shard.labels)
    rng = seeding.numpy_stream(5, "batches", 2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    total = 0.0
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(N))
        for batch in order.split(8):
            optimizer.zero_grad()
            losses = plain(model(x[batch]), y[batch])
            losses.mean().backward()
            optimizer.step()
            total += float(losses.detach().sum())
    return state_of(model), total / (N * epochs)


@pytest.mark.parametrize(("epochs", "momentum"), [(1, 0.0), (3, 0.9)])
def test_the_loop_is_the_one_written_by_hand(epochs: int, momentum: float) -> None:
    expected, loss = by_hand(make_model(), epochs, momentum)
    update = train(make_model(), settings(epochs=epochs, momentum=momentum))
    for name, tensor in expected.items():
        torch.testing.assert_close(update.state[name], tensor, rtol=1e-5, atol=1e-6)
    assert update.loss == pytest.approx(loss, rel=1e-5)
    assert (update.examples, update.steps) == (N, 3 * epochs)


def test_a_state_is_a_copy_that_the_next_client_does_not_change() -> None:
    model = make_model()
    first = train(model, settings())
    before = {name: tensor.clone() for name, tensor in first.state.items()}
    train(model, settings(), client=5)
    assert all(torch.equal(first.state[name], before[name]) for name in before)


def test_training_begins_from_the_requests_state() -> None:
    """Training begins from the task's state and not from the model as left."""
    model = make_model()
    start = state_of(model)
    first = train(model, settings(), state=start)
    second = train(model, settings(), state=start)
    assert all(torch.equal(first.state[name], second.state[name]) for name in start)


def test_rounds_and_clients_draw_their_own_batches() -> None:
    results = [
        train(make_model(), settings(), round=r, client=c).state["1.weight"]
        for r, c in [(1, 0), (1, 1), (2, 0)]
    ]
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_number_of_steps_replaces_epochs() -> None:
    assert train(make_model(), settings(steps=7)).steps == 7
    assert train(make_model(), settings(steps=2)).steps == 2


def test_the_loss_is_the_mean_over_images_not_over_batches() -> None:
    # With no learning rate to speak of, the mean loss is the model's own on the whole shard.
    model = make_model()
    shard = make_shard()
    x = (torch.from_numpy(shard.images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = plain(model(x), torch.from_numpy(shard.labels)).mean()
    assert train(model, settings(lr=1e-9)).loss == pytest.approx(float(expected.detach()), rel=1e-5)


def test_dropout_repeats_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one = train(make_model(nn.Dropout(0.5)), settings()).state["1.weight"]
    torch.rand(3)
    two = train(make_model(nn.Dropout(0.5)), settings()).state["1.weight"]
    assert torch.equal(one, two)
    torch.random.set_rng_state(before)


def test_last_batch_of_one_with_batch_norm() -> None:
    """A last batch of one joins the one before where there is batch norm."""
    model = make_model(nn.BatchNorm1d(CLASSES))
    update = train(
        model,
        settings(batch_size=10),
        state={k: v for k, v in state_of(model).items() if v.is_floating_point()},
    )
    assert update.steps == 2
    assert train(make_model(), settings(batch_size=10)).steps == 3


def test_clipping_limits_a_step() -> None:
    model = make_model()
    start = state_of(model)
    update = train(model, settings(steps=1, clip_norm=0.01))
    moved = torch.sqrt(sum(((update.state[n] - start[n]) ** 2).sum() for n in start))
    assert float(moved) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_mixup_blends_two_losses_and_trains() -> None:
    one = train(make_model(), settings(TransformConfig(mixup=0.4)))
    two = train(make_model(), settings(TransformConfig(mixup=0.4)))
    off = train(make_model(), settings())
    assert torch.equal(one.state["1.weight"], two.state["1.weight"])
    assert not torch.equal(one.state["1.weight"], off.state["1.weight"])


def test_an_algorithm_sees_mixups_own_labels_and_the_task_loss_counts_both() -> None:
    """With the label as loss, an image's is w label + (1 - w) partner's: the sum is that of the labels."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watching(ClientAlgorithm):
        def loss(self, model: Any, x: torch.Tensor, labels: torch.Tensor, task_loss: Any) -> torch.Tensor:
            losses = super().loss(model, x, labels, task_loss)
            seen.append((labels, losses.detach()))
            return losses

    def label(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return labels + 0 * logits.sum(1)

    model, shard = make_model(), make_shard()
    request = TrainRequest(round=1, client=0, state=state_of(model))
    chosen = settings(TransformConfig(mixup=0.4), batch_size=64)
    fit(model, shard, request, loss=label, algorithm=Watching(), settings=chosen)
    ((labels, blended),) = seen
    assert sorted(labels.tolist()) == sorted(shard.labels.tolist())
    assert not torch.equal(blended, labels.float())
    assert float(blended.sum()) == pytest.approx(int(labels.sum()), rel=1e-5)


def test_bfloat16_computes_coarsely_and_keeps_float32_weights() -> None:
    fine, coarse = (
        train(make_model(), settings(precision=p)).state["1.weight"] for p in ("float32", "bfloat16")
    )
    assert coarse.dtype is torch.float32
    assert not torch.equal(fine, coarse)
    torch.testing.assert_close(fine, coarse, atol=0.05, rtol=0.1)


def test_both_memory_layouts_agree() -> None:
    results = [train(make_model(), settings(channels_last=flag)).state["1.weight"] for flag in (True, False)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_optimisers_take_their_own_keys_and_refuse_momentum_they_lack() -> None:
    parameters = [nn.Parameter(torch.zeros(1))]
    spec = PluginSpec(use="AdamW", args={"betas": [0.8, 0.9]})
    optimizer = optimizer_maker(TrainingConfig(optimizer=spec, weight_decay=0.1))(parameters, 0.5)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], list(group["betas"])) == (0.5, 0.1, [0.8, 0.9])
    with pytest.raises(PluginError, match="'AdamW' has none; set momentum = 0"):
        optimizer_maker(TrainingConfig(optimizer=spec, momentum=0.9))


def any_keys(params: Any, **keys: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, **keys)


def test_what_an_optimiser_does_not_take_is_not_left_out_in_silence() -> None:
    with pytest.raises(
        PluginError, match=r"training.weight_decay: .* 'rprop' has none; set weight_decay = 0"
    ):
        optimizer_maker(TrainingConfig(optimizer=PluginSpec(use="rprop"), weight_decay=0.1))
    optimizer_maker(TrainingConfig(optimizer=PluginSpec(use="rprop")))([nn.Parameter(torch.zeros(1))], 0.5)
    with pytest.raises(PluginError, match=r"training.lr: .* takes no argument 'lr'; let its factory name it"):
        optimizer_maker(TrainingConfig(optimizer=PluginSpec(use=f"{__name__}:any_keys")))


def test_the_learning_rate_follows_its_schedule() -> None:
    training = TrainingConfig(lr=0.4, schedule=PluginSpec(use="step", args={"every": 2, "factor": 0.5}))
    assert [learning_rate(training, round, 6) for round in range(1, 7)] == [0.4, 0.4, 0.2, 0.2, 0.1, 0.1]


def test_algorithms_see_gradients_before_the_step() -> None:
    class Still(ClientAlgorithm):
        """Takes every gradient away."""

        def begin(self, model: Any, parameters: Any, request: TrainRequest, memory: State) -> None:
            self.parameters = list(parameters.values())

        def after_backward(self) -> None:
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)

    model = make_model()
    start = state_of(model)
    request = TrainRequest(round=1, client=0, state=start)
    update = fit(model, make_shard(), request, loss=plain, algorithm=Still(), settings=settings())
    assert all(torch.equal(update.state[name], start[name]) for name in start)


class _TwiceTheModel(ClientAlgorithm):
    """The task's loss of doubled logits plus the label: a loss that sees model, images and labels."""

    def loss(self, model: Any, x: torch.Tensor, labels: torch.Tensor, task_loss: Any) -> torch.Tensor:
        return task_loss(2 * model(x), labels) + labels


def test_the_algorithms_loss_replaces_the_tasks() -> None:
    chosen = settings(batch_size=64)
    model = make_model()
    shard, request = make_shard(), TrainRequest(round=1, client=0, state=state_of(model))
    update = fit(model, shard, request, loss=plain, algorithm=_TwiceTheModel(), settings=chosen)
    twin = make_model().train()
    images, labels = shard.batch(np.arange(len(shard)))
    x = chosen.transform.normalise(torch.from_numpy(images), channels_last=chosen.training.channels_last)
    target = torch.from_numpy(labels)
    expected = (plain(2 * twin(x), target) + target).mean()
    assert update.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    expected.backward()
    for name, parameter in twin.named_parameters():
        moved = parameter - chosen.training.lr * parameter.grad
        torch.testing.assert_close(update.state[name], moved.detach(), rtol=1e-4, atol=1e-6)


class _Looking(ClientAlgorithm):
    """Keeps what it sees before the first step, and what it draws in each."""

    draws = True

    def begin(self, *begun: Any) -> None:
        self.order = ["begin"]
        self.drawn: list[float] = []

    def survey(self, model: nn.Module, batches: Any) -> None:
        self.order.append("survey")
        self.training, self.with_gradients = model.training, torch.is_grad_enabled()
        rows = list(batches)
        self.sizes = [len(x) for x, _ in rows]
        self.images, self.labels = (torch.cat(column) for column in zip(*rows, strict=True))

    def loss(self, model: nn.Module, x: Any, labels: torch.Tensor, task_loss: LossFn) -> torch.Tensor:
        self.order.append("loss")
        assert model.training
        self.drawn.append(float(torch.rand((), generator=self.generator)))
        return super().loss(model, x, labels, task_loss)


def test_an_algorithm_sees_each_image_once_as_it_is_before_the_first_step() -> None:
    shard, algorithm = make_shard(), _Looking()
    model = make_model()
    request = TrainRequest(round=2, client=4, state=state_of(model))
    chosen = settings(TransformConfig(flip=True, cutout=2))
    fit(model, shard, request, loss=plain, algorithm=algorithm, settings=chosen)
    assert algorithm.order == ["begin", "survey", "loss", "loss", "loss"]
    assert not algorithm.training
    assert not algorithm.with_gradients
    assert algorithm.sizes == [8, 8, 5]
    plainly = (torch.from_numpy(shard.images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    torch.testing.assert_close(algorithm.images, plainly)
    assert torch.equal(algorithm.labels, torch.from_numpy(shard.labels))


def test_looking_ahead_and_drawing_change_nothing_of_the_training() -> None:
    model = make_model(nn.BatchNorm1d(CLASSES))
    start = state_of(model)
    expected = train(model, settings(TransformConfig(flip=True)))
    for round, client in ((2, 4), (3, 4), (2, 5)):
        request = TrainRequest(round=round, client=client, state=start)
        algorithms = [_Looking(), _Looking()]
        found = [
            fit(
                model,
                make_shard(),
                request,
                loss=plain,
                algorithm=one,
                settings=settings(TransformConfig(flip=True)),
            )
            for one in algorithms
        ]
        assert algorithms[0].drawn == algorithms[1].drawn
        own = algorithms[0].drawn
        if (round, client) == (2, 4):
            first = own
            assert all(torch.equal(found[0].state[name], expected.state[name]) for name in expected.state)
        else:
            assert own != first
