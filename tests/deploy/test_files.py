"""The files that people copy: every TOML is read by what will read it, every command is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fedvision import registry
from fedvision.cli import parser
from fedvision.client_config import ClientConfig
from fedvision.config import ExperimentConfig
from fedvision.federation import Federation

ROOT = Path(__file__).parents[2]


def test_the_servers_experiment_needs_no_image_here() -> None:
    federation = Federation.build(ExperimentConfig.load(ROOT / "server/first.toml"), split_here=False)
    assert len(federation.dataset.train) == 0
    assert len(federation.dataset.classes) == 10
    assert federation.notices() == []


@pytest.mark.parametrize("file", sorted(ROOT.glob("clients/*.toml")), ids=lambda file: file.name)
def test_every_clients_file_is_read_and_its_data_source_takes_its_keys(file: Path) -> None:
    config = ClientConfig.load(file)
    assert Path(config.superlink.key) == ROOT / "clients/keys/client.key"
    registry.check("data", config.data)
    config.permit_experiment(ExperimentConfig.load(ROOT / "server/first.toml"))


@pytest.mark.parametrize("folder", ["server", "clients"])
def test_every_command_in_the_readmes_exists(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    commands = re.findall(r"^(?:\$ |\d\. `)(fedvision [^`\n]*)", text, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("unit", ["server/fedvision-server.service", "clients/fedvision-client.service"])
def test_the_services_commands_exist_and_are_started_again_after_a_failure_only(unit: str) -> None:
    text = (ROOT / unit).read_text()
    command = re.search(r"^ExecStart=/opt/fedvision/bin/fedvision (.*)$", text, re.MULTILINE)
    assert command
    parser().parse_args(shlex.split(command[1]))
    assert "Restart=on-failure" in text


@pytest.mark.parametrize("folder", ["server", "clients"])
def test_compose_files_name_commands_and_healthchecks(folder: str) -> None:
    text = (ROOT / folder / "compose.yaml").read_text()
    found = re.search(r"command: (?:>\n\s+)?(.*)", text)
    assert found
    parser().parse_args(shlex.split(found[1]))
    assert "healthcheck:" in text
    assert "dockerfile: server/Dockerfile" in text
