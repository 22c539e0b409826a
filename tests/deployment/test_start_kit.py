"""A client's start kit: what is in it, what is not, and that its own commands work against a real server."""

from __future__ import annotations

import configparser
import io
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from PIL import Image

from fedvision.cli.main import main, parser
from fedvision.deployment.certificates import make
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.start_kit import Kit, archive, server_address
from fedvision.errors import ConfigError
from tests.deployment.server.machines import WAIT_S, eventually, free_ports

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "server/first.toml"


def unpacked(kit: Path, place: Path) -> Path:
    """Unpack a kit as its owner does and return its folder."""
    place.mkdir()
    subprocess.run(["tar", "xzf", str(kit)], cwd=place, check=True)
    (folder,) = place.iterdir()
    return folder


def test_a_kit_holds_one_clients_own_files_and_nothing_of_another(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    make(pki, hosts=["fl.example.org"], clients=["north", "south"], mutual_tls=True)
    kit = Kit(folder=pki, address="fl.example.org:8443").write("north")
    assert stat.S_IMODE(kit.stat().st_mode) == 0o600
    folder = unpacked(kit, tmp_path / "here")
    assert folder.name == "north"
    there = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    keys = {f"keys/{name}" for name in os.listdir(pki / "clients/north")}
    assert there.keys() == keys | {"client.toml", "README.md", "fedvision-client.service"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in there.values()} == {0o600}
    for name in keys:
        assert there[name].read_bytes() == (pki / "clients/north" / name.removeprefix("keys/")).read_bytes()
    secrets = [pki / "ca.key", pki / "clients/south/client.key", pki / "clients/south/tls.key"]
    everything = b"".join(path.read_bytes() for path in there.values())
    for secret in secrets:
        assert secret.read_bytes().splitlines()[2] not in everything
    config = ClientMachineConfig.load(there["client.toml"])
    config.superlink.check_files()
    assert (config.name, config.superlink.address) == ("north", "fl.example.org:8443")
    assert Path(config.superlink.client_key) == folder / "keys/tls.key"
    assert load_pem_private_key(Path(config.superlink.client_key).read_bytes(), None)


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path, hosts=["localhost"], clients=["north"])
    kit = Kit(folder=tmp_path, address="localhost:8443", experiment=EXPERIMENT)
    first = kit.write("north").read_bytes()
    os.utime(tmp_path / "clients/north/client.key", (1, 1))
    assert kit.write("north").read_bytes() == first
    with tarfile.open(fileobj=io.BytesIO(first)) as file:
        assert {(entry.mtime, entry.uid, entry.uname) for entry in file} == {(0, 0, "")}
    assert archive("a", {"x": b"1", "y": b"2"}) == archive("a", {"y": b"2", "x": b"1"})


def test_the_experiment_gives_the_clients_file_its_image_size(tmp_path: Path) -> None:
    make(tmp_path / "pki", hosts=["localhost"], clients=["north"])
    kit = Kit(folder=tmp_path / "pki", address="localhost:8443", experiment=EXPERIMENT)
    folder = unpacked(kit.write("north"), tmp_path / "here")
    data = ClientMachineConfig.load(folder / "client.toml").data
    assert (data.args["size"], data.args["channels"]) == (8, 1)
    assert (folder / "experiment.toml").read_bytes() == EXPERIMENT.read_bytes()


def test_the_kits_service_is_that_of_the_clients_folder_but_for_its_places(tmp_path: Path) -> None:
    make(tmp_path / "pki", hosts=["localhost"], clients=["north"])
    folder = unpacked(Kit(folder=tmp_path / "pki", address="localhost:1").write("north"), tmp_path / "here")
    units = []
    for file in (ROOT / "clients/fedvision-client.service", folder / "fedvision-client.service"):
        unit = configparser.ConfigParser(interpolation=None)
        unit.read(file)
        units.append({section: dict(unit[section]) for section in unit.sections()})
    ours, kits = units
    own_place = {"execstart", "readonlypaths"}
    assert {key: ours["Service"][key] for key in ours["Service"].keys() - own_place} == {
        key: kits["Service"][key] for key in kits["Service"].keys() - own_place
    }
    assert ours["Install"] == kits["Install"]
    assert kits["Service"]["execstart"].endswith(" client /var/lib/fedvision/client.toml")
    for command in commands(folder)[:2]:
        parser().parse_args(command)


def commands(folder: Path) -> list[list[str]]:
    """Return the arguments of the fedvision commands on a kit's page."""
    found = re.findall(r"^ {4}fedvision (.*)$", (folder / "README.md").read_text(), re.MULTILINE)
    return [shlex.split(command) for command in found]


@pytest.mark.parametrize(
    ("hosts", "given", "expected"),
    [
        (["fl.example.org", "10.0.0.1"], None, "fl.example.org:8443"),
        (["2001:db8::1"], None, "[2001:db8::1]:8443"),
        ([], "other.example.org", "other.example.org:8443"),
        ([], "[2001:db8::1]:99", "[2001:db8::1]:99"),
        ([], None, "first.example.org:8443"),
    ],
)
def test_the_servers_address_in_a_kit(
    hosts: list[str], given: str | None, expected: str, tmp_path: Path
) -> None:
    make(tmp_path, hosts=["first.example.org"], clients=[])
    assert server_address(tmp_path, hosts, given) == expected


@pytest.mark.parametrize("wrong", ["2001:db8::1", "a:0", "a:65536", "https://a:1", "a b:1", ":1", ""])
def test_an_address_that_is_none(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--address"):
        server_address(tmp_path, [], wrong)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--kit", "--host", "localhost"], "--kit: name the clients that get one with --clients"),
        (["--host", "localhost", "--address", "a:1"], "--address: it is for kits; add --kit"),
        (["--kit", "--clients", "a"], "name it with --address HOST:PORT"),
        (["--kit", "--host", "a", "--clients", "a", "--experiment", "none.toml"], "none.toml: there is no"),
    ],
)
def test_wrong_options_make_nothing(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certificates", str(tmp_path / "pki"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (tmp_path / "pki").exists()


def write_images(folder: Path) -> None:
    """Write a few images of each of the experiment's ten classes."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(folder / f"{label}/{number}.png")


@pytest.mark.long
def test_the_commands_of_an_unpacked_kit_work_against_a_real_server(tmp_path: Path) -> None:
    """Certificates with kits, a server, the doctor and the client: each as a process."""
    program = [sys.executable, "-m", "fedvision.cli.main"]
    private, public = free_ports(2)
    make_kits = ["certificates", "pki", "--host", "localhost", "--clients", "north", "--kit"]
    make_kits += ["--address", f"localhost:{public}", "--experiment", str(EXPERIMENT)]
    subprocess.run([*program, *make_kits], cwd=tmp_path, check=True, capture_output=True)
    folder = unpacked(tmp_path / "pki/kits/north.tar.gz", tmp_path / "far")
    write_images(folder / "images")
    serve = ["server", str(EXPERIMENT), "--tls", "pki/server", "--set", "rounds=2"]
    serve += ["--public", f"localhost:{public}", "--private", f"127.0.0.1:{private}"]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen([*program, *serve], cwd=tmp_path, stdout=log, stderr=log)
    client = None
    try:
        log_file = tmp_path / "server.log"
        eventually(lambda: "waiting: 0 of 1 clients" in log_file.read_text(), "the server waits")
        doctor, join = commands(folder)
        checked = subprocess.run(
            [*program, *doctor], cwd=folder, capture_output=True, text=True, timeout=WAIT_S
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert "FAIL" not in checked.stdout
        assert "60 training images of 8 x 8 x 1" in checked.stdout
        with (tmp_path / "client.log").open("wb") as log:
            client = subprocess.Popen([*program, *join, "--log-format", "json"], cwd=folder, stderr=log)
        assert server.wait(WAIT_S) == 0, log_file.read_text()
        assert "finished, 2 of 2 rounds, 1 client" in log_file.read_text()
        client.send_signal(signal.SIGTERM)
        assert client.wait(WAIT_S) == 0
        said = [json.loads(line) for line in (tmp_path / "client.log").read_text().splitlines()]
        assert {line["client"] for line in said} == {"north"}
        done = [line["level"] for line in said if line["message"].startswith("train: done")]
        assert done == ["info"] * 2, "what is routine is no warning"
    finally:
        for process in filter(None, (server, client)):
            process.kill()
            process.wait()


def test_a_kit_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    make(pki, hosts=["localhost"], clients=["north"])
    with pytest.raises(ConfigError, match=r"south/ca.crt: it cannot be read: No such file"):
        Kit(folder=pki, address="a:1").write("south")
    with pytest.raises(ConfigError, match=r"none.toml: it cannot be read: No such file"):
        Kit(folder=pki, address="a:1", experiment=tmp_path / "none.toml").write("north")
    (pki / "kits").write_text("a file in the folder's place")
    with pytest.raises(ConfigError, match=r"north.tar.gz: it cannot be written: File exists"):
        Kit(folder=pki, address="a:1").write("north")
