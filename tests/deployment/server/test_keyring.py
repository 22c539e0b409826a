"""The folder of keys and Flower's state agree, and a wrong file is named."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import pytest
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkState
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from fedvision.deployment.server import keyring as module
from fedvision.deployment.server.keyring import Keyring, read_public_key
from fedvision.deployment.transport.internals_superlink import keys
from fedvision.errors import ConfigError


@pytest.fixture
def state() -> LinkState:
    return InMemoryLinkState(NoOpFederationManager(), ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME).store())


@pytest.fixture
def folder(pki: Path, tmp_path: Path) -> Path:
    for name in ("north", "south"):
        (tmp_path / f"{name}.pub").write_bytes((pki / f"server/clients/{name}.pub").read_bytes())
    return tmp_path


def test_the_folders_keys_are_flowers_keys_before_and_after_a_change(folder: Path, state: LinkState) -> None:
    keyring = Keyring(folder, state)
    north, south = (read_public_key(folder / f"{name}.pub") for name in ("north", "south"))
    assert keyring.known == {north: "north", south: "south"}
    assert keys(state).keys() == {north, south}
    (folder / "north.pub").unlink()
    assert keyring.sync() == []
    assert keyring.known.keys() == keys(state).keys() == {south}


@pytest.mark.parametrize("again", [False, True], ids=["running", "started again"])
def test_a_client_that_is_shut_out_is_named(
    folder: Path, state: LinkState, again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    keyring = Keyring(folder, state)
    (folder / "north.pub").unlink()
    with caplog.at_level(logging.WARNING, "fedvision.deployment"):
        Keyring(folder, state) if again else keyring.sync()
    assert caplog.messages == [f"client north is shut out: its key is no longer in {folder}"]
    if not again:
        assert list(keyring.removed.values()) == ["north"]


def test_a_server_that_starts_again_knows_its_clients_by_their_old_numbers(
    folder: Path, state: LinkState
) -> None:
    Keyring(folder, state)
    before = keys(state)
    Keyring(folder, state)
    assert keys(state) == before


def test_a_wrong_file_stops_the_start_and_is_passed_over_later(folder: Path, state: LinkState) -> None:
    keyring = Keyring(folder, state)
    (folder / "wrong.pub").write_text("ssh-rsa nonsense")
    assert [problem.split(": ")[0] for problem in keyring.sync()] == [str(folder / "wrong.pub")]
    assert len(keyring.known) == 2
    with pytest.raises(ConfigError, match=r"wrong.pub: this is no public ECDSA key"):
        Keyring(folder, state)


def test_a_folder_in_a_keys_place_is_a_sentence(folder: Path, state: LinkState) -> None:
    (folder / "south.pub").unlink(missing_ok=True)
    (folder / "south.pub").mkdir()
    with pytest.raises(ConfigError, match=r"south.pub: this key cannot be read: Is a directory"):
        Keyring(folder, state)


def test_a_key_that_was_removed_once_stays_unknown(folder: Path, state: LinkState) -> None:
    keyring = Keyring(folder, state)
    content = (folder / "north.pub").read_bytes()
    (folder / "north.pub").unlink()
    keyring.sync()
    (folder / "again.pub").write_bytes(content)
    assert [problem.split(": ")[1] for problem in keyring.sync()] == [
        "this key was removed once and cannot come back; make a new one for the client"
    ]
    assert keyring.known == {read_public_key(folder / "south.pub"): "south"}


def test_two_names_for_one_key_are_refused(folder: Path, state: LinkState) -> None:
    (folder / "zz.pub").write_bytes((folder / "north.pub").read_bytes())
    with pytest.raises(ConfigError, match=r"zz.pub: this is the key of north.pub too"):
        Keyring(folder, state)


@pytest.mark.parametrize("kind", [["rsa", "-b", "2048"], ["ed25519"]])
def test_keys_that_flower_cannot_take_are_named(tmp_path: Path, kind: list[str]) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", str(key), "-t", *kind], check=True)
    with pytest.raises(ConfigError, match="this is no public ECDSA key"):
        read_public_key(tmp_path / "key.pub")


def test_a_key_of_ssh_keygen_serves_as_one_of_ours(tmp_path: Path, state: LinkState) -> None:
    key = tmp_path / "own"
    subprocess.run(
        ["ssh-keygen", "-q", "-N", "", "-f", str(key), "-t", "ecdsa", "-b", "256", "-C", "me at home"],
        check=True,
    )
    assert len(Keyring(tmp_path, state).known) == 1


def test_a_missing_folder_is_one_sentence(tmp_path: Path, state: LinkState) -> None:
    with pytest.raises(ConfigError, match="the folder of client keys cannot be read: No such file"):
        Keyring(tmp_path / "none", state)


def test_a_file_that_cannot_be_read_for_a_moment_shuts_nobody_out(folder: Path, state: LinkState) -> None:
    """Flower never takes a removed key again, and a file that is copied anew is empty at first."""
    keyring = Keyring(folder, state)
    north = read_public_key(folder / "north.pub")
    whole = (folder / "north.pub").read_bytes()
    (folder / "north.pub").write_bytes(b"")
    (problem,) = keyring.sync()
    assert "north.pub: this is no public ECDSA key" in problem
    assert keyring.known[north] == "north"
    assert north in keys(state)
    (folder / "north.pub").write_bytes(whole)
    assert keyring.sync() == []
    assert keyring.known[north] == "north"
    (folder / "north.pub").unlink()
    keyring.sync()
    assert north not in keyring.known


def test_a_file_whose_permissions_change_is_read_again(
    folder: Path, state: LinkState, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring, may = Keyring(folder, state), [False]
    original = module.read_public_key

    def guarded(path: Path) -> bytes:
        if path.stem == "north" and not may[0]:
            raise ConfigError(f"{path}: this key cannot be read: Permission denied")
        return original(path)

    monkeypatch.setattr(module, "read_public_key", guarded)
    (folder / "north.pub").touch()
    assert len(keyring.sync()) == 1
    may[0] = True
    (folder / "north.pub").chmod(0o604)
    assert keyring.sync() == []
    assert len(keyring.known) == 2
