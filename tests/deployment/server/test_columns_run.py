"""A run across machines whose network reads columns of the clients' own tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedvision.config import ExperimentConfig
from fedvision.experiment import Experiment
from tests.deployment.server.machines import WAIT_S, Machines
from tests.test_input_runs import write

EXPERIMENT = """
name = "columns"
rounds = 2
[data]
use = "elsewhere"
classes = ["a", "b", "c"]
height = 8
width = 8
channels = 1
[model]
use = "fusion"
width = 4
dim = 16
depth = 1
heads = 2
[model.inputs.age]
kind = "number"
mean = 50.0
deviation = 10.0
[model.inputs.cell]
kind = "category"
categories = ["mono", "poly", "thin"]
[model.inputs.note]
kind = "text"
buckets = 200
[training]
lr = 0.1
[evaluation]
holdout = 0.2
"""
SECRET = "Xylophonecough"


class Tables(Machines):
    """Machines whose clients have a table of images each."""

    def _give_images(self) -> None:
        for name in self.names:
            folder = self.folder / f"images-{name}"
            folder.mkdir()
            write(folder, secret=SECRET)

    def data_lines(self, name: str) -> list[str]:
        """Return the images' part of a client's file."""
        return ['use = "manifest"', f'path = "images-{name}/table.csv"', "size = 8", "channels = 1"]


@pytest.mark.long
def test_columns_stay_on_the_clients(tmp_path: Path, pki: Path) -> None:
    here = Tables(tmp_path, pki, EXPERIMENT)
    try:
        server = here.server()
        for name in here.names:
            here.client(name)
        assert server.wait(WAIT_S) == 0, here.log("server")
        assert [record["refused"] for record in here.rounds()] == [[], []]
        found = load_file(here.out / "model.safetensors")
        began = Experiment.build(ExperimentConfig.load(here.experiment), split_here=False).model.state_dict()
        read = [name for name in found if ".further." in name]
        assert len(read) == 7
        assert all(not torch.equal(found[name], began[name]) for name in read)
        places = [here.out, tmp_path / "superlink", tmp_path / "server.log"]
        files = [file for place in places for file in [place, *place.rglob("*")] if file.is_file()]
        assert len(files) > 10
        for file in files:
            content = file.read_bytes().lower()
            assert SECRET.lower().encode() not in content, file
            assert b"an old cat" not in content, file
    finally:
        here.end()
