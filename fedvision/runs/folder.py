"""The run folder: everything a run leaves behind, and all that a report reads.

::

    config.toml           the canonical experiment
    environment.json      versions, processor, device; under "earlier" those of a run that went on elsewhere
    data.json             {part: digest} of class names, images, labels, columns and the file with which the
                          model began; under "code" those of the
                          modules that the experiment names; see data/identity.py
    invocation.json       {"folder": working folder, "modules": where plug-ins are found, "server": options}
    split.json            {"digest", "classes": [C names], "counts": [K][C], "left_out"}; of many clients
                          "counts" holds a sample, and there are "shown": whose rows those are, "clients": K,
                          "totals": [C], and "exact": whether the totals were counted; where clients
                          share images "distinct": [C] counts each once. All are of images trained
                          on; "held_out" says how many are kept from training, and "names"
                          those of the clients shown where the data name them
    rounds.jsonl          one line a round, what depends on config and data alone: equal runs, equal bytes.
                          What clients measured of the model after round r is "local" in line r; where it came
                          with the training of round r + 1 it is "received" there, and its "round" is r;
                          "measured_by" says of how many clients; "personal" is that of their own models
    timings.jsonl         one line a round, seconds by stage
    events.jsonl          {"round", "client", "what"}: notices while the run went on; see events.py
    members.jsonl         across machines: who takes part, with which key and images; see member_register.py
    audit.jsonl           the same, refused calls and the operator's acts, chained; see audit_log.py
    deployment.json       across machines: the run's key, and Flower's number of it
    waiting.txt           across machines, while the server waits: for whom
    checkpoint/           where a killed run goes on; see checkpoint.py
    model.safetensors     the final model; model.json beside it: see model_description.py
    generator.safetensors what a strategy trained beside the model; see side_networks.py
    best/                 the model with the best score on clients' held-out images, where it is kept
    summary.json          {"status": "finished" | "failed" | "stopped", "rounds", "notices", "error", ...}; at
                          the end "memory": most bytes that the "process" and the "device" held since the
                          process began, and those of "workers" [{"process", "device"}], and "calibration":
                          how often the final model is right by how sure it is ("reliability"), "ap", "auroc"
                          [C], on test images or clients' ("held_out"); "baselines": who gains by taking part
    mistakes.safetensors  test images that the final model names wrongly; see misclassified.py
    misses.safetensors    the same drawn, of tasks of another form than a class an image; see worst_images.py
    baselines/            each client alone, all images together; see baseline_folder.py
    report.html           made from the files above, as model_card.md is
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedvision.config import ExperimentConfig
from fedvision.errors import ConfigError, RunFolderError
from fedvision.files import (
    PART,
    append_line,
    json_line,
    json_page,
    read_json,
    read_lines,
    recording,
    replace_file,
)
from fedvision.runs.checkpoint import Checkpoints
from fedvision.runs.continuation import refusal
from fedvision.runs.environment import environment
from fedvision.runs.member_register import FILE, MemberRegister
from fedvision.runs.misclassified import Misclassified
from fedvision.runs.model_description import FILE as MODEL_FILE
from fedvision.runs.model_description import ModelDescription, with_digest
from fedvision.runs.records import in_their_rounds
from fedvision.runs.tensor_file import hashed, pieces

if TYPE_CHECKING:
    from fedvision.types import State


class RunFolder:
    """One run's folder; make it with ``create``, ``resume`` or ``read``."""

    path: Path
    """The folder."""
    checkpoints: Checkpoints
    """Where a killed run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._goes_on = False
        self._extended: ExperimentConfig | None = None
        self.went_on = "the run had been stopped or killed, and went on"
        """Notice where a run that was begun before goes on."""
        self.checkpoints = Checkpoints(path / "checkpoint", [path / "rounds.jsonl", path / "timings.jsonl"])

    @classmethod
    def create(cls, path: Path, config: ExperimentConfig) -> RunFolder:
        """Make the folder of a new run and write down its experiment and environment.

        Raises:
            RunFolderError: The folder has files in it, or cannot be made or written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if _contents(path):
                advice = "go on with its run with --resume, or name another one with --out"
                raise RunFolderError(f"{path}: the folder is not empty; {advice}")
            replace_file(path / "config.toml", config.to_toml())
            facts = environment(config.training.device, config.model)
            replace_file(path / "environment.json", json_page(facts))
        except OSError as error:
            raise RunFolderError(
                f"{path}: the run folder cannot be written: {error.strerror}; name another one with --out"
            ) from error
        return cls(path)

    @classmethod
    def resume(cls, path: Path, config: ExperimentConfig) -> RunFolder:
        """Open the folder of a run that shall go on; where there is none, make it. ``settle`` writes first.

        The experiment may have more rounds than before, where the finished ones are those of the longer run.

        Raises:
            RunFolderError: The folder has files but no run in it, or the run of another experiment.
        """
        if not path.is_dir() or not _contents(path):
            return cls.create(path, config)
        folder = cls.read(path)
        begun = folder.config()
        if why := refusal(begun, config, len(folder.rounds())):
            raise RunFolderError(f"{path}: {why}, or name another folder with --out")
        if not os.access(path, os.W_OK):
            raise RunFolderError(f"{path}: there is no permission to write it; name another one with --out")
        folder._goes_on = True
        if config.rounds > begun.rounds:
            folder._extended = config
            folder.went_on = f"the run of {begun.rounds} rounds went on to {config.rounds}"
        return folder

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Open a run folder to read it.

        Raises:
            RunFolderError: There is no run in it.
        """
        if not (path / "config.toml").is_file():
            what = (
                "it has no config.toml, so it is no run folder"
                if path.exists()
                else "there is no such folder"
            )
            raise RunFolderError(f"{path}: {what}; name a folder that a run has written")
        return cls(path)

    def config(self) -> ExperimentConfig:
        """Return the experiment.

        Raises:
            RunFolderError: The file is damaged.
        """
        try:
            return ExperimentConfig.from_toml((self.path / "config.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError, ConfigError) as error:  # no TOML and no UTF-8 are both ValueErrors
            raise RunFolderError(f"{self.path / 'config.toml'}: it cannot be read: {error}") from error

    def config_text(self) -> str:
        """Return the experiment's TOML as it stands in the folder."""
        return (self.path / "config.toml").read_text(encoding="utf-8")

    def note_invocation(self, facts: Mapping[str, Any]) -> None:
        """Write down how the run was called, beside what is known of that already.

        Raises:
            RecordError: The disk is full or refuses.
        """
        self._write("invocation.json", json_page({**self.invocation(), **facts}))

    def invocation(self) -> dict[str, Any]:
        """Return how the run was called; empty where nobody wrote it down."""
        return read_json(self.path / "invocation.json")

    def write_split(self, split_facts: Mapping[str, Any]) -> None:
        """Write down how the images are spread.

        Args:
            split_facts: ``digest`` (text), ``classes`` [C names], ``counts`` [K][C] training images,
                ``left_out`` (images that no client got), and for a sample of the clients what ``Split.facts``
                adds.

        Raises:
            RunFolderError: The run went on and its images are spread otherwise than before.
            RecordError: The file cannot be written.
        """
        if (known := self.split().get("digest")) not in (None, split_facts["digest"]):
            raise RunFolderError(
                f"{self.path}: the images or their split differ from the run's first part (digest "
                f"{split_facts['digest']}, then {known}); restore the data, or start again with --out"
            )
        self._write("split.json", json_page(split_facts))

    def settle(self, data: Mapping[str, str], code: Mapping[str, str]) -> list[str]:
        """Write down what data a run works on, or compare it with what its first part worked on.

        Args:
            data: Digests by part, as ``data.identity`` returns them.
            code: Digests of the source of modules that the experiment names, by module.

        Returns:
            Modules whose source is another than in the run's first part: a corrected one is no error.

        Raises:
            RunFolderError: The data differ; nothing was written.
            RecordError: The file cannot be written.
        """
        known = read_json(self.path / "data.json")
        if known:
            before = known.pop("code", {})
            if others := [part for part in [*known, *data] if known.get(part) != data.get(part)]:
                raise RunFolderError(
                    f"{self.path}: the data are not those of the run's first part: other "
                    f"{' and '.join(dict.fromkeys(others))}; restore them, or start again with --out"
                )
            changed = [module for module in code if before.get(module) != code[module]]
        else:
            changed = []
        if self._goes_on:
            self._reopen()
        if not known or changed:
            self._write("data.json", json_page({**data, "code": code}))
        return changed

    def append_round(self, record: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        """Add a round's line and its times; both are on the disk when this returns.

        Args:
            record: What depends on config and data alone; has ``round``. NaN becomes null.
            seconds: Seconds by stage.

        Raises:
            RecordError: The disk is full or refuses.
        """
        number = record["round"]
        with recording(f"round {number}", self.path / "rounds.jsonl"):
            append_line(self.path / "rounds.jsonl", json_line(record))
            append_line(self.path / "timings.jsonl", json_line({"round": number, **seconds}))

    def append_event(self, round: int, what: str, client: str | None = None) -> None:
        """Add something that happened; it stays when a run goes on from an earlier round.

        Raises:
            RecordError: The disk is full or refuses.
        """
        with recording("an event", self.path / "events.jsonl"):
            line = {"round": round, "client": client, "what": what}
            append_line(self.path / "events.jsonl", json_line(line))

    def events(self) -> list[dict[str, Any]]:
        """Return the notices while the run went on: ``round``, ``client`` or None, ``what``."""
        return read_lines(self.path / "events.jsonl")

    def names(self) -> dict[int, str]:
        """Return the clients' names by number; empty in a simulation."""
        return self.members().names

    def members(self) -> MemberRegister:
        """Return the register of who takes part in a run across machines; empty in a simulation.

        Raises:
            RunFolderError: A line is damaged.
        """
        return MemberRegister(self.path / FILE)

    def rounds(self) -> list[dict[str, Any]]:
        """Return the rounds' records in order, each with what was measured of the model after it.

        Raises:
            RunFolderError: A line is damaged.
        """
        return in_their_rounds(read_lines(self.path / "rounds.jsonl"))

    def timings(self) -> list[dict[str, Any]]:
        """Return the rounds' seconds by stage, each with ``round``."""
        return read_lines(self.path / "timings.jsonl")

    def split(self) -> dict[str, Any]:
        """Return how the images are spread, or an empty table before that is known."""
        return read_json(self.path / "split.json")

    def summary(self) -> dict[str, Any]:
        """Return how the run ended, or an empty table while it runs or after it was killed."""
        return read_json(self.path / "summary.json")

    def environment(self) -> dict[str, Any]:
        """Return versions, processor and device."""
        return read_json(self.path / "environment.json")

    def mistakes(self) -> Misclassified | None:
        """Return the test images that the final model named wrongly, or None where none were kept."""
        file = self.path / "mistakes.safetensors"
        return Misclassified.decode(file) if file.exists() else None

    def write_model(self, state: State, description: ModelDescription, *, best: bool = False) -> None:
        """Write the final model, then its description with the digest of the model's file.

        A kill between the two leaves a digest that fits no more: such a model is not loaded.

        Args:
            state: All tensors of the network.
            description: Of the network; its digest is filled in.
            best: It is the best model, which has a folder of its own.

        Raises:
            RecordError: The disk is full or refuses.
        """
        digest, place = hashlib.sha256(), "best/" if best else ""
        if best:
            with recording("best", self.path):
                (self.path / "best").mkdir(exist_ok=True)
            self._write("best/invocation.json", json_page(self.invocation()))
        self._write(f"{place}model.safetensors", hashed(pieces(state), digest.update))
        self._write(f"{place}{MODEL_FILE}", json_page(with_digest(description, digest.hexdigest())))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write how the run ended.

        Args:
            summary: ``status`` (``finished``, ``failed``, ``stopped``), and where known ``rounds`` (done),
                ``notices`` (sentences), ``error`` (sentence), ``parameters``, ``state_bytes``,
                ``network_bytes``.

        Raises:
            RecordError: The disk is full or refuses.
        """
        self._write("summary.json", json_page(summary))

    def write_mistakes(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        predicted: NDArray[np.int64],
        confidence: NDArray[np.floating[Any]],
    ) -> None:
        """Keep test images that the final model names wrongly, in the order in which the report shows them.

        Args:
            images: uint8 [M, H, W, channels].
            labels: True classes [M].
            predicted: Predicted classes [M].
            confidence: Probability that the model gave to the predicted class [M], 0 to 1.

        Raises:
            ValueError: The arrays do not fit each other.
            RecordError: The disk is full or refuses.
        """
        examples = Misclassified(images=images, labels=labels, predicted=predicted, confidence=confidence)
        self._write("mistakes.safetensors", examples.encode())

    def write_page(self, name: str, text: str) -> Path:
        """Write a text made from the folder, such as ``report.html``, into it and return its path.

        Raises:
            RecordError: The disk is full or refuses.
        """
        self._write(name, text)
        return self.path / name

    def _write(self, name: str, content: bytes | str | Iterable[bytes | memoryview]) -> None:
        with recording(name, self.path):
            replace_file(self.path / name, content)

    def _reopen(self) -> None:
        with recording("the environment", self.path):
            config = self.config()
            self._note_environment(environment(config.training.device, config.model))
            if self._extended is not None:
                replace_file(self.path / "config.toml", self._extended.to_toml())
            if self._extended is not None or self.summary().get("status") != "finished":
                (self.path / "summary.json").unlink(missing_ok=True)  # how the run ended is open again

    def _note_environment(self, now: dict[str, Any]) -> None:
        """Keep the environments of all parts of a run; the newest one stands in front."""
        last = self.environment()
        earlier = last.pop("earlier", [])
        if last != now:
            before = [*earlier, last] if last else earlier
            facts = {**now, "earlier": before} if before else now
            replace_file(self.path / "environment.json", json_page(facts))


def _contents(path: Path) -> list[str]:
    """Return what is in a folder beside files that a killed run left incomplete."""
    return [entry.name for entry in path.iterdir() if not entry.name.endswith(PART)]
