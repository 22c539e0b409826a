"""FedProx: the server of FedAvg, and mu on its way to the clients."""

from __future__ import annotations

import pytest

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedprox import FedProx, FedProxClient


def test_mu_is_sent_to_the_client_half() -> None:
    client_config = FedProx(mu=0.25).configure(3, {}, 5)
    assert FedProx.client is FedProxClient
    assert dict(client_config.numbers) == {"mu": 0.25}
    assert not client_config.tensors


def test_the_server_is_fedavgs() -> None:
    assert FedProx.combine is FedAvg.combine
    strategy = FedProx(fraction=0.5, min_clients=3)
    assert (strategy.fraction, strategy.min_clients) == (0.5, 3)


@pytest.mark.parametrize("mu", [-0.1, float("nan")])
def test_mu_out_of_range(mu: float) -> None:
    with pytest.raises(ValueError, match="mu must be >= 0, not"):
        FedProx(mu=mu)
