"""Who takes part in a run across machines: numbered by name, queried once, recorded in the run's register.

A client keeps its number for the whole run, whoever else comes and goes: its random streams hang on it. A
machine that joins later gets the next number. A server that is started again knows what its members have: it
waits for nobody who is still at work, and reckons with those that are away. Where the loss rests on the
federation's class counts, a client that masks its own is a member once they are in a sum.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from cryptography.x509 import Certificate
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedvision.aggregation.masking import MIN_GROUP_SIZE
from fedvision.data.image_counts import PerImage
from fedvision.deployment.declining import Declined
from fedvision.deployment.server.masked_sums import MaskedSum, MaskedSums
from fedvision.deployment.server.registrations import Registration
from fedvision.deployment.server.superlink_grid import SuperLinkGrid
from fedvision.errors import MALFORMED, ConfigError
from fedvision.flower import codec
from fedvision.flower.client_registry import UnknownClients
from fedvision.formatting import one_line, plural
from fedvision.runs.member_register import DECLINED, JOINED, LEFT, REFUSED, SERVER, MemberRegister
from fedvision.server.phase_result import PhaseResult, Undecoded

_REPORTING = ("plain", "noisy")
_LOOK_S = 0.5
_NOTICE_EVERY_S = 10.0
_LONGEST_S = 900.0
"""Seconds after which a client whose policy declines is asked again, whatever it says."""
_RETRY_AFTER_S = 60.0
"""Seconds after which a machine that refused is queried again."""


class DeployedClientRegistry:
    """The members of a run.

    Args:
        register: Holds names, numbers and reported counts; all that changes is written there first.
        run: The run's key.
        classes: C.
        waits: Is called with for whom the run waits, again and again, and with "" when it goes on.
        note: Is called with what shall also stand in the report.
        registered: Returns every client that may join, by name; empty where the SuperLink does not answer.
        needed: Whether the experiment's loss rests on the federation's class counts.
        per_image: What an image adds to class counts.
        authorities: Who vouches for clients that mask their counts; none leaves that to the clients.
        between_rounds: Is called while no round is under way, also while clients are waited for; may raise.
    """

    def __init__(
        self,
        register: MemberRegister,
        run: str,
        classes: int,
        waits: Callable[[str], None],
        note: Callable[[str], None],
        registered: Callable[[], Mapping[str, Registration]],
        *,
        needed: bool = False,
        per_image: PerImage = "one class",
        authorities: Sequence[Certificate] = (),
        between_rounds: Callable[[], None] = lambda: None,
    ) -> None:
        self._register, self._classes, self._waits, self._note = register, classes, waits, note
        self._registered, self._needed, self._per_image = registered, needed, per_image
        self._between_rounds = between_rounds
        self._by_name = {name: client for client, name in register.names.items()}
        sums = [MaskedSum.from_table(line) for line in register.sums]
        self._masked = MaskedSums(run, classes, sums, authorities, per_image=per_image)
        known = [member for member in register.members.values() if self._is_known(member.client)]
        self.numbers: dict[int, int] = {member.node: member.client for member in known}
        """Which client each node is."""
        self._nodes = {member.client: member.node for member in known}
        self._refused: dict[int, float] = {}
        self._noted: dict[int, str] = {}
        self._declined: dict[int, float] = {}
        """By client whose owner's policy declined: when it may be asked again."""
        self._here: set[int] = set()
        self._unseen = {member.client for member in known}
        """Members that an earlier server knew, and that gave no sign of life since."""
        self._began = time.monotonic()
        self._checked = float("-inf")
        self.least = 1
        """Members without whom no round begins."""
        self.settled = False
        """Whether a round is under way: class counts must not change until it is recorded."""

    def __len__(self) -> int:
        return len(self._joined())

    def _joined(self) -> set[int]:
        """Return the members: those that reported their counts, or need not."""
        return {client for client in self._register.members if self._is_member(client)}

    def _is_known(self, client: int) -> bool:
        """Return whether a client has sent all that joining needs; one that waits for a sum has."""
        member = self._register.members.get(client)
        if member is None or not member.sharing or member.status == REFUSED:
            return False
        if member.sharing == "masked":
            return client in self._masked or client in self._masked.waiting
        return member.sharing not in _REPORTING or member.counts is not None

    def _is_member(self, client: int) -> bool:
        return self._is_known(client) and not (self._needed and client in self._masked.waiting)

    def has(self, node: int) -> bool:
        """Return whether a node is a member: it was queried and can take part."""
        return self._is_member(self.numbers.get(node, -1))

    @property
    def counts(self) -> tuple[int, ...]:
        """Training images of each class [C] over all members, as far as they are reported."""
        # Noise may make one client's number negative; over all of them a negative sum means none.
        return tuple((self.table().sum(0) + self._masked.total).clip(min=0).tolist())

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Members whose counts are known as a sum alone, by their group's name."""
        return {known.group: known.clients for known in self._masked.sums}

    @property
    def with_counts(self) -> list[int]:
        """Members that report their own class counts, as they are or with noise, rising."""
        members = self._register.members
        return sorted(c for c in members if self._is_known(c) and members[c].sharing in _REPORTING)

    @property
    def exact(self) -> bool:
        """Whether ``counts`` holds every image of every member."""
        known = [member for client, member in self._register.members.items() if self._is_known(client)]
        return all(member.sharing == "plain" or member.client in self._masked for member in known)

    def table(self) -> NDArray[np.int64]:
        """Return the images of each class of every client in ``images`` [K, C]."""
        rows = [self._register.members[client].counts for client in self.with_counts]
        return np.array(rows, np.int64).reshape(len(rows), self._classes)

    def client(self, node: int) -> int:
        """Return the client on a node."""
        return self.numbers.get(node, node)

    def node(self, client: int) -> int:
        """Return the node that hosts a client."""
        return self._nodes[client]

    def name(self, client: int) -> str:
        """Return the name under which a client is registered."""
        return next((name for name, number in self._by_name.items() if number == client), str(client))

    def present(self, grid: Grid) -> list[int]:
        """Return the members that are online, rising; waits while there are fewer than ``least``."""
        assert isinstance(grid, SuperLinkGrid)
        last_notice = float("-inf")
        while True:
            online = grid.names()
            if not self.settled:
                self._between_rounds()
            if not self.settled and (len(online) >= self.least or len(self) >= self.least):
                self._admit(grid, online)
            members = self._joined() - self._not_seen_yet(online) - self._declining(online)
            here = sorted(self.numbers[node] for node in online if self.numbers.get(node) in members)
            self._compare(here)
            if len(here) >= self.least:
                if last_notice > float("-inf"):
                    self._waits("")
                return here
            if time.monotonic() - last_notice > _NOTICE_EVERY_S:
                last_notice = time.monotonic()
                self._waits(self._waiting(online))
            time.sleep(_LOOK_S)

    def declined(self, node: int, declined: Declined) -> None:
        """Note that a client's owner does not allow a task; it is left out until it may be asked again."""
        client = self.numbers.get(node, -1)
        if not self._is_known(client):
            return  # it was asked whether it takes part; ``_query`` notes the answer
        self._declined[client] = time.monotonic() + min(declined.again, _LONGEST_S)
        member = self._register.members[client]
        if (member.status, member.reason) != (DECLINED, str(declined)):
            self._note(f"{member.name} ({client}) declines: {declined}")
        self._register.declined(client, member.name, member.key, str(declined))

    def _declining(self, online: Mapping[int, str]) -> set[int]:
        """Return the members that declined and are not to be asked yet; one that came back may be."""
        there, now = {self.numbers.get(node) for node in online}, time.monotonic()
        self._declined = {c: until for c, until in self._declined.items() if until > now and c in there}
        return set(self._declined)

    def _not_seen_yet(self, online: Mapping[int, str]) -> set[int]:
        """Return the members that have not found this server: they count as online for a while."""
        if self._unseen & {self.numbers.get(node) for node in online}:
            seen, since = self._last_seen(), time.monotonic() - self._began
            ages = {client: seen.get(self.name(client)) for client in self._unseen}
            self._unseen = {client for client, age in ages.items() if age is None or age >= since}
        return self._unseen

    def _last_seen(self) -> dict[str, float | None]:
        return {name: found.seen for name, found in self._registered().items()}

    def _compare(self, here: Sequence[int]) -> None:
        """Note which members left since the last look, and which came back."""
        members = self._register.members
        for client in sorted(self._here - set(here) - self._declined.keys()):
            if not self._note_revoked([client]):
                self._register.left(client)
                self._note(f"{self.name(client)} ({client}) is not there any more")
        for client in here:
            if members[client].status != JOINED:
                name, key, sharing = members[client].name, members[client].key, members[client].sharing
                self._register.joined(client, name, key, node=self._nodes[client], sharing=sharing)
                self._note(f"{self.name(client)} ({client}) is there again")
        self._here = set(here)
        away = [client for client, member in members.items() if member.status == LEFT]
        if away and time.monotonic() - self._checked > _NOTICE_EVERY_S:
            self._note_revoked(away)

    def _note_revoked(self, clients: Sequence[int]) -> bool:
        """Note which of some clients may not join any more; return whether one may not."""
        self._checked, registered = time.monotonic(), self._registered()
        allowed = {found.node for found in registered.values()}
        gone = [client for client in clients if registered and self._nodes[client] not in allowed]
        for client in gone:
            self._register.revoked(client)
            self._note(f"{self.name(client)} ({client}) is shut out: its key was removed")
        return bool(gone)

    def _admit(self, grid: SuperLinkGrid, online: Mapping[int, str]) -> None:
        """Number machines that are new and query their counts."""
        now = time.monotonic()
        for node in self._refused.keys() - online.keys():
            del self._refused[node]  # it left; perhaps it comes back corrected
        new = {
            node: name
            for node, name in online.items()
            if not self._is_known(self.numbers.get(node, -1))
            and now - self._refused.get(node, float("-inf")) > _RETRY_AFTER_S
        }
        if new:
            self._query(grid, new, now)
        self._masked.leave([c for c, (node, _) in self._masked.waiting.items() if node not in online])
        if found := self._masked.gather(grid, self._leave_out):
            self._register.add_sum(found.to_table())

    def _query(self, grid: SuperLinkGrid, new: Mapping[int, str], now: float) -> None:
        self._number(new)
        keys = {found.node: found.key for found in self._registered().values()}
        exchange = PhaseResult(client_registry=UnknownClients(), stage="data", decoder=Undecoded())
        messages = [Message(RecordDict(), node, codec.CLIENT_INFO) for node in new]
        # A client that joins a run that is going on must not hold it up.
        patience = None if len(self) < self.least else _RETRY_AFTER_S
        for reply in exchange.send(grid, messages, timeout=patience):
            node = reply.metadata.src_node_id
            try:
                entry = codec.decode_client_info(reply.content)
            except MALFORMED:
                exchange.refuse(node, "its report of its images is damaged", "refused")
                continue
            if reason := self._problem(entry):
                exchange.refuse(node, reason, "refused")
            else:
                self._refused.pop(node, None)
                self._enter(node, new[node], keys.get(node, ""), entry)
        for item in exchange.refused:
            node, reason = item["client"], item["reason"]
            self._refused[node] = now
            client, name, key = self.numbers[node], new[node], keys.get(node, "")
            declines = item["kind"] == "declined"
            if declines:
                self._register.declined(client, name, key, reason)
            else:
                self._register.refused(client, name, key, reason, by=name)
            if self._noted.get(node) != reason:  # it is queried again every minute
                self._noted[node] = reason
                self._note(f"{name} {'declines' if declines else 'cannot take part'}: {reason}")

    def _problem(self, entry: codec.ClientInfo) -> str | None:
        """Return why a report of images cannot be used; None where it can."""
        reported = entry.image_counts
        if len(reported.counts) != self._classes:
            return f"it reports counts of {len(reported.counts)} classes, and there are {self._classes}"
        # Noise makes any numbers.
        if entry.sharing == "plain" and not reported.agree(self._per_image):
            return f"it reports counts that {plural(reported.images, 'image')} cannot have"
        return None

    def _enter(self, node: int, name: str, key: str, entry: codec.ClientInfo) -> None:
        """Write a client that answered into the register."""
        client = self.numbers[node]
        if entry.sharing == "masked":
            try:
                self._masked.expect(client, node, entry, key)
            except ConfigError as error:
                self._leave_out(client, str(error), key)
                return
        self._register.joined(client, name, key, node=node, sharing=entry.sharing)
        images = ""
        if entry.sharing in _REPORTING:
            self._register.add_counts(client, entry.image_counts)
            images = f" with {plural(entry.image_counts.images, 'training image')}"
        if self._register.round:
            self._note(f"{name} ({client}) joined{images}")

    def _leave_out(self, client: int, reason: str, key: str = "") -> None:
        """Note that a client cannot take part, and query it again after a while."""
        reason = one_line(reason)  # a certificate's name in it may be of the client's making
        self._refused[self._nodes[client]] = time.monotonic()
        self._register.refused(client, self.name(client), key, reason, by=SERVER)
        self._note(f"{self.name(client)} cannot take part: {reason}")
        self._masked.leave([client])

    def _number(self, new: Mapping[int, str]) -> None:
        taken = set(self._by_name.values())
        free = (number for number in itertools.count() if number not in taken)
        for name in sorted(set(new.values()) - self._by_name.keys()):
            self._by_name[name] = next(free)
        for node, name in new.items():
            self.numbers[node] = self._by_name[name]
            self._nodes[self._by_name[name]] = node

    def _waiting(self, online: Mapping[int, str]) -> str:
        masked = [self.name(client) for client in sorted(self._masked.waiting)]
        unseen = {self.name(client) for client in self._unseen}
        away = unseen | {self.name(client) for client in self._declined}
        there = {name for node, name in online.items() if node not in self._refused} - away - set(masked)
        declining = {m.name: m.reason for m in self._register.members.values() if m.status == DECLINED}
        others = [
            f"{name} declines: {declining[name]}" if name in declining else f"{name} {_ago(seconds)}"
            for name, seconds in sorted(self._last_seen().items())
            if (name not in there and name not in masked) or name in declining
        ]
        few = f"{' and '.join(masked)} mask{'s' * (len(masked) == 1)} class counts, and a sum that hides them"
        hidden = [f"{few} needs {MIN_GROUP_SIZE} such clients"] if masked and self._needed else []
        if hidden and (missing := self._masked.missing):
            lacking = " and ".join(missing)
            hidden = [f"{' and '.join(masked)} sent masked class counts for a sum that lacks {lacking}"]
        return "; ".join([f"waiting: {len(there)} of {self.least} clients", *hidden, *others])


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "was never here"
    return "is being queried" if seconds <= 0 else f"last seen {seconds:.0f} s ago"
