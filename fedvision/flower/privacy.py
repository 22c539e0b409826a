"""Stock strategies that promise privacy: which of them keep the promise here, and what has to be said.

Flower's wrappers with clipping at the server clip every update themselves. Those with clipping at the client
rely on a mod in the client's app (``fixedclipping_mod``, ``adaptiveclipping_mod``), which no client here has:
the noise would be scaled to a bound that no update keeps.
"""

from __future__ import annotations

from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Strategy

from fedvision.errors import PluginError

_CLIENTS_CLIP: tuple[type, ...] = (
    stock.DifferentialPrivacyClientSideFixedClipping,
    stock.DifferentialPrivacyClientSideAdaptiveClipping,
)
_PRIVATE: tuple[type, ...] = (
    stock.DifferentialPrivacyServerSideFixedClipping,
    stock.DifferentialPrivacyServerSideAdaptiveClipping,
)


def check_clipping(strategy: Strategy) -> None:
    """Refuse a strategy, or one that it wraps, whose privacy rests on clipping by the clients.

    Raises:
        PluginError: It does; the sentence names the wrapper that clips at the server instead.
    """
    for layer in _layers(strategy):
        if isinstance(layer, _CLIENTS_CLIP):
            name = next(kind.__name__ for kind in _CLIENTS_CLIP if isinstance(layer, kind))
            instead = f"flwr.serverapp.strategy:{name.replace('ClientSide', 'ServerSide')}"
            raise PluginError(
                f"[strategy] {name} relies on clients that clip their updates, and clients of fedvision do "
                f"not: there would be no privacy; use {instead}"
            )


def privacy_notices(strategy: Strategy, noise: str) -> list[str]:
    """Return what a person should know of a strategy's privacy.

    Args:
        strategy: With those that it wraps.
        noise: ``privacy.noise``.
    """
    if noise == "reproducible" and any(isinstance(layer, _PRIVATE) for layer in _layers(strategy)):
        return [
            'privacy.noise = "reproducible" draws the noise from the experiment\'s seed, which every client '
            "knows: the model is NOT private"
        ]
    return []


def _layers(strategy: Strategy) -> list[Strategy]:
    """Return a strategy and those that it wraps, from the outside in."""
    found = [strategy]
    while isinstance(inner := getattr(found[-1], "strategy", None), Strategy) and inner not in found:
        found.append(inner)
    return found
