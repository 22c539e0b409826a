"""A client's file: TOML in, canonical TOML out, one sentence a mistake, and what a server may not name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedvision.config import ExperimentConfig
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.errors import ConfigError
from tests.experiments import tiny

TOML = """
name = "north"
[superlink]
address = "fl.example.org:8443"
root_certificate = "ca.crt"
key = "~/keys/north.key"
[data]
use = "image-folder"
path = "images"
size = 32
[data.label_map]
"bacterial" = "pneumonia"
unclear = ""
"""


def write(folder: Path, text: str = TOML) -> Path:
    path = folder / "client.toml"
    path.write_text(text)
    return path


def test_paths_are_seen_from_the_files_folder_and_the_rest_is_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/north")
    config = ClientMachineConfig.load(write(tmp_path))
    assert config.superlink.root_certificate == str(tmp_path / "ca.crt")
    assert config.superlink.key == "/home/north/keys/north.key"
    assert config.data.args == {"path": str(tmp_path / "images"), "size": 32}
    assert config.state == str(tmp_path / "state")
    assert config.cache == ""
    assert config.data.label_map == {"bacterial": "pneumonia", "unclear": ""}
    assert (config.superlink.host, config.superlink.port) == ("fl.example.org", 8443)
    assert 'counts = "none"' in config.to_toml()
    assert ClientMachineConfig.from_toml(config.to_toml()) == config


def test_key_set_on_the_command_line(tmp_path: Path) -> None:
    """A key can be set on the command line and is seen from the file's folder too."""
    config = ClientMachineConfig.load(
        write(tmp_path), ["superlink.address=[::1]:9000", "cache=$TMP_NOT_SET/c", "data.size=8"]
    )
    assert (config.superlink.host, config.superlink.port) == ("::1", 9000)
    assert config.cache == str(tmp_path / "$TMP_NOT_SET/c")
    assert config.data.args["size"] == 8


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('name = "north"', "", "name is missing; add it"),
        ('name = "north"', 'name = "../north"', "name must be of letters"),
        ('name = "north"', 'nam = "north"', "nam: there is no such key; did you mean 'name'?"),
        ("address", "adress", "superlink.adress: there is no such key; did you mean 'address'?"),
        ("org:8443", "org", "superlink.address must be HOST:PORT"),
        ("org:8443", "org:0", "superlink.address must be HOST:PORT"),
        ("org:8443", "org:70000", "superlink.address must be HOST:PORT"),
        ("fl.example.org", "https://fl.example.org", "superlink.address must be HOST:PORT"),
        ("fl.example.org", "::1", "superlink.address must be HOST:PORT"),
        ("key = ", "insecure = true\nkey = ", "speaks plain text, but certificates are named"),
        ("key = ", 'client_key = "x"\nkey = ', "client_certificate and superlink.client_key belong together"),
        ("key = ", "retry_for = -1\nkey = ", "superlink.retry_for must be >= 0, not -1.0"),
        ('unclear = ""', "unclear = 3", "data.label_map.unclear must be a text, not 3"),
        ('[data.label_map]\n"bacterial" =', "label_map =", "data.label_map must be a table, not 'pneumonia'"),
        ("[data]", '[share]\ncounts = "al"\n[data]', "share.counts must be one of 'none', 'plain', 'noisy'"),
        ("[data]", "[share]\nepsilon = 0\n[data]", "share.epsilon must be > 0 and finite, not 0.0"),
        ("[superlink]", "memory_limit = -2\n[superlink]", "memory_limit must be >= 0, not -2.0"),
        ("[superlink]", 'plugins = ["a b"]\n[superlink]', "plugins must be module or module:attr, not 'a b'"),
    ],
)
def test_a_wrong_file_gets_one_sentence_that_names_file_and_key(
    tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    assert old in TOML
    path = write(tmp_path, TOML.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        ClientMachineConfig.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert sentence in str(caught.value)


def test_a_missing_client_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file; name a client's TOML file"):
        ClientMachineConfig.load(tmp_path / "none.toml")


def test_a_file_that_cannot_be_read_is_named_with_its_key(tmp_path: Path) -> None:
    config = ClientMachineConfig.load(write(tmp_path, TOML.replace("~/keys/", "")))
    with pytest.raises(ConfigError, match=r"superlink.root_certificate: .*/ca.crt cannot be read: No such"):
        config.superlink.check_files()
    (tmp_path / "ca.crt").touch()
    with pytest.raises(ConfigError, match=r"superlink.key: .*/north.key cannot be read"):
        config.superlink.check_files()
    (tmp_path / "north.key").touch()
    config.superlink.check_files()


@pytest.fixture
def owners_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules of the owner: one defines a model and imports more than it defines."""
    (tmp_path / "plugin_models.py").write_text(
        "import os\nfrom subprocess import run\ndef net(): pass\nclass Net:\n    def inner(self): pass\n"
    )
    (tmp_path / "plugin_other.py").write_text("def net(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("plugin_models", "plugin_other"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def allowing(*plugins: str) -> ClientMachineConfig:
    text = TOML.replace("[superlink]", f"plugins = {list(plugins)}\n[superlink]", 1)
    return ClientMachineConfig.from_toml(text)


@pytest.mark.parametrize(
    ("plugins", "kind", "use"),
    [
        ((), "model", "torchvision/resnet18"),
        ((), "model", "efficientnet-lite0"),
        ((), "model", "cnn"),
        ((), "optimizer", "AdamW"),
        (("plugin_models",), "model", "plugin_models:net"),
        (("plugin_models",), "model", "plugin_models:Net"),
        (("plugin_models:net",), "model", "plugin_models:net"),
    ],
)
@pytest.mark.usefixtures("owners_modules")
def test_built_ins_and_what_the_owner_lists_may_be_named(
    plugins: tuple[str, ...], kind: str, use: str
) -> None:
    allowing(*plugins).permit(kind, use)


@pytest.mark.parametrize(
    ("plugins", "kind", "use"),
    [
        ((), "model", "os:system"),
        ((), "model", "plugin_models:net"),
        ((), "model", "no-such-model"),
        ((), "model", "torchvision/resnet18:os.system"),
        ((), "optimizer", "no-such-optimizer"),
        # A path of the server's choice would follow.
        ((), "model", "fedvision.data.sources.arrays:npz"),
        ((), "optimizer", "torch.optim:SGD"),
        (("plugin_models:net",), "model", "plugin_models:Net"),
        (("plugin",), "model", "plugin_models:net"),
        (("plugin_other",), "model", "plugin_models:net"),
        # What the module imported is not its own.
        (("plugin_models",), "model", "plugin_models:run"),
        (("plugin_models",), "model", "plugin_models:os.system"),
        (("plugin_models",), "model", "plugin_models:Net.inner"),
    ],
)
@pytest.mark.usefixtures("owners_modules")
def test_nothing_else_may_be_named(plugins: tuple[str, ...], kind: str, use: str) -> None:
    with pytest.raises(ConfigError, match=r"this client allows built-ins.*plugins in the client's file"):
        allowing(*plugins).permit(kind, use)


@pytest.mark.parametrize(
    "table",
    [
        '[task]\nuse = "os:system"',
        '[[update]]\nuse = "os:system"',
        '[model]\nuse = "os:system"',
        '[loss]\nuse = "os:system"',
        '[training]\noptimizer = "os:system"',
        '[training]\nschedule = "os:system"',
        '[training]\nsampler = "os:system"',
    ],
)
def test_every_plug_in_that_a_client_builds_is_checked(table: str) -> None:
    with pytest.raises(ConfigError, match="os:system"):
        allowing().permit_experiment(ExperimentConfig.from_toml(f'[data]\nuse = "digits"\n{table}\n'))
    # Data and partition are the server's own: a client never builds them.
    allowing().permit_experiment(ExperimentConfig.from_toml('[data]\nuse = "their:data"\n'))


@pytest.mark.parametrize("key", ["use", "expand", "head"])
def test_every_part_of_the_network_must_be_allowed(key: str) -> None:
    experiment = tiny(model={"use": "cnn", key: "mine:thing"})
    with pytest.raises(ConfigError, match="this client allows built-ins"):
        allowing().permit_experiment(experiment)
    allowing("mine:thing").permit_experiment(experiment)
