"""A grid of clients that are Python objects here: what they report, what they refuse, when they are away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from flwr.app import Error, Message, RecordDict

from fedvision.data.image_counts import ImageCounts
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.masked_counts import MaskedCounts
from fedvision.deployment.server.superlink_grid import SuperLinkGrid
from fedvision.flower import codec, internals, masked_codec


class Clients(SuperLinkGrid):
    """Clients by name; node 100 + n is the n-th of them.

    Args:
        folder: What they keep.
        pki: Their keys and certificates.
        counts: Class counts by name, of images of one class each.
        sharing: How each reports them; the others are ``masked``.
    """

    def __init__(self, folder: Path, pki: Path, counts: dict[str, list[int]], **sharing: str) -> None:
        self.folder, self.pki, self.counts, self.sharing = folder, pki, counts, sharing
        self.images: dict[str, int] = {}
        """Images of those that have another number than their counts add up to."""
        self.online = set(counts)
        self.silent: set[str] = set()
        """Those that do not reply to requests for masked counts or agreement."""
        self.lost: set[str] = set()
        """Those that agree, and are gone when they are to send counts."""
        self.forged: dict[tuple[str, str], RecordDict] = {}
        """What clients of no good will reply, by name and message type."""
        self.requested: list[tuple[str, str]] = []
        internals.identify(1)

    def node(self, name: str) -> int:
        return 100 + list(self.counts).index(name)

    def names(self) -> dict[int, str]:
        return {self.node(name): name for name in sorted(self.online)}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        by_node = {self.node(name): name for name in self.counts}
        for number, message in enumerate(messages):
            name, kind = by_node[message.metadata.dst_node_id], message.metadata.message_type
            self.requested.append((name, kind))
            internals.set_message_id(message, f"m{len(self.requested)}.{number}")
            reports = kind == masked_codec.MASKED and not masked_codec.agreement_only(message.content)
            if (name in self.silent and kind == masked_codec.MASKED) or (name in self.lost and reports):
                yield Message(Error(code=1, reason="it went offline"), reply_to=message)
            else:
                content = self.forged.get((name, kind)) or self._answer(name, kind, message.content)
                yield Message(content, reply_to=message)

    def _answer(self, name: str, kind: str, content: RecordDict) -> RecordDict:
        how, own = self.sharing.get(name, "masked"), self.image_counts(name)
        if kind == masked_codec.MASKED:
            return self.masks(name).answer(content, own)
        reported = own if how in ("plain", "noisy") else ImageCounts.none(len(own.counts))
        card = self.masks(name).card().to_table() if how == "masked" else {}
        info = codec.ClientInfo(client=0, image_counts=reported, sharing=how, card=card)
        return codec.encode_client_info(info)

    def image_counts(self, name: str) -> ImageCounts:
        """Return what a client has."""
        counts = self.counts[name]
        return ImageCounts(images=self.images.get(name, sum(counts)), counts=tuple(counts))

    def masks(self, name: str) -> MaskedCounts:
        """Return what a client keeps of its masks."""
        own = self.pki / "clients" / name
        config = ClientMachineConfig.from_dict(
            {
                "name": name,
                "superlink": {
                    "address": "localhost:1",
                    "key": str(own / "client.key"),
                    "root_certificate": str(own / "ca.crt"),
                },
                "data": {"use": "digits"},
                "share": {"counts": "masked", "certificate": str(own / "client.crt")},
            }
        )
        return MaskedCounts(self.folder / name / "masks.json", "ab12", config)
