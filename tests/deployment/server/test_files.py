"""The files that people copy: every TOML is read by what will read it, every command is one."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedvision import registry
from fedvision.cli.main import INTERRUPTED, parser
from fedvision.config import ExperimentConfig
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.local_data import known_classes, open_own, under_classes
from fedvision.experiment import Experiment
from tests.deployment.server.processes import superlink

ROOT = Path(__file__).parents[3]


def test_the_servers_experiment_needs_no_image_here() -> None:
    federation = Experiment.build(ExperimentConfig.load(ROOT / "server/first.toml"), split_here=False)
    assert len(federation.dataset.train) == 0
    assert len(federation.dataset.classes) == 10
    assert federation.notices() == []


@pytest.mark.parametrize("file", sorted(ROOT.glob("clients/*.toml")), ids=lambda file: file.name)
def test_every_clients_file_is_read_and_its_data_source_takes_its_keys(file: Path) -> None:
    config = ClientMachineConfig.load(file)
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


UNIT_KEYS = {
    "Unit": {"Description", "Wants", "After"},
    "Service": {
        "Environment",
        "ExecStart",
        "NoNewPrivileges",
        "PrivateTmp",
        "ProtectHome",
        "ProtectSystem",
        "ReadOnlyPaths",
        "Restart",
        "RestartPreventExitStatus",
        "RestartSec",
        "StateDirectory",
        "SuccessExitStatus",
        "TimeoutStopSec",
        "UMask",
        "User",
        "WorkingDirectory",
    },
    "Install": {"WantedBy"},
}
"""What `systemd-analyze verify` of systemd 252 accepted; a new key wants to be verified there first."""


@pytest.mark.parametrize("file", ["server/fedvision-server.service", "clients/fedvision-client.service"])
def test_commands_of_the_service_files(file: str) -> None:
    """The services' commands exist and are started again after a failure only."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / file)
    assert unit.sections() == list(UNIT_KEYS)
    for section in unit.sections():
        assert set(unit[section]) <= UNIT_KEYS[section]
    program, *command = shlex.split(unit["Service"]["ExecStart"])
    assert program == "/opt/fedvision/bin/fedvision"
    parser().parse_args(command)
    assert unit["Service"]["Restart"] == "on-failure"
    # As for the command line: a wrong file is 2, and SIGTERM ends a run with 130.
    assert unit["Service"]["RestartPreventExitStatus"] == "2"
    assert unit["Service"]["SuccessExitStatus"] == str(INTERRUPTED)


SERVICE_KEYS = {
    "image",
    "build",
    "command",
    "ports",
    "volumes",
    "working_dir",
    "restart",
    "stop_grace_period",
    "healthcheck",
}
"""What `docker-compose config` 1.29.2 accepted."""


def service(folder: str) -> dict[str, Any]:
    page = yaml.safe_load((ROOT / folder / "compose.yaml").read_text())
    assert set(page) == {"services", "volumes"}
    (found,) = page["services"].values()
    named = {mount.split(":")[0] for mount in found["volumes"] if not mount.startswith(".")}
    assert named == set(page["volumes"]), "every named volume is declared"
    return dict(found)


@pytest.mark.parametrize("folder", ["server", "clients"])
def test_compose_files_name_what_exists(folder: str) -> None:
    found = service(folder)
    assert set(found) <= SERVICE_KEYS
    assert set(found["healthcheck"]) == {"test", "interval", "timeout", "start_period"}
    parser().parse_args(shlex.split(found["command"]))
    context = (ROOT / folder / found["build"]["context"]).resolve()
    dockerfile = (context / found["build"]["dockerfile"]).read_text()
    assert "constraints.txt" in dockerfile
    assert (context / "constraints.txt").exists()
    assert 'ENTRYPOINT ["fedvision"]' in dockerfile


def test_the_servers_port_is_the_one_that_compose_opens() -> None:
    options = parser().parse_args(shlex.split(service("server")["command"]))
    port = options.public.rpartition(":")[2]
    assert service("server")["ports"] == [f"{port}:{port}"]
    assert "ports" not in service("clients"), "clients open none"


@pytest.mark.long
def test_the_servers_healthcheck(pki: Path, tmp_path: Path) -> None:
    how, program, *arguments = service("server")["healthcheck"]["test"]
    assert (how, program) == ("CMD", "python")

    def healthy(port: int) -> bool:
        named = [
            text.replace("/srv/pki/server", str(pki / "server")).replace(":8000/", f":{port}/")
            for text in arguments
        ]
        return subprocess.run([sys.executable, *named], capture_output=True, timeout=240).returncode == 0

    with superlink(pki, tmp_path) as running:
        assert healthy(running.private)
    assert not healthy(running.private)


def test_the_clients_healthcheck_sees_the_training_process_and_not_itself(tmp_path: Path) -> None:
    how, command = service("clients")["healthcheck"]["test"]
    assert how == "CMD-SHELL"
    here = command.replace("/proc", str(tmp_path))

    def healthy(*lines: str) -> bool:
        for number, line in enumerate(lines):
            (tmp_path / str(number)).mkdir(exist_ok=True)
            (tmp_path / f"{number}/cmdline").write_text(line.replace(" ", "\0"))
        return subprocess.run(["sh", "-c", here], timeout=240).returncode == 0

    client = "python -m fedvision.cli.main client client.toml"
    assert not healthy(client, f"sh -c {command}", command)
    assert healthy(client, command, "python -m fedvision.deployment.client.trainer")


@pytest.mark.slow
def test_example_clients_fit_the_servers_experiment(tmp_path: Path) -> None:
    """The example makes three clients whose images fit the server's experiment."""
    script = [sys.executable, str(ROOT / "clients/example.py"), str(tmp_path / "trial")]
    done = subprocess.run(script, capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.count("images and client.toml") == 3
    experiment = ExperimentConfig.load(ROOT / "server/first.toml")
    classes = known_classes(experiment)
    assert classes is not None
    images = 0
    for name in ("north", "south", "west"):
        config = ClientMachineConfig.load(
            tmp_path / "trial" / name / "client.toml", [f"cache={tmp_path / 'cache'}"]
        )
        assert (config.name, config.superlink.address) == (name, "localhost:8443")
        dataset = under_classes(open_own(config), config, classes)
        assert dataset.train.images.shape[1:] == (8, 8, 1)
        assert dataset.classes == classes
        images += len(dataset.train)
    # Of 1797 digits, north is unsure of every fiftieth.
    assert 1780 < images < 1797
    again = subprocess.run(script, capture_output=True, text=True, timeout=240)
    assert again.returncode == 2
    assert "is there already; name another folder" in again.stderr
