"""A client's files: what is in work survives, the last reply is given once more, one process a client."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedvision.deployment.client.state_directory import FileSource, StateDirectory
from fedvision.errors import ConfigError


def test_a_message_is_kept_until_it_is_answered(tmp_path: Path) -> None:
    inbox = StateDirectory(tmp_path)
    assert inbox.message() is None
    inbox.keep_message(b"task")
    inbox.task.write_bytes(b"tensors")
    assert StateDirectory(tmp_path).message() == b"task"
    StateDirectory(tmp_path).answered()
    assert inbox.message() is None
    assert not inbox.task.exists()


def test_the_last_reply_answers_its_own_task_only(tmp_path: Path) -> None:
    reply = StateDirectory(tmp_path).reply("train")
    reply.path.write_bytes(b"update")
    assert reply.layout("t1") is None
    reply.keep("t1", "layout")
    StateDirectory(tmp_path).answered()
    later = StateDirectory(tmp_path).reply("train")
    assert later.layout("t1") == "layout"
    assert later.layout("t2") is None
    later.path.write_bytes(b"upd")  # a process was killed while it wrote the next one
    assert later.layout("t1") is None
    later.path.write_bytes(b"update")
    later.drop()
    assert reply.layout("t1") is None


def test_replies_of_a_round_stay_during_other_requests(tmp_path: Path) -> None:
    inbox = StateDirectory(tmp_path)
    for kind in ("train", "evaluate", "query.masked", "query.roster"):
        reply = inbox.reply(kind)
        reply.drop()
        reply.path.write_bytes(kind.encode())
        reply.keep(f"task of {kind}", kind)
        reply.keep_notes(f"task of {kind}", (kind,))
    for kind in ("train", "evaluate", "query.roster"):
        stored = StateDirectory(tmp_path).reply(kind)
        assert stored.layout(f"task of {kind}") == stored.path.read_bytes().decode() == kind
        assert stored.notes(f"task of {kind}") == (kind,)
    assert inbox.reply("query.masked").layout("task of query.masked") is None
    # A server chooses the words of a message's type, and no file by them.
    assert inbox.reply("../../escape").path == inbox.reply("query.roster").path


def test_a_reply_in_delivery_is_the_same_for_the_next_process(tmp_path: Path) -> None:
    inbox = StateDirectory(tmp_path)
    assert (inbox.reply("train").notes("m1"), inbox.session("r1")) == (None, "")
    inbox.reply("train").keep_notes("m1", ("it fell",))
    inbox.keep_session("r1", "s")
    later = StateDirectory(tmp_path)
    assert (later.reply("train").notes("m1"), later.session("r1")) == (("it fell",), "s")
    assert (later.reply("train").notes("m2"), later.session("r2")) == (None, "")
    later.answered()
    assert inbox.session("r1") == ""
    assert inbox.reply("train").notes("m1") == ("it fell",), "the same task may come again"


def test_a_process_that_died_is_known_to_the_next_one(tmp_path: Path) -> None:
    inbox = StateDirectory(tmp_path)
    assert not inbox.begin()
    assert StateDirectory(tmp_path).begin()
    inbox.end()
    assert not StateDirectory(tmp_path).begin()


def test_a_node_number_belongs_to_its_server(tmp_path: Path) -> None:
    inbox = StateDirectory(tmp_path)
    assert inbox.node("a:1") == 0
    inbox.keep_node("a:1", 2**63 + 5)
    assert StateDirectory(tmp_path).node("a:1") == 2**63 + 5
    assert inbox.node("b:1") == 0
    (tmp_path / "node").write_text("torn {")
    assert inbox.node("a:1") == 0


def test_one_process_a_client(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from fedvision.deployment.client.state_directory import StateDirectory\n"
        "with StateDirectory(Path(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        os.utime(tmp_path / "lock", (1, 1))
        with pytest.raises(ConfigError, match="this client runs already"), StateDirectory(tmp_path).locked():
            pass
        assert (tmp_path / "lock").stat().st_mtime == 1, "whoever is refused touches nothing"
        other.kill()
    with StateDirectory(tmp_path).locked():  # a killed process holds nothing
        pass


def test_only_the_owner_sees_the_folder(tmp_path: Path) -> None:
    StateDirectory(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        StateDirectory(tmp_path / "file" / "state")


def test_a_file_is_read_piece_by_piece(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    source = FileSource(tmp_path / "f")
    assert source.size == 10
    assert source.views(2, 5) == [b"234"]
    assert source.views(8, 10) == [b"89"]


def test_what_a_run_sends_once_is_kept_by_its_digest(tmp_path: Path) -> None:
    name = hashlib.sha256(b"teacher").hexdigest()
    kept = StateDirectory(tmp_path).constants("run1")
    assert kept.get(name) is None
    kept.put(name, memoryview(b"teacher"))
    assert StateDirectory(tmp_path).constants("run1").get(name) == b"teacher"
    assert StateDirectory(tmp_path).constants("run2").get(name) is None
    (tmp_path / "runs/run1/constants" / name).write_bytes(b"teachex")
    assert kept.get(name) is None, "a file that was changed is not taken"
    (tmp_path / "runs/run3").write_text("no folder can be made here")
    StateDirectory(tmp_path).constants("run3").put(name, memoryview(b"teacher"))
