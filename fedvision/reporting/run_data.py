"""A run folder's facts, read once and put in the shape in which tables and pictures want them.

A run that was killed, or that measures seldom, has gaps; what is not there is None or an empty list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvision.baselines.gains import Baselines, read_baselines
from fedvision.config import ExperimentConfig
from fedvision.formatting import STAGES, plural, size
from fedvision.reporting.class_facts import ClassFacts, class_facts, rarest
from fedvision.reporting.measurement import Measurement as Measurement
from fedvision.reporting.measurement import Worst as Worst
from fedvision.reporting.participation import Participant, participants
from fedvision.reporting.series import Band, Series, dig, values_of
from fedvision.runs.events import Event, all_events, kinds
from fedvision.runs.folder import RunFolder
from fedvision.runs.model_versions import ModelVersion, read_versions
from fedvision.tasks.calibration import Reliability
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.intervals import Interval, score_intervals

Record = dict[str, Any]
VIEWS = ("server", "local", "personal")
"""The global model on the server's test images, and on images that clients keep for it; and on these each
client's personal model, where the method has one beside the global model."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """All facts of one run."""

    path: Path
    """The run folder."""
    config: ExperimentConfig
    """The experiment."""
    config_text: str
    """Its TOML as it stands in the folder."""
    rounds: list[Record]
    """One record a round."""
    timings: list[dict[str, float]]
    """Seconds by stage, one table a round."""
    summary: Record
    """How the run ended; empty while it runs."""
    environment: Record
    """Versions, processor, device."""
    split: Record
    """How the images are spread; empty before that is known."""
    classes: tuple[str, ...]
    """Class names [C]."""
    counts: NDArray[np.int64]
    """int64 [K, C]: training images of each class on each client, or on those shown; [0, C] where unknown."""
    totals: NDArray[np.int64]
    """int64 [C]: training images of each class over all clients, expected ones where ``exact`` is False."""
    distinct: NDArray[np.int64]
    """int64 [C]: the same, every image counted once; head and tail are made of these."""
    clients: int
    """Clients that take part, of whom ``counts`` may hold a sample; 0 where unknown."""
    exact: bool
    """Whether ``totals`` was counted."""
    events: list[Event]
    """What happened beside training, by round."""
    withheld: int = 0
    """Clients that do not share their own class counts."""
    participants: list[Participant] = field(default_factory=list)
    """Across machines: every client by number, also those that do not take part."""
    shown: list[str] = field(default_factory=list)
    """Name or number of the client of each row of ``counts`` [K]."""
    names: dict[int, str] = field(default_factory=dict)
    """Clients' names by number, as far as they have any: across machines, or of the data."""
    invocation: Record = field(default_factory=dict)
    """How the run was called."""
    versions: list[ModelVersion] = field(default_factory=list)
    """Smaller and faster versions of its model, the model itself first."""
    baselines: Baselines | None = None
    """What was trained beside it; None where nothing was."""

    @property
    def idle(self) -> list[Participant]:
        """Clients that joined or tried to, and on whom the model does not rest."""
        return [one for one in self.participants if not one.takes_part]

    def name(self, client: int | str) -> str:
        """Return a client's name, or its number where it has none."""
        return self.names.get(int(client), str(client))

    @property
    def done(self) -> int:
        """Number of the last recorded round."""
        return int(self.rounds[-1]["round"]) if self.rounds else 0

    @property
    def status(self) -> str:
        """``"finished"``, ``"failed"``, ``"stopped"``, or ``"unfinished"``: it runs still or was killed."""
        return str(self.summary.get("status", "unfinished"))

    def series(self, *keys: str) -> Series:
        """Return one figure of each record over rounds, found by nested keys such as ``"server", "loss"``."""
        found = [(int(record["round"]), dig(record, keys)) for record in self.rounds]
        present = [(number, float(value)) for number, value in found if value is not None]
        return Series([number for number, _ in present], [value for _, value in present])

    def client_band(self, *keys: str) -> Band:
        """Return the lowest, median and highest of a per-client figure such as ``"local", "accuracy"``."""
        found = [(int(record["round"]), values_of(dig(record, keys))) for record in self.rounds]
        present = [(number, values) for number, values in found if values]
        return Band(
            [number for number, _ in present],
            [min(values) for _, values in present],
            [float(np.median(values)) for _, values in present],
            [max(values) for _, values in present],
        )

    def measurement(self, view: str) -> Measurement | None:
        """Return a view's last measurement, or None where it was never made."""
        for record in reversed(self.rounds):
            if facts := record.get(view):
                return Measurement(
                    view=view,
                    round=int(record["round"]),
                    scores=dict(facts.get("scores") or {}),
                    confusion=ConfusionCounts.from_record(facts.get("confusion")),
                    loss=facts.get("loss"),
                    worst=self._worst(facts),
                    labels=facts.get("labels") or {},
                    pixels=facts.get("classes") or {} if self.of_pixels else {},
                    withheld=len(facts.get("withheld") or ()),
                    personal=view == "personal" or (view == "local" and bool(self.config.model.personal)),
                    part=self._part(facts),
                )
        return None

    def intervals(self, measured: Measurement) -> dict[str, Interval]:
        """Return the 95 % confidence intervals of a view's scores that follow from confusion counts."""
        return score_intervals(measured.confusion, self.distinct if self.distinct.any() else None)

    def _part(self, facts: Record) -> tuple[int, int] | None:
        """Return how many clients a measurement is of and how many there are; None where it is of all."""
        measured = facts.get("measured_by")
        return (measured, self.clients) if measured is not None and measured < self.clients else None

    def _worst(self, facts: Record) -> Worst | None:
        spread = facts.get("spread") or {}
        if spread.get("worst_client") is None or spread.get("worst") is None:
            return None
        name = self.name(spread["worst_client"])
        return Worst(name, float(spread["worst"]), spread.get("worst_images"))

    @property
    def best_view(self) -> Measurement | None:
        """The server's last measurement, or the clients' where the server has no test images."""
        return self.measurement("server") or self.measurement("local")

    def class_facts(self, measured: Measurement | None) -> list[ClassFacts]:
        """Return the classes, the one with most training images first."""
        confusion = measured.confusion if measured else None
        labels = measured.labels if measured else None
        # Where there are any, they are of the images of the best view.
        known = self.summary.get("calibration") or {}
        curves = {name: known[name] for name in ("ap", "auroc") if name in known}
        pixels = measured.pixels if measured else None
        return class_facts(self.classes, self.totals, self.distinct, confusion, labels, curves, pixels)

    @property
    def reliability(self) -> Reliability | None:
        """How often the final model is right by how sure it is: on the server's images, else on clients'."""
        known = (self.summary.get("calibration") or {}).get("reliability")
        return Reliability.from_record(known) if known else None

    @property
    def held_out_by(self) -> Record | None:
        """Who told ``reliability`` where clients were asked, as ``StatisticsPhase.reliability`` has it."""
        return (self.summary.get("calibration") or {}).get("held_out")

    @property
    def several_labels(self) -> bool:
        """Whether an image may have several labels, so that class counts do not add up to images."""
        return self.config.task.use == "multi-label"

    @property
    def of_pixels(self) -> bool:
        """Whether pixels have classes, and class counts are pixels."""
        return self.config.task.use == "segmentation"

    @property
    def counted(self) -> str:
        """What class counts are, in the plural."""
        if self.of_pixels:
            return "training pixels"
        return "class counts" if self.own_counts else "training images"

    @property
    def kinds(self) -> str:
        """What an image is of, in the plural: ``"classes"`` or ``"labels"``."""
        return "labels" if self.several_labels else "classes"

    @property
    def kind(self) -> str:
        """The same in the singular."""
        return "label" if self.several_labels else "class"

    @property
    def rare_score(self) -> str:
        """The score of single classes: recall, AP where an image may have several labels, IoU of pixels."""
        return "IoU" if self.of_pixels else "AP" if self.several_labels else "recall"

    @property
    def own_counts(self) -> bool:
        """Whether the task counts something else than images by true and predicted class, or by label."""
        if self.config.task.use in ("classification", "multi-label"):
            return False
        return not any((record.get(view) or {}).get("confusion") for record in self.rounds for view in VIEWS)

    @property
    def compared_by(self) -> str:
        """The key of the score by which clients are compared."""
        if self.several_labels or self.of_pixels:
            return "mean_ap" if self.several_labels else "mean_iou"
        for record in self.rounds:
            local: Record = record.get("local") or {}
            of_clients = (key for key, value in local.items() if isinstance(value, dict))
            if found := [key for key in of_clients if key in local.get("scores", ())]:
                return found[0]
        return "accuracy"

    def rarest(self, measured: Measurement | None, count: int) -> list[ClassFacts]:
        """Return the rarest ``count`` classes, the rarest last, as ``class_facts.rarest``."""
        return rarest(self.class_facts(measured), self.distinct, count)

    def unused(self) -> str:
        """Count what was not used: ``"3 replies not used (1 refused, 2 failed)"``, or nothing."""
        items = [item for record in self.rounds for item in record.get("refused") or ()]
        return (
            f"{plural(len(items), 'repl', 'ies', 'y')} not used ({', '.join(kinds(items))})" if items else ""
        )

    def sent(self) -> dict[str, int]:
        """Return the bytes of all rounds.

        Returns:
            ``down`` to clients and ``up`` from them; ``up_whole``, had no update been transformed.
        """
        noted = [{"down": 0, "up": 0, **(record.get("bytes") or {})} for record in self.rounds]
        noted += [self.held_out_by["bytes"]] if self.held_out_by else []
        sums = {way: sum(one[way] for one in noted) for way in ("down", "up")}
        return sums | {"up_whole": sum(one.get("up_whole", one["up"]) for one in noted)}

    def memory(self) -> list[tuple[str, int]]:
        """Return what processes have held of memory at most, in words and bytes; empty where unknown."""
        held = self.summary.get("memory", {})
        workers = held.get("workers", [])
        found = []
        for key, name in (("process", "memory"), ("device", "memory of the GPU")):
            if key in held:
                found.append((f"{name}, at most", held[key]))
            if most := max((one.get(key, 0) for one in workers), default=0):
                found.append((f"{name}, at most, the largest of {len(workers)} workers", most))
        return found

    def part_sent(self) -> str:
        """Return what travels of the network each way; empty where all of it does, or nothing tells."""
        sent, all_of_it = (self.summary.get(key, 0) for key in ("state_bytes", "network_bytes"))
        return f"{size(sent)} of the network's {size(all_of_it)}" if sent < all_of_it else ""

    def seconds_of(self, number: int) -> float | None:
        """Return the seconds of one round in all, or None where they were not recorded."""
        line = next((line for line in self.timings if line["round"] == number), None)
        return None if line is None else line.get("total", sum(v for k, v in line.items() if k != "round"))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of all rounds by stage, ``total`` last."""
        stages = {stage for line in self.timings for stage in line} - {"round"}
        ordered = [*(s for s in STAGES if s in stages), *sorted(stages - set(STAGES))]
        sums = {stage: sum(line.get(stage, 0.0) for line in self.timings) for stage in ordered}
        total = sums.pop("total", sum(sums.values()))
        return {**sums, "total": total}


def read_facts(folder: RunFolder) -> RunData:
    """Read a run folder.

    Raises:
        RunFolderError: A file in it is damaged.
    """
    rounds, config, members = folder.rounds(), folder.config(), folder.members()
    split = folder.split()
    names = {**_names_in_data(split), **members.names}
    return run_data(
        folder.path,
        config=config,
        config_text=folder.config_text(),
        rounds=rounds,
        timings=folder.timings(),
        summary=folder.summary(),
        environment=folder.environment(),
        split=split,
        invocation=folder.invocation(),
        names=names,
        participants=participants(members, rounds),
        events=all_events(rounds, folder.events(), names, buffered=config.round.buffer > 0),
        versions=read_versions(folder.path),
        baselines=read_baselines(folder),
    )


def run_data(
    path: Path,
    *,
    rounds: list[Record],
    split: Record,
    names: Mapping[int, str],
    participants: list[Participant],
    **read: Any,
) -> RunData:
    """Return the facts of a run from what was read of its folder.

    Args:
        path: The folder.
        rounds: The rounds' records.
        split: How the images are spread; empty before that is known.
        names: Clients' names by number, as far as they have any.
        participants: Across machines, who joined or tried to.
        read: The facts that stay as they were read: ``config``, ``timings``, ``summary``, ``events``, ...
    """
    classes = tuple(str(name) for name in split.get("classes", ())) or _numbered(rounds)
    rows = np.array(split.get("counts") or np.zeros((0, len(classes))), np.int64)
    shown, counts = list(split.get("shown") or range(len(rows))), rows.reshape(len(rows), len(classes))
    names = {**_names_in_data(split), **names}
    clients, withheld = int(split.get("clients", len(counts))), int(split.get("withheld", 0))
    if participants:
        part = [one.member for one in participants if one.takes_part]
        clients, withheld = len(part), sum(member.counts is None for member in part)
        there = {member.client for member in part}
        present = [row for row, client in enumerate(shown) if client in there]
        shown, counts = [shown[row] for row in present], counts[present]
    totals = np.array(split["totals"], np.int64) if "totals" in split else rows.sum(0)
    return RunData(
        path=path,
        rounds=rounds,
        split=split,
        classes=classes,
        counts=counts,
        totals=totals,
        distinct=np.array(split.get("distinct", totals), np.int64),
        clients=clients,
        exact=bool(split.get("exact", True)),
        withheld=withheld,
        participants=participants,
        names=names,
        shown=[names.get(client, str(client)) for client in shown],
        **read,
    )


def _names_in_data(split: Record) -> dict[int, str]:
    """Return the names that the data give their clients, of those that are shown."""
    shown = split.get("shown") or range(len(split.get("counts") or ()))
    return dict(zip(shown, map(str, split.get("names", ())), strict=False))


def _numbered(rounds: Sequence[Record]) -> tuple[str, ...]:
    """Return class names for a run whose split was not written: their numbers."""
    for record in rounds:
        for view in VIEWS:
            if confusion := (record.get(view) or {}).get("confusion"):
                classes = ConfusionCounts.from_record(confusion).num_classes
                return tuple(str(c) for c in range(classes))
    return ()
