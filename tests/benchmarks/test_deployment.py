"""The parts of the deployment's benchmark that name others: programs in texts, processes by their modules."""

from __future__ import annotations

from importlib.util import find_spec

import deployment
import pytest
import stock_flower


def test_the_programs_of_both_sides_are_python() -> None:
    compile(stock_flower.APP, "stock_app.py", "exec")
    compile(deployment.OWN_MODELS, "own_models.py", "exec")


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("python -m fedvision.cli.main server experiment.toml --wait-for 2", "server"),
        ("python -m fedvision.cli.main client north.toml", "client: connection"),
        ("python -m fedvision.deployment.client.trainer", "client: training"),
        ('python -m fedvision.deployment.server.superlink {"public": "x"}', "SuperLink"),
        ("python -m fedvision.cli.main simulate experiment.toml", ""),
    ],
)
def test_every_process_of_a_deployment_is_known_by_its_command(command: str, kind: str) -> None:
    assert deployment.kind_of(command) == kind


def test_the_modules_by_which_processes_are_known_are_there() -> None:
    for part in deployment.KINDS:
        assert find_spec(part.split()[0]), part
