"""A model card's file: written again as long as nobody has edited it, and never over an owner's words.

The last line is a comment with the options and the SHA-256 of all that stands above it.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from fedvision.errors import ConfigError
from fedvision.files import recording, replace_file
from fedvision.reporting.model_card import CardOptions, model_card
from fedvision.reporting.run_data import read_facts
from fedvision.runs.folder import RunFolder

FILE = "model_card.md"
_LAST = re.compile(r"<!-- fedvision card (\{.*\}) sha256:([0-9a-f]{64}) -->\n\Z")


def write_card(folder: RunFolder, options: CardOptions | None = None, out: Path | None = None) -> Path:
    """Write a run's model card and return its path.

    Args:
        folder: The run folder.
        options: What the run does not know; those of the card that is there where they are left out.
        out: The file; ``model_card.md`` in the run folder where it is left out.

    Raises:
        ConfigError: The file is there and was edited, or is another one.
        RunFolderError: A file in the folder is damaged.
        RecordError: The card cannot be written.
    """
    path = out or folder.path / FILE
    known = _options(path)
    text = model_card(read_facts(folder), options or known or CardOptions())
    digest = hashlib.sha256(text.encode()).hexdigest()
    table = json.dumps(vars(options or known or CardOptions())).replace("-", "\\u002d")
    remedy = (
        "name another file with --out" if out else "make room or restore access, or name a file with --out"
    )
    with recording("the model card", path, remedy):
        replace_file(path, f"{text}<!-- fedvision card {table} sha256:{digest} -->\n")
    return path


def update_card(folder: RunFolder) -> None:
    """Write a run's model card anew unless somebody has edited it.

    Raises:
        RunFolderError: A file in the folder is damaged.
        RecordError: The card cannot be written.
    """
    if not edited(folder.path / FILE):
        write_card(folder)


def edited(path: Path) -> bool:
    """Return whether a file is there that is no card as it was written."""
    try:
        _options(path)
    except ConfigError:
        return True
    return False


def _options(path: Path) -> CardOptions | None:
    """Return the options of an unedited card; None where there is no file.

    Raises:
        ConfigError: There is a file that is no such card.
    """
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read: {error.strerror}; name another file") from error
    found = _LAST.search(text)
    if found is None or hashlib.sha256(text[: found.start()].encode()).hexdigest() != found[2]:
        raise ConfigError(
            f"{path}: this is no model card as fedvision wrote it, so somebody has edited it; name another "
            "file with --out, or delete it"
        )
    return CardOptions(**json.loads(found[1]))
