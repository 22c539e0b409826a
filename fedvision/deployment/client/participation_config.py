"""``[policy]`` of the client's file: in which experiments, and when, its owner takes part."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from fedvision.errors import ConfigError
from fedvision.tables import at_least, require

DIGEST = re.compile(r"sha256:[0-9a-f]{12,64}")
"""How an experiment is named by the digest of its text."""
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")
_DAY = 24 * 60
_PASSED_S = 60.0
"""To wait for an opening that was there already and comes again, as clocks are set back past midnight."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """When this machine takes part, and in what; without this table always and in everything."""

    experiments: tuple[str, ...] = ()
    """Experiments allowed: names, in which ``*`` and ``?`` stand for any letters, or ``"sha256:..."``, at
    least 12 digits of the digest of an experiment's text, which ``fedvision doctor`` prints. Empty allows
    all."""
    hours: str = ""
    """Time of day in which tasks may begin, such as ``"20:00-06:00"``; empty is always."""
    zone: str = ""
    """Time zone of ``hours``, such as ``"Europe/Berlin"``; empty is this machine's."""
    max_rounds: int = 0
    """Rounds of one run in which this machine trains; 0 sets no limit."""
    min_clients: int = 0
    """Clients that must take part before this machine trains, as the server says; 0 asks for none."""
    ask: bool = False
    """Take part in an experiment only once the owner has approved it: at the terminal, or with ``fedvision
    approve``."""

    def __post_init__(self) -> None:
        at_least(0, self, "policy.", "max_rounds", "min_clients")
        for text in self.experiments:
            require(
                bool(text) and (not text.startswith("sha256:") or DIGEST.fullmatch(text) is not None),
                "policy.experiments",
                f"must be names, or sha256: and at least 12 hexadecimal digits, not {text!r}",
            )
        require(not self.zone or bool(self.hours), "policy.zone", "is that of policy.hours; set these, too")
        if self.hours:
            found = _HOURS.fullmatch(self.hours)
            minutes = _minutes(found) if found else (0, 0)
            require(
                minutes[0] != minutes[1] and minutes[1] <= _DAY,
                "policy.hours",
                f'must be like "20:00-06:00", two different times of day, not {self.hours!r}',
            )
        if self.zone:
            _zone(self.zone)


@dataclass(frozen=True, kw_only=True)
class Hours:
    """A span of the day, which may go over midnight."""

    begin: int
    """Minutes after midnight."""
    end: int
    """Minutes after midnight, 1440 for its end; the first that is outside."""
    zone: ZoneInfo | None = None
    """The zone of both; None is this machine's."""

    @classmethod
    def of(cls, config: PolicyConfig) -> Hours | None:
        """Return the hours of a policy; None where it has none."""
        found = _HOURS.fullmatch(config.hours)
        if found is None:
            return None
        begin, end = _minutes(found)
        return cls(begin=begin, end=end, zone=_zone(config.zone) if config.zone else None)

    def opens_in(self, now: datetime) -> float:
        """Return the seconds until the hours begin; 0 within them.

        Args:
            now: With its zone.
        """
        local = now.astimezone(self.zone)
        minute = 60 * local.hour + local.minute
        after, before = minute >= self.begin, minute < self.end
        if (after and before) if self.begin < self.end else (after or before):
            return 0.0
        for days in (0, 1):
            day, start = local.date() + timedelta(days=days), time(*divmod(self.begin, 60))
            # On the wall clock: a day on which clocks are set has 23 or 25 hours.
            opens = datetime.combine(day, start, self.zone).astimezone(UTC)
            if (left := (opens - now).total_seconds()) > 0:
                return left
        return _PASSED_S  # both were before clocks were set back


def _minutes(found: re.Match[str]) -> tuple[int, int]:
    hours = [int(text) for text in found.groups()]
    return 60 * hours[0] + hours[1], 60 * hours[2] + hours[3]


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"policy.zone is no time zone that this machine knows: {name!r}") from error
