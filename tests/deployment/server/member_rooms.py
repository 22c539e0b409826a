"""Clients of every way of sharing, on a grid of Python objects."""

from __future__ import annotations

from pathlib import Path

from fedvision.aggregation.masking import read_certificates
from fedvision.data.image_counts import PerImage
from fedvision.deployment.server.deployed_clients import DeployedClientRegistry
from fedvision.deployment.server.keyring import fingerprint, read_public_key
from fedvision.deployment.server.registrations import Registration
from fedvision.runs.member_register import MemberRegister
from tests.deployment.server.grids import Clients

COUNTS = {
    "ada": [10, 0, 1],
    "bob": [0, 20, 2],
    "cyd": [5, 5, 5],
    "dan": [0, 0, 30],
    "eve": [1, 1, 1],
    "fay": [2, 0, 0],
}


class Room:
    """A server's members over some clients."""

    per_image: PerImage = "one class"
    """Whether the clients' images may have several labels."""

    def __init__(self, folder: Path, pki: Path, names: str, needed: bool = True, **how: str) -> None:
        self.file, self.pki, self.needed = folder / "members.jsonl", pki, needed
        self.grid = Clients(folder, pki, {name: COUNTS[name] for name in names.split()}, **how)
        self.seconds = 0.0
        """Since the clients that are online gave a sign of life."""
        self.away: set[str] = set()
        """Who is not online and may join all the same."""
        self.revoked: set[str] = set()
        self.notices: list[str] = []
        self.noted: list[str] = []
        self.members = self.again()

    def again(self) -> DeployedClientRegistry:
        """Return the members as a server that is started again knows them."""
        self.register = MemberRegister(self.file)
        return DeployedClientRegistry(
            self.register,
            "ab12",
            3,
            self.notices.append,
            self.noted.append,
            self.registered,
            needed=self.needed,
            per_image=self.per_image,
            authorities=read_certificates(self.pki / "ca.crt"),
        )

    def registered(self) -> dict[str, Registration]:
        return {
            name: Registration(self.grid.node(name), self.key(name), self.seconds)
            for name in (self.grid.online | self.away) - self.revoked
        }

    def key(self, name: str) -> str:
        return fingerprint(read_public_key(self.pki / "server/clients" / f"{name}.pub"))

    def look(self) -> list[int]:
        self.members.least = 0
        return self.members.present(self.grid)

    def requested(self, kind: str) -> list[str]:
        return [name for name, what in self.grid.requested if what == kind]
