"""A client's failures contain no path, and everything else as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.redaction import AT_HOME, cause, redact_paths

CONFIG = ClientMachineConfig.from_dict(
    {
        "name": "north",
        "state": "own-state",
        "superlink": {"address": "localhost:1", "key": "keys/client.key"},
        "data": {"use": "npz", "path": "/srv/clinic a/own.npz"},
    }
)


@pytest.mark.parametrize(
    "reason",
    [
        "/srv/clinic a/own.npz: this file cannot be read: No such file or directory",
        "client 0, training: FileNotFoundError: [Errno 2] No such file: '/home/ada/x.png' (loop.py, line 3)",
        "FileNotFoundError: [Errno 2] No such file or directory: '~/images'",
        r"PermissionError: C:\Users\ada\scan.png",
        r"OSError: \\nas\scans\ada.png",
        "superlink.key: keys/client.key cannot be read",
        "own-state is in use",
        "(/tmp/x)",
        "path=/tmp/x",
        "`/tmp/x` is missing",
        "ValueError:/tmp/x",
        "{/tmp/x}",
        "</tmp/x>",
        "file:///home/ada/x.png",
    ],
)
def test_a_sentence_with_a_path_stays_at_home(reason: str) -> None:
    assert redact_paths(reason, CONFIG) == AT_HOME


@pytest.mark.parametrize(
    "reason",
    [
        "label '2' is no class of the experiment; did you mean '3'?",
        "the training process died (killed by SIGKILL; perhaps its memory ran out)",
        "[loss] use = 'mine:loss': this client allows built-ins, mine; if you trust its code, add ...",
        "the server speaks protocol 2 (fedvision 0.1.0) and this client protocol 99 (fedvision 0.1.0)",
        "client 0, training: ValueError: loss of 3/4 images is NaN (loop.py, line 3)",
        "images of 8 x 8 with 1 channel; 5 MB/s; https://example.org/why",
        "it took longer than this client's time_limit of 3 s",
    ],
)
def test_a_missing_verb_is_an_error(reason: str) -> None:
    assert redact_paths(reason, CONFIG) == reason


@given(
    before=st.sampled_from(["", "OSError: ", "cannot read '", "at "]),
    parts=st.lists(st.text("abz ._-", min_size=1, max_size=8), min_size=1, max_size=4),
    after=st.sampled_from(["", ": no", "' (x.py, line 3)"]),
)
def test_no_absolute_path_gets_out(before: str, parts: list[str], after: str) -> None:
    path = "/" + "/".join(part.strip() or "x" for part in parts)
    assert path not in redact_paths(before + path + after, CONFIG)


def test_of_an_operating_systems_error_its_path_is_left_out() -> None:
    error = PermissionError(13, "Permission denied", "/srv/clinic/own.npz")
    assert cause(error) == "this machine says: Permission denied"
    assert cause(OSError("/srv/clinic")) == "this machine says: OSError"
    assert cause(ValueError("loss is NaN")) == "loss is NaN"
