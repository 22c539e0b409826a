"""The server command: a SuperLink, a run on it, and the run folder; ``kill -9`` of any part is survived.

The command is the run's ServerApp itself: it starts the run through the SuperLink's private side, takes the
task that Flower's superexec would take, and drives the rounds. So there is one process to watch beside the
SuperLink, its exit code is the run's, no app bundle is unpacked and no dependency is installed. What Flower
cannot do is done by the run folder's checkpoints: a server that is started again begins a new Flower run at
the round in which the old one was, and clients know it by its key as the same run.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from fedvision.aggregation.masking import read_certificates
from fedvision.data.shards import Shard
from fedvision.deployment.run_manifest import RunManifest, build_fab
from fedvision.deployment.server.audit_trail import AuditTrail
from fedvision.deployment.server.deployed_clients import DeployedClientRegistry
from fedvision.deployment.server.heartbeat import BEAT_S, LOST_S, Heartbeat
from fedvision.deployment.server.options import SuperlinkOptions
from fedvision.deployment.server.own_images import server_trainer
from fedvision.deployment.server.registrations import registered
from fedvision.deployment.server.superlink_grid import SuperLinkGrid, expected_replies
from fedvision.deployment.server.superlink_process import SuperlinkProcess
from fedvision.deployment.transport.internals_message_objects import LinkDown, LinkRefused
from fedvision.deployment.transport.internals_run import RunLink
from fedvision.deployment.transport.message_format import ALIGN
from fedvision.errors import FedVisionError, RecordError, RunError, RunExpired
from fedvision.experiment import Experiment
from fedvision.files import read_json, recording, replace_file
from fedvision.flower.client_registry import ClientRegistry
from fedvision.flower.strategy import FlowerStrategy
from fedvision.models.freezing import frozen_state
from fedvision.models.parameter_groups import own_weights_needed
from fedvision.models.state import digest
from fedvision.runs.events import named
from fedvision.runs.folder import RunFolder
from fedvision.runs.member_register import OPERATOR
from fedvision.runs.run_recorder import RunRecorder
from fedvision.runs.stop_request import StoppedByOperator
from fedvision.runs.waiting import note_waiting
from fedvision.stages import stage
from fedvision.tasks.base import build_task
from fedvision.training.evaluate import Evaluation
from fedvision.types import State

log = logging.getLogger("fedvision.deployment")
FILE = "deployment.json"
"""The run folder's file with the run's key."""
_GIVE_UP_S = 300.0
_NOTICE_AFTER_S = 8.0


class Deployment(RunRecorder):
    """A run across machines: ``RunRecorder`` over a SuperLink.

    Args:
        experiment: What to run; its training images stay unused.
        folder: Where it is recorded.
        options: As ``RunRecorder`` takes them.
    """

    def __init__(self, experiment: Experiment, folder: RunFolder, **options: Any) -> None:
        super().__init__(experiment, folder, **options)
        self._file = folder.path / FILE
        self._saver = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None
        self._register = folder.members()
        self._audit = AuditTrail(folder.path)
        self._register.on_added = self._audit.member
        self._members: DeployedClientRegistry | None = None
        self._reported = 0

    def run(self, place: SuperlinkOptions, process: SuperlinkProcess | None, wait_for: int) -> State:
        """Run the rounds that are left on a SuperLink that is up.

        Args:
            place: The SuperLink.
            process: Its process, where it is ours to start again.
            wait_for: Clients that must be there before the first round.

        Raises:
            RunError: The run failed, or the SuperLink stayed away.
        """
        with self.interruption, self.stop:
            self.resume()
            # Before a SuperLink of our own starts: whoever connects to it connects to this run.
            self._audit.watch(place.state)
            note_waiting(self.folder.path, "")  # what a server that was killed left
            if process is not None:
                stage("starting the SuperLink")
                place = process.open()
                if process.notice:
                    self.note(process.notice)
            try:
                return self._over(place, process, wait_for)
            finally:
                if process is not None and not process.keep:
                    process.stop()

    def _over(self, place: SuperlinkOptions, process: SuperlinkProcess | None, wait_for: int) -> State:
        link = RunLink(place.private, roots=place.roots, secret=place.secret(), objects=place.objects)
        self._end_last(link)
        try:
            with self.progress:
                if not self.over:
                    self._rounds(link, place, process, wait_for)
                    self._saved()
                else:
                    self._recall_split()
            self.finish(server_trainer(self.experiment, self.folder), self.experiment.dataset.test)
            self._audit.run("run finished")
        finally:
            self._saver.shutdown()
            link.close()
        return self.state

    def mark_failed(self, error: BaseException) -> None:
        """Note in the run folder and the audit log that and why the run ended early."""
        super().mark_failed(error)
        note_waiting(self.folder.path, "")
        self._audit.stopped(error, asked=self.stop.requested)
        self._audit.close()

    def round_done(
        self,
        record: Mapping[str, Any],
        seconds: Mapping[str, float],
        state: State,
        reliability: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a round's line; its checkpoint is written while the next round's messages are made."""
        self._saved()
        self._record_members(record)
        try:
            super().round_done(record, seconds, state, reliability)
        except StoppedByOperator:
            self._saved()
            raise
        if self._members is not None:
            self._register.round, self._members.settled = self.done + 1, False

    def given_up(self, record: Mapping[str, Any]) -> None:
        """Note the events of a round that is not recorded."""
        self._record_members(record)
        super().given_up(record)

    def client_done(self, round: int, done: int, total: int) -> None:
        """Move the progress bar; who joins from now on is selected in the next round."""
        super().client_done(round, done, total)
        self._audit.look()
        if self._members is not None:
            self._members.settled = True

    def _between_rounds(self) -> None:
        self._audit.round = self._register.round
        self._audit.look()
        self.stop.check()

    def names(self) -> Mapping[int, str]:
        """Return the clients' names by number."""
        return self._register.names

    def _record_members(self, record: Mapping[str, Any]) -> None:
        """Write who failed in a round, and how the images are spread if a client joined or reported more."""
        for item in record["refused"]:
            if item["kind"] == "declined":
                continue  # the registry wrote it down when it was said
            self._register.failed(item["client"], item["stage"], item["reason"])
        if self._members is not None and len(self._register.lines) > self._reported:
            self._record_spread(self._members)

    def _save(self, round: int, tensors: Mapping[str, State], values: Mapping[str, Any]) -> None:
        self._saving = self._saver.submit(super()._save, round, tensors, values)

    def _saved(self) -> None:
        """Wait until the last checkpoint is on the disk: before that no client may start a later round.

        Raises:
            RecordError: The disk is full or refuses.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def begin(self, client_registry: ClientRegistry) -> None:
        """Show the progress, and write how the images are spread as far as the clients report it."""
        assert isinstance(client_registry, DeployedClientRegistry)
        self._members, self._register.round = client_registry, self.done + 1
        self._record_spread(client_registry)
        super().begin(client_registry)

    def _record_spread(self, members: DeployedClientRegistry) -> None:
        """Write how many images of each class the members of now have."""
        facts: dict[str, Any] = {"digest": "", "classes": list(self.experiment.dataset.classes)}
        # What is shown of one client alone; the totals are those of the reported numbers.
        facts |= {"counts": members.table().clip(min=0), "left_out": 0}
        facts |= {"clients": len(members), "shown": members.with_counts, "exact": members.exact}
        if withheld := len(members) - len(members.with_counts):
            facts |= {"withheld": withheld}
        self.record_split({**facts, "totals": list(members.counts)}, np.array(members.counts))
        self._reported = len(self._register.lines)

    def _rounds(
        self, link: RunLink, place: SuperlinkOptions, process: SuperlinkProcess | None, wait_for: int
    ) -> None:
        facts, task = manifest_of(self.experiment, self._key()), build_task(self.config.task)
        self._register.round = self.done
        members = DeployedClientRegistry(
            self._register,
            facts.run,
            len(self.experiment.dataset.classes),
            self._on_waiting,
            self.note,
            lambda: registered(link),
            needed=self.config.loss.needs_federation,
            per_image=task.per_image,
            authorities=read_certificates(place.roots) if place.roots else (),
            between_rounds=self._between_rounds,
        )
        restore = _Restoring(process, self.note, self.progress.note)
        self._remember(flower_run=self._start(link, restore, facts))
        self._audit.run("run went on" if self._register.lines else "run began", by=OPERATOR)
        counts = task.stats_shape(len(self.experiment.dataset.classes))
        measured = self.config.evaluation.with_training
        expected = expected_replies(self.experiment.updates, counts, measured=measured)
        grid = SuperLinkGrid(
            link,
            expected,
            members.numbers,
            restore,
            self._on_client_notice,
            members.has,
            self._saved,
            members=members.__len__,
            on_declined=members.declined,
        )
        with Heartbeat(link) as heartbeat, _outcome(link):
            members.least = wait_for
            try:
                members.present(grid)
                members.least = 1
                self.run_rounds(grid, members, self._measure())
            except RunError as error:
                if _was_refused(error) and heartbeat.silence > LOST_S:
                    raise RunExpired(f"the server sent no heartbeat for {heartbeat.silence:.0f} s") from error
                raise

    @staticmethod
    def _start(link: RunLink, restore: _Restoring, facts: RunManifest) -> int:
        while True:
            try:
                return link.start(build_fab(), facts.to_table())
            except LinkDown as error:
                restore(error)

    def _on_waiting(self, text: str) -> None:
        """Say for whom the run waits, on the screen and to ``fedvision status``."""
        note_waiting(self.folder.path, text)
        if text:
            self.progress.note(text)

    def _on_client_notice(self, client: int, sentence: str) -> None:
        """Record a note of a client on itself."""
        who, what = named(client, self.names()), f"reports that {sentence}"
        number = min(self.done + 1, self.config.rounds)
        with suppress(RecordError):
            # A restarted server requests the same reply, and gets the same.
            if {"round": number, "client": who, "what": what} not in self.folder.events():
                self.folder.append_event(number, what, who)
        self.progress.note(f"client {who} {what}")

    def _recall_split(self) -> None:
        facts = self.folder.split()
        self.record_split(facts, np.array(facts["totals"], np.int64))

    def _key(self) -> str:
        """Return the key under which clients keep what belongs to this run folder."""
        key = read_json(self._file).get("run")
        if not key:
            key = secrets.token_hex(8)
            self._remember(run=key)
        return str(key)

    def _remember(self, **facts: Any) -> None:
        with recording("the deployment", self._file):
            replace_file(self._file, json.dumps({**read_json(self._file), **facts}, indent=2) + "\n")

    def _end_last(self, link: RunLink) -> None:
        """End the Flower run of a server that was killed, so that clients do not work for it."""
        if last := read_json(self._file).get("flower_run"):
            with suppress(FedVisionError):
                link.stop(int(last))

    def _measure(self) -> Any:
        test = self.experiment.dataset.test
        if test is None:
            return None
        trainer, shard = server_trainer(self.experiment, self.folder), Shard.whole(test)

        def measure(grid: object, client_registry: object, state: State) -> Evaluation:
            return trainer.measure(state, shard)

        return measure


def manifest_of(experiment: Experiment, key: str) -> RunManifest:
    """Return what clients receive of a run.

    Args:
        experiment: The experiment, built.
        key: The run's.
    """
    config, model = experiment.config, experiment.model
    _, height, width, channels = experiment.dataset.train.images.shape
    files = experiment.weights.files if experiment.weights else {}
    return RunManifest(
        run=key,
        experiment=config.to_toml(),
        classes=experiment.dataset.classes,
        image=(height, width, channels),
        frozen=digest(frozen_state(model)),
        weights={name: files[name] for name in own_weights_needed(model, config.model)},
        constant_bytes=constant_bytes(experiment.strategy),
    )


def constant_bytes(strategy: Strategy) -> int:
    """Return the bytes of what a strategy sends each client once, with what lies between tensors."""
    groups = strategy.inner.constant_tensors() if isinstance(strategy, FlowerStrategy) else {}
    return sum(tensor.nbytes + ALIGN for state in groups.values() for tensor in state.values())


class _Restoring:
    """Waits for a SuperLink that does not answer, and starts it again where it is ours.

    Args:
        process: The SuperLink's process, or None where somebody else runs it.
        note: Is called with what shall stand in the report.
        notify: Is called with what a person may want to see now.
    """

    def __init__(
        self,
        process: SuperlinkProcess | None,
        note: Callable[[str], None],
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._process, self._note, self._notify = process, note, notify
        self._since = self._last = self._error_of = float("-inf")

    def __call__(self, error: LinkDown) -> None:
        now = time.monotonic()
        if now - self._last > 2 * BEAT_S:
            self._since = self._error_of = now
        self._last = now
        if now - self._error_of >= _NOTICE_AFTER_S:
            self._error_of = now
            self._notify(
                f"the SuperLink does not answer for {now - self._since:.0f} s: {error}; trying again"
            )
        if now - self._since > _GIVE_UP_S:
            raise RunError(f"the SuperLink does not answer for {_GIVE_UP_S:.0f} s: {error}") from error
        if self._process is not None and self._process.ensure():
            self._note("the SuperLink ended unexpectedly and was started again")
        time.sleep(0.3)


def _was_refused(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, LinkRefused):
        error = error.__cause__
    return error is not None


@contextmanager
def _outcome(link: RunLink) -> Iterator[None]:
    """Report to the SuperLink how the run ended, so that its own list has the same."""
    try:
        yield
    except BaseException as error:
        with suppress(FedVisionError):
            link.finish("failed", str(error) or type(error).__name__)
        raise
    with suppress(FedVisionError):
        link.finish("completed", "")
