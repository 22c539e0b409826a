"""Client halves: FedProx's gradient against autograd, SCAFFOLD's variates against the paper's formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedvision.algorithms.fedprox import FedProxClient
from fedvision.algorithms.scaffold import ScaffoldClient
from fedvision.errors import ClientError
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import ClientConfig, TrainRequest

State = dict[str, torch.Tensor]


def _model(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def _floats(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _batch(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def _prox(model: nn.Module, mu: float) -> TrainRequest:
    return TrainRequest(
        round=1,
        client=3,
        state=_floats(model),
        algorithm="fedprox",
        client_config=ClientConfig(numbers={"mu": mu}),
    )


def _scaffold(model: nn.Module, control: State) -> TrainRequest:
    client_config = ClientConfig(tensors={"control": control})
    return TrainRequest(round=1, client=3, state=_floats(model), client_config=client_config)


def _noise(model: nn.Module, seed: int, size: float = 0.1) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(p.shape, generator=generator) for name, p in _parameters(model).items()}


def _steps(
    model: nn.Module,
    algorithm: ClientAlgorithm,
    request: TrainRequest,
    memory: State,
    *,
    steps: int = 3,
    lr: float = 0.1,
    momentum: float = 0.0,
) -> tuple[dict[str, State], State, list[State]]:
    """Train, and return what finish returned with the raw gradients of each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    algorithm.begin(model, _parameters(model), request, memory)
    raw = []
    for step in range(steps):
        optimizer.zero_grad()
        images, labels = _batch(step)
        nn.functional.cross_entropy(model(images), labels).backward()
        raw.append({name: p.grad.clone() for name, p in _parameters(model).items() if p.grad is not None})
        algorithm.after_backward()
        optimizer.step()
    tensors, memory_out = algorithm.finish(steps, lr)
    return tensors, memory_out, raw


def test_the_plain_algorithm_does_nothing() -> None:
    model, twin = _model(), _model()
    tensors, memory, _ = _steps(model, ClientAlgorithm(), _prox(model, 1.0), {"x": torch.ones(1)})
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        images, labels = _batch(step)
        nn.functional.cross_entropy(twin(images), labels).backward()
        optimizer.step()
    assert (tensors, memory) == ({}, {})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_prox_is_the_gradient_of_half_mu_times_the_squared_distance() -> None:
    mu, model = 0.3, _model()
    algorithm = FedProxClient()
    algorithm.begin(model, _parameters(model), request := _prox(model, mu), {})
    with torch.no_grad():
        for name, p in _parameters(model).items():
            p += _noise(model, 5)[name]
    images, labels = _batch()
    penalty = sum(((p - request.state[name]) ** 2).sum() for name, p in _parameters(model).items())
    (nn.functional.cross_entropy(model(images), labels) + 0.5 * mu * penalty).backward()
    expected = {name: p.grad for name, p in _parameters(model).items()}
    model.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    algorithm.after_backward()
    for name, p in _parameters(model).items():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-5, atol=1e-7)


def test_prox_keeps_the_model_nearer() -> None:
    distances = []
    for mu in (0.0, 1.0, 4.0):
        model = _model()
        request = _prox(model, mu)
        _steps(model, FedProxClient(), request, {}, steps=20)
        distances.append(
            sum(
                float((p.detach() - request.state[name]).square().sum())
                for name, p in _parameters(model).items()
            )
        )
    assert distances[0] > distances[1] > distances[2] > 0


def test_prox_without_mu_is_the_plain_loss_to_the_bit() -> None:
    model, twin = _model(), _model()
    _steps(model, FedProxClient(), _prox(model, 0.0), {})
    _steps(twin, ClientAlgorithm(), _prox(twin, 0.0), {})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_prox_needs_mu() -> None:
    model = _model()
    with pytest.raises(ClientError, match="client 3, training: FedProx got no number 'mu'"):
        FedProxClient().begin(
            model, _parameters(model), TrainRequest(round=1, client=3, state=_floats(model)), {}
        )


def test_scaffold_adds_c_minus_c_i_to_each_gradient() -> None:
    model = _model()
    c, own = _noise(model, 1), _noise(model, 2)
    algorithm = ScaffoldClient()
    algorithm.begin(model, _parameters(model), _scaffold(model, c), own)
    images, labels = _batch()
    nn.functional.cross_entropy(model(images), labels).backward()
    raw = {name: p.grad.clone() for name, p in _parameters(model).items() if p.grad is not None}
    algorithm.after_backward()
    for name, p in _parameters(model).items():
        torch.testing.assert_close(p.grad, raw[name] + c[name] - own[name])


def test_scaffold_is_option_ii_of_the_paper_for_plain_sgd() -> None:
    model = _model()
    c, own = _noise(model, 1), _noise(model, 2)
    request = _scaffold(model, c)
    tensors, memory, _ = _steps(model, ScaffoldClient(), request, own, steps=7, lr=0.05)
    assert set(tensors) == {"control"}
    for name, p in _parameters(model).items():
        expected = own[name] - c[name] + (request.state[name] - p.detach()) / (7 * 0.05)
        torch.testing.assert_close(memory[name], expected, rtol=1e-4, atol=2e-6)
        torch.testing.assert_close(tensors["control"][name], memory[name] - own[name])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_remembers_the_mean_gradient_whatever_the_momentum(momentum: float) -> None:
    model = _model()
    _, memory, raw = _steps(
        model, ScaffoldClient(), _scaffold(model, _noise(model, 1)), {}, steps=5, momentum=momentum
    )
    for name in memory:
        torch.testing.assert_close(
            memory[name], torch.stack([g[name] for g in raw]).mean(0), rtol=1e-5, atol=1e-7
        )


def test_scaffold_begins_from_zeros() -> None:
    model, twin = _model(), _model()
    tensors, memory, _ = _steps(model, ScaffoldClient(), _scaffold(model, {}), {})
    _steps(twin, ClientAlgorithm(), _scaffold(twin, {}), {})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(tensors["control"][name], memory[name]) for name in memory)
    assert memory.keys() == _parameters(model).keys()
    bare = TrainRequest(round=1, client=0, state=_floats(model))
    ScaffoldClient().begin(model, _parameters(model), bare, {})


def test_scaffold_without_a_step_changes_nothing() -> None:
    model = _model()
    own = _noise(model, 2)
    algorithm = ScaffoldClient()
    algorithm.begin(model, _parameters(model), _scaffold(model, _noise(model, 1)), own)
    tensors, memory = algorithm.finish(0, 0.1)
    assert all(torch.equal(memory[name], own[name]) for name in own)
    assert all(not change.any() for change in tensors["control"].values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scaffold_keeps_its_memory_when_the_model_is_lost(value: float) -> None:
    model = _model()
    own = _noise(model, 2)
    algorithm = ScaffoldClient()
    algorithm.begin(model, _parameters(model), _scaffold(model, _noise(model, 1)), own)
    nn.functional.cross_entropy(model(_batch()[0]), _batch()[1]).backward()
    algorithm.after_backward()
    with torch.no_grad():
        model[3].bias[1] = value
    tensors, memory = algorithm.finish(1, 0.1)
    assert all(torch.equal(memory[name], own[name]) for name in own)
    assert all(not change.any() for change in tensors["control"].values())


def test_scaffold_forgets_a_step_that_overflowed() -> None:
    model = _model()
    algorithm = ScaffoldClient()
    algorithm.begin(model, _parameters(model), _scaffold(model, {}), {})
    for value in (2.0, float("inf"), float("nan")):
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        algorithm.after_backward()
        assert (
            all(not torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
            or value == 2
        )
    tensors, memory = algorithm.finish(3, 0.1)
    assert all(torch.allclose(value, torch.tensor(2 / 3)) for value in memory.values())
    assert all(torch.isfinite(value).all() for value in tensors["control"].values())


@pytest.mark.parametrize("build", [FedProxClient, ScaffoldClient])
def test_frozen_parameters_buffers_and_what_stays_at_home_take_no_part(
    build: Callable[[], ClientAlgorithm],
) -> None:
    model = _model()
    model[0].weight.requires_grad_(False)
    request = _prox(model, 10.0)
    control = {name: torch.ones_like(value) for name, value in request.state.items()}
    state = {name: value for name, value in request.state.items() if not name.startswith("3.")}
    client_config = ClientConfig(numbers={"mu": 10.0}, tensors={"control": control})
    algorithm = build()
    algorithm.begin(
        model,
        dict(model.named_parameters()),
        TrainRequest(round=1, client=0, state=state, client_config=client_config),
        {},
    )
    with torch.no_grad():
        for p in model.parameters():
            p += 1.0
    images, labels = _batch()
    nn.functional.cross_entropy(model(images), labels).backward()
    raw = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    statistics = model[1].running_mean.clone()
    algorithm.after_backward()
    assert model[0].weight.grad is None
    for name in ("3.weight", "3.bias"):
        assert torch.equal(model.get_parameter(name).grad, raw[name])
    assert not torch.equal(model[0].bias.grad, raw["0.bias"])
    assert torch.equal(model[1].running_mean, statistics)
    tensors, memory = algorithm.finish(1, 0.1)
    taking_part = {"0.bias", "1.weight", "1.bias"} if build is ScaffoldClient else set()
    assert set(tensors.get("control", {})) == set(memory) == taking_part


@pytest.mark.parametrize("build", [FedProxClient, ScaffoldClient])
def test_a_parameter_without_gradient_is_left_alone(build: Callable[[], ClientAlgorithm]) -> None:
    model = _model()
    algorithm = build()
    request = _prox(model, 1.0)
    algorithm.begin(model, _parameters(model), request, {})
    algorithm.after_backward()
    assert all(p.grad is None for p in model.parameters())
    algorithm.finish(1, 0.1)


def test_what_is_given_is_not_changed_or_shared() -> None:
    model = _model()
    c, own = _noise(model, 1), _noise(model, 2)
    request = _scaffold(model, c)
    copies = [{name: value.clone() for name, value in group.items()} for group in (c, own, request.state)]
    tensors, memory, _ = _steps(model, ScaffoldClient(), request, own)
    for group, old in zip((c, own, request.state), copies, strict=True):
        assert all(torch.equal(group[name], old[name]) for name in old)
    for value in (*memory.values(), *tensors["control"].values()):
        assert value.device.type == "cpu"
        assert not value.requires_grad


@pytest.mark.parametrize("build", [FedProxClient, ScaffoldClient])
def test_layout_of_memory_does_not_matter(build: Callable[[], ClientAlgorithm]) -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Conv2d(3, 4, 3)
        state = _floats(model)
        model = model.to(memory_format=layout)
        control = {name: torch.full_like(value, 0.5) for name, value in state.items()}
        client_config = ClientConfig(numbers={"mu": 0.7}, tensors={"control": control})
        algorithm = build()
        algorithm.begin(
            model,
            _parameters(model),
            TrainRequest(round=1, client=0, state=state, client_config=client_config),
            {},
        )
        with torch.no_grad():
            model.weight += 1.0
        model(torch.ones(1, 3, 4, 4).to(memory_format=layout)).sum().backward()
        algorithm.after_backward()
        tensors, memory = algorithm.finish(1, 0.1)
        # safetensors takes no other layout.
        assert all(value.is_contiguous() for group in (memory, *tensors.values()) for value in group.values())
        results.append((model.weight.grad, memory))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][name])
