"""What a run was made on."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version

import torch

from fedvision.config import ModelConfig
from fedvision.runs.environment import environment


def test_versions_processor_and_device_are_named() -> None:
    facts = environment("cpu")
    assert facts["device"] == "cpu"
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["torch_threads"] == torch.get_num_threads()
    assert facts["cpus"] == os.cpu_count()
    assert facts["processor"]
    assert all(facts[name] for name in ("flwr", "numpy", "fedvision"))
    assert json.loads(json.dumps(facts)) == facts


def test_the_library_of_the_network_is_named() -> None:
    facts = environment("cpu", ModelConfig(use="torchvision/resnet18"))
    assert facts["torchvision"] == version("torchvision")
    assert "torchvision" not in environment("cpu", ModelConfig(use="efficientnet-lite0"))
    assert "torchvision" not in environment("cpu")


def test_the_machines_name_is_left_out() -> None:
    assert platform.node() not in json.dumps(environment()) or not platform.node()


def test_the_device_is_what_auto_resolves_to() -> None:
    device = environment("auto")["device"]
    assert device.startswith("cuda") == torch.cuda.is_available()
