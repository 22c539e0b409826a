"""A model that is made of a finished run's: taken from its folder, written into one of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision.errors import RunFolderError
from fedvision.files import json_page, read_json, recording, replace_file
from fedvision.runs.model_description import FILE, ModelDescription, with_digest
from fedvision.runs.tensor_file import hashed, pieces
from fedvision.trained_model import TENSORS, TrainedModel

if TYPE_CHECKING:
    from fedvision.types import State

_PLACES = "invocation.json"


def take(run: Path, out: Path) -> TrainedModel:
    """Return a run's whole model on the CPU, once the folder of the new one is known to be free.

    Raises:
        RunFolderError: The run has no model of its own, or the folder is there.
    """
    if out.exists():
        raise RunFolderError(f"{out}: it is there already; name another folder with --out")
    trained = TrainedModel.load(run, device="cpu")
    trained.require_whole()
    return trained


def write(
    run: Path, out: Path, description: ModelDescription, state: State, files: Mapping[str, str]
) -> None:
    """Write a folder as a run's, as far as its model goes; the description comes last.

    Args:
        run: Whose model it is made of; modules of its network are looked for where that run found them.
        out: The new folder.
        description: Of the new model; its digest is filled in.
        state: All its tensors.
        files: Texts that lie beside it, by name.

    Raises:
        RecordError: The disk is full or refuses.
    """
    digest = hashlib.sha256()
    with recording("the model", out):
        out.mkdir(parents=True)
        replace_file(out / TENSORS, hashed(pieces(state), digest.update))
        if description.code:
            known = read_json(run / _PLACES).get("modules", ())
            replace_file(out / _PLACES, json_page({"modules": [*known, str(run.absolute())]}))
        for name, text in files.items():
            replace_file(out / name, text)
        replace_file(out / FILE, json_page(with_digest(description, digest.hexdigest())))
