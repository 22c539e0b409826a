"""What a server's SuperLink keeps is its owner's alone."""

from __future__ import annotations

from pathlib import Path

from fedvision.deployment.server.superlink_process import LinkPlace
from fedvision.runs.folder_lock import claimed


def test_the_state_folder_and_the_secret_are_the_owners_alone(tmp_path: Path) -> None:
    place = LinkPlace(tls=None, clients=tmp_path, state=tmp_path / "superlink")
    with claimed(place.state, "name another one"):
        secret = place.secret()
    assert place.secret() == secret
    assert len(secret) == 64
    assert place.state.stat().st_mode & 0o777 == 0o700
    assert (place.state / "secret").stat().st_mode & 0o777 == 0o600
