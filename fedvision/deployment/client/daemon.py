"""The client process: one connection to the server that outlives the training, the server and itself.

It uses Flower's Fleet API as a SuperNode does (TLS, a signature on every call, heartbeats), reads what the
server says of a run, and lets a process of its own do each task. No code of the server ever runs here. What
may go wrong, and what becomes of it:

* the training dies: a new process does the task once more; if that dies, too, or takes too long, an error
  reply says so;
* this process dies: the same command takes the unanswered message up again, under the same node number;
* the server dies or the link breaks: it tries again for as long as ``superlink.retry_for`` says;
* the server was started again and asks for the same task: it gets the same reply, not a second training.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Error, Message, MessageType

from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.connection import connect
from fedvision.deployment.client.connectivity import NOBODY_LISTENS, diagnose
from fedvision.deployment.client.participation_policy import Policy
from fedvision.deployment.client.redaction import cause, redact_paths
from fedvision.deployment.client.retry import RetryBackoff
from fedvision.deployment.client.state_directory import FileSource, Reply, StateDirectory
from fedvision.deployment.client.training_process import ProcessDied, TaskFailed, TrainingProcess
from fedvision.deployment.declining import Declined
from fedvision.deployment.run_manifest import RunManifest
from fedvision.deployment.transport.internals_message_objects import (
    IncomingMessage,
    LinkDown,
    LinkRefused,
    NotDeliveredYet,
    RunEnded,
    pack_message,
    pack_tensors,
    reply_to,
)
from fedvision.deployment.transport.message_format import MAX_NOTES, Expected, MessageHeader
from fedvision.errors import ConfigError, FedVisionError, ProtocolError
from fedvision.flower import codec
from fedvision.flower.internals import CLIENT_RAISED, DECLINED
from fedvision.formatting import size

log = logging.getLogger("fedvision.deployment")
_BEAT_S, _BEAT_AGAIN_S = 4.0, 1.0
_AWAY_S = 15.0
"""A silence between two beats that the report shall name: they are a few seconds apart."""
_MEMORIES = {"process": "main memory", "device": "the GPU's memory"}
"""Of the training process, in words for the log."""
_BUSY_S, _IDLE_S, _IDLE_AFTER_S = 0.02, 1.0, 30.0
"""Pauses between two questions to the server, which holds them while there is nothing to say: while a run
goes on, and when nothing happened for a while."""
_EMPTY_S, _SURE_S = 60.0, 40.0
"""Who had nothing in hand for the first may have again what he was given longer ago than the second, which is
longer than a question may take."""
_ROUND_TYPES = (MessageType.TRAIN, MessageType.EVALUATE)
_UPLOAD_S = 180.0
"""How long the server may take to deliver a message that it announced; Flower gives up then, too."""


def memory_text(most: Mapping[str, int]) -> str:
    """Return what the training process has held at most, for the end of a task's line in the log."""
    held = [(most.get(kind, 0), name) for kind, name in _MEMORIES.items()]
    return "".join(f", so far at most {size(count)} of {name}" for count, name in held if count)


class ClientDaemon:
    """One client, from joining to leaving.

    Args:
        config: The machine's own file.
        folder: Where it lies.
        ask: Asks the owner a question and returns the answer; None where there is no terminal.
    """

    def __init__(
        self, config: ClientMachineConfig, folder: Path, ask: Callable[[str], str] | None = None
    ) -> None:
        config.superlink.check_files()
        self._config = config
        self._state = StateDirectory(Path(config.state))
        self._policy = Policy(config.policy, Path(config.state), ask=ask)
        self._trainer = TrainingProcess(config, folder)
        self._link = connect(config)
        self._reached = threading.Event()
        self._backoff = RetryBackoff(config.superlink.retry_for, sleep=self._rest)
        self._runs: dict[int, RunManifest] = {}
        self._opened: tuple[int, str] = (0, "")
        self._worked, self._most = 0.0, ""
        self._expected: Mapping[str, Expected] = {}
        self._empty_since: float | None = None
        self._lost = threading.Event()
        self._in_hand: bytes | None = None
        self._notes: list[str] = []
        self._twice = False
        self._answered = ""
        self._over = threading.Event()

    def serve(self) -> None:
        """Join and serve until the process is stopped.

        Raises:
            ConfigError: This client runs already, or its images cannot be read.
            RunError: The server could not be reached for ``superlink.retry_for`` seconds.
        """
        with self._state.locked():
            died = False
            with self._disk("that this client runs"):
                if died := self._state.begin():
                    self._note("its process died and was started again")
            beats = threading.Thread(target=self._beat, daemon=True)
            try:
                self._trainer.start()
                if not died:  # else the server waits for it, and its images were read before
                    self._trainer.look()
                while True:
                    try:
                        self._join()
                        if not beats.is_alive():
                            beats.start()
                        self._work()
                    except (LinkDown, LinkRefused) as error:
                        self._backoff.wait(partial(self._why, error))
            finally:
                self._leave(beats)

    def _why(self, error: FedVisionError) -> str:
        """Return why there is no connection: after a run that is no fault."""
        why = diagnose(self._config.superlink, error)
        if self._answered and not self._in_hand and NOBODY_LISTENS in why:
            return (
                f"{self._config.superlink.address}: the server has gone: its run is over, or it was stopped; "
                "this client waits for the next one, Ctrl-C ends it"
            )
        return why

    def _rest(self, seconds: float) -> None:
        """Wait before the next attempt, or until a heartbeat found the server."""
        self._reached.clear()
        self._reached.wait(seconds)

    def _leave(self, beats: threading.Thread) -> None:
        self._over.set()
        self._trainer.stop()
        if beats.ident is not None:  # it was online; the thread itself may have ended by now
            beats.join(timeout=10)
            with suppress(FedVisionError):
                self._link.deactivate()
        self._link.close()
        self._state.end()

    def _join(self) -> None:
        """Go online under the number of last time, or as the server gives it."""
        address = self._config.superlink.address
        known = self._link.node_id or self._state.node(address)
        self._lost.clear()
        self._empty_since = None
        # A message that the server gave and that is not here was lost with the connection.
        empty_for = None if self._message() else 0.0
        if known:
            self._link.node_id = known
            with suppress(LinkRefused):
                # A node that was killed counts as online for a while and may not be activated; its own
                # heartbeat brings it back at once.
                if self._link.beat(empty_for):
                    self._joined()
                    return
        node = self._link.activate()
        self._link.beat(empty_for)
        with self._disk("this client's number"):
            self._state.keep_node(address, node)
        self._joined()

    def _joined(self) -> None:
        if self._backoff.success():
            log.info("%s is connected to %s", self._config.name, self._config.superlink.address)

    def _beat(self) -> None:
        pause, last_beat = _BEAT_S, time.monotonic()
        while not self._over.wait(pause):
            try:
                if self._link.beat(self._empty_for()):
                    self._reached.set()
                else:
                    self._lost.set()
                away, last_beat = time.monotonic() - last_beat, time.monotonic()
                if away > _AWAY_S:
                    self._note(f"its connection was away for {away:.0f} s")
                pause = _BEAT_S
            except LinkRefused:
                self._lost.set()
            except LinkDown:
                pause = _BEAT_AGAIN_S  # the main thread meets the same and says so

    def _empty_for(self) -> float | None:
        since = self._empty_since
        return _SURE_S if since is not None and time.monotonic() - since > _EMPTY_S else None

    def _work(self) -> None:
        """Answer messages until the connection is lost."""
        last = float("-inf")
        while not self._lost.is_set():
            resumed = self._message()
            message = resumed or self._link.receive()
            if message is None:
                self._empty_since = self._empty_since or time.monotonic()
                idle = time.monotonic() - last > _IDLE_AFTER_S
                time.sleep(_IDLE_S if idle else _BUSY_S)
                continue
            self._in_hand, self._empty_since, self._twice = message, None, not resumed
            with self._disk("a message in work"):
                self._state.keep_message(message)
            try:
                incoming = self._link.incoming(message)
                if resumed:
                    # The server that is there now may have lost what it knew: it is sent the run again, or a
                    # task of a run that it does not know would be tried for ever.
                    self._runs.pop(incoming.head.metadata.run_id, None)
                if incoming.head.metadata.message_id == self._answered:
                    self._note("it was given a message twice, and answered it once")
                else:
                    self._handle(incoming)
                    self._answered = incoming.head.metadata.message_id
            except RunEnded:
                log.warning("nobody waits for this task any more; it is dropped")
            except ProtocolError as error:  # after a power cut; the server gives it again
                log.warning("%s; it is dropped", error)
            self._in_hand = None
            self._state.answered()
            last = time.monotonic()
        raise LinkRefused("the server no longer knows this client")

    def _message(self) -> bytes | None:
        """Return the message that is not answered yet, or None."""
        return self._in_hand or self._state.message()

    @staticmethod
    @contextmanager
    def _disk(what: str) -> Iterator[None]:
        """Go on where the disk is full: what is not kept is lost only if this process dies, too."""
        try:
            yield
        except OSError as error:
            log.warning("%s could not be kept: %s; make room", what, error.strerror)

    def _handle(self, incoming: IncomingMessage) -> None:
        began = time.monotonic()
        kind = incoming.head.metadata.message_type
        try:
            self._worked, self._most = 0.0, ""
            layout, task = self._do(incoming)
            stored = self._state.reply(kind)
            header = replace(MessageHeader.from_text(layout), notes=self._notes_of(stored, task))
            tensors = pack_tensors(FileSource(stored.path), header)
            reply = reply_to(incoming.head, pack_message(header, tensors))
            outcome = "done"
        except Declined as error:
            outcome = f"declined: {error}"
            reply = reply_to(incoming.head, Error(code=DECLINED, reason=error.to_text()))
        except (TaskFailed, ProtocolError, ConfigError, OSError) as error:
            outcome = cause(error)
            reason = redact_paths(outcome, self._config)
            reply = reply_to(incoming.head, Error(code=CLIENT_RAISED, reason=reason))
        took = time.monotonic() - began
        self._answer(reply, took)
        with suppress(RunEnded):
            self._link.confirm(incoming)
        seconds = (took, time.monotonic() - began, self._worked)
        log.info(
            "%s: %s (%.1f s, %.1f s with sending, %.2f s of work%s)", kind, outcome, *seconds, self._most
        )

    def _notes_of(self, stored: Reply, task: str) -> tuple[str, ...]:
        """Return the notes on this client in the reply to a task, the same for every request."""
        notes = stored.notes(task)
        if notes is None:
            notes = tuple(self._notes)
            with self._disk("the notes on this client"):
                stored.keep_notes(task, notes)
            for note in notes:
                with suppress(ValueError):  # the heartbeats' thread may have pushed it out
                    self._notes.remove(note)
        return notes

    def _note(self, sentence: str) -> None:
        """Note what befell this client, for its next reply; of an idle one's notes the last are enough."""
        self._notes.append(sentence)
        del self._notes[:-MAX_NOTES]

    def _answer(self, reply: Message, took: float) -> None:
        name = reply.object_id

        def keep(session: str) -> None:
            with self._disk("how far a reply was sent"):
                self._state.keep_session(name, session)

        self._link.answer(reply, took, self._state.session(name), keep)

    def _do(self, incoming: IncomingMessage) -> tuple[str, str]:
        """Do a task; return the reply's layout, whose tensors are in the inbox, and the task's digest."""
        facts = self._facts(incoming.head.metadata.run_id)
        kind = incoming.head.metadata.message_type
        layout = self._patiently(incoming.open)
        self._policy.check(facts, kind, layout.members)
        reply = self._state.reply(kind)
        self._trainer.start()  # one that died between two tasks costs nothing
        # A request for client information is answered with images that were changed in the meantime.
        if self._opened != (self._trainer.generation, facts.run) or kind == codec.CLIENT_INFO:
            self._open(facts, reported=kind != codec.CLIENT_INFO)
        self._expected.get(kind, Expected()).check(layout)
        # Beside the rounds, a server asks anew for what may have changed: what this machine has and shares.
        request_id = "" if kind in _ROUND_TYPES else incoming.head.metadata.message_id
        task = _digest(facts.run, kind, layout, [*incoming.pieces, request_id])
        if stored := reply.layout(task):
            log.info("%s: this task was done before; the same reply is sent", kind)
            if self._twice:
                self._note("it got a task twice, and did it once")
            return stored, task
        self._patiently(lambda: self._fetch(incoming, layout, facts.run))
        reply.drop()
        files = {"task": str(self._state.task), "reply": str(reply.path)}
        answer = self._surely({"answer": kind, "layout": layout.to_text(), **files}, facts)
        self._worked = float(answer.get("worked", 0.0))
        self._most = memory_text(answer.get("memory", {}))
        reply.keep(task, answer["layout"])
        if kind == MessageType.TRAIN:
            with self._disk("in how many rounds this client has trained"):
                self._policy.trained(facts.run)
        return str(answer["layout"]), task

    def _open(self, facts: RunManifest, *, reported: bool) -> None:
        """Make the training process ready for a run; ``reported``: whether the server knows the images."""
        request = {"open": facts.to_table()}
        try:
            opened = self._trainer.call(request, limited=False)
        except ProcessDied:
            opened = self._trainer.call(request, limited=False)
        self._expected = {name: Expected.from_text(text) for name, text in opened["expected"].items()}
        self._opened = (self._trainer.generation, facts.run)
        if reported and opened["changed"]:
            self._note("its images changed since it reported them")

    def _surely(self, request: Mapping[str, Any], facts: RunManifest) -> dict[str, Any]:
        """Do a task once more where its process died: as if the client had died with it and come back."""
        try:
            return self._trainer.call(request)
        except ProcessDied as error:
            self._note("its training process died in a task, which it did once more")
            log.warning("%s; the task is done once more", error)
            self._trainer.start()
            self._open(facts, reported=True)
            return self._trainer.call(request)

    def _fetch(self, incoming: IncomingMessage, layout: MessageHeader, run: str) -> None:
        with self._state.task.open("wb") as file:
            for piece in incoming.read(layout, self._state.constants(run)):
                file.write(piece)

    def _facts(self, run_id: int) -> RunManifest:
        if run_id not in self._runs:
            self._runs[run_id] = RunManifest.from_table(self._link.run_config(run_id))
        return self._runs[run_id]

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Call until what the server announced has been delivered."""
        end, pause = time.monotonic() + _UPLOAD_S, 0.02
        while True:
            try:
                return call()
            except NotDeliveredYet as error:
                if time.monotonic() > end:
                    raise RunEnded("the server announced a message and did not deliver it") from error
                time.sleep(pause)
                pause = min(2 * pause, 0.1)


def _digest(run: str, kind: str, layout: MessageHeader, details: list[str]) -> str:
    """Return what is the same for two messages with the same task, whoever takes part by now."""
    layout = replace(layout, members=0)
    return hashlib.sha256("\n".join([run, kind, layout.to_text(), *details]).encode()).hexdigest()
