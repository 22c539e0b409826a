"""Before a machine joins: is everything here that its file and the experiment need? One page of text.

Nothing is sent but what every client sends when it connects; no secret is printed.
"""

from __future__ import annotations

import os
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedvision import formatting
from fedvision.aggregation import masking
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset
from fedvision.data.paths import cache_folder
from fedvision.deployment.certificates import validity
from fedvision.deployment.client import image_checks
from fedvision.deployment.client.check_report import CheckReport, Level, Lines
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.connectivity import (
    ProbeResult,
    check_authorized,
    clock_difference,
    clock_limit,
    key_owner,
    probe,
    read_key,
    way,
)
from fedvision.deployment.client.own_weights import check_weights
from fedvision.deployment.client.participation_policy import Policy
from fedvision.deployment.run_manifest import digest

_SOON_DAYS = 30
_LITTLE = 10**9
_CLOCK_MARGIN = 0.5
"""Share of the clock difference that the server allows from which a line warns."""


def run_check(config: ClientMachineConfig, experiment: ExperimentConfig | None = None) -> CheckReport:
    """Check the machine, the server and the images against each other.

    Args:
        config: The client's file.
        experiment: What it shall train; None leaves out labels, plug-ins and memory.
    """
    found = CheckReport(f"fedvision doctor: client {config.name}")
    _network(found, config)
    found.run_check("folders", folders(config))
    found.run_check("policy", policy(config, experiment))
    opened: list[Dataset] = []
    found.run_check("images", image_checks.opens(config, opened))
    for dataset in opened:
        found.run_check("twins", image_checks.equal_pictures(dataset))
        found.run_check("classes", image_checks.histogram(dataset))
    if experiment is None:
        found.lines.append(("WARN", "experiment", "none named: labels, plug-ins and memory are not checked"))
        return found
    permitted = found.run_check("plug-ins", _plugins(config, experiment))
    fits = found.run_check("sharing", _sharing(config, experiment)) and permitted
    for dataset in opened:
        fits &= found.run_check("size", image_checks.size(dataset, experiment))
        if permitted:
            fits &= found.run_check("task", image_checks.form(config, dataset, experiment))
        fits &= found.run_check("labels", image_checks.labels(config, dataset, experiment))
        fits = fits and found.run_check("weights", check_weights(config, dataset, experiment))
        if fits:
            found.run_check("step", image_checks.step(config, dataset, experiment))
    return found


def _network(found: CheckReport, config: ClientMachineConfig) -> None:
    """Check files, then the server: each step only where those before it hold."""
    greetings: list[ProbeResult] = []
    if not found.run_check("files", files(config)):
        return
    found.run_check("key", owner(config))
    if found.run_check("server", _answers(config, greetings)):
        found.run_check("certificate", certificates(config, greetings[0]))
        if found.run_check("clock", clock(greetings[0].ahead)):
            found.run_check("key", _known(config))


def files(config: ClientMachineConfig) -> Lines:
    """Return whether the key and the certificates can be read, and by whom else."""
    config.superlink.check_files()
    read_key(config.superlink.key)
    yield "OK", "key and certificates can be read"
    for path in filter(None, (config.superlink.key, config.superlink.client_key)):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & 0o077:
            yield "WARN", f"{path} can be read by other users of this machine (mode {mode:o}): chmod 600"


def owner(config: ClientMachineConfig) -> Lines:
    """Return whether the key was made for another client; nothing where that is unknown."""
    found = key_owner(config.superlink.key)
    if found is not None and found != config.name:
        yield (
            "FAIL",
            f"superlink.key is the key of client {found}, and this file is that of {config.name}: a key is "
            f"for one machine; put the key of {config.name} there, or correct name",
        )


def _answers(config: ClientMachineConfig, greetings: list[ProbeResult]) -> Lines:
    greetings.append(probe(config.superlink))
    proxy = way(config.superlink)
    through = f" through the proxy {proxy.name}" if proxy else ""
    yield "OK", f"{config.superlink.address} answers in {greetings[0].seconds * 1000:.0f} ms{through}"


def certificates(config: ClientMachineConfig, greeting: ProbeResult) -> Lines:
    """Say until when the server's certificate is valid, and this client's where it has one."""
    if greeting.valid_until is None:
        yield "WARN", "plain text: everyone on the way can read and change models"
    else:
        yield _until("the server's", greeting.valid_until)
    if config.superlink.client_certificate:
        yield _until("this client's", validity(Path(config.superlink.client_certificate))[1])


def _until(whose: str, end: datetime) -> tuple[Level, str]:
    days = (end - datetime.now(UTC)).total_seconds() / 86400
    level: Level = "FAIL" if days <= 0 else "WARN" if days < _SOON_DAYS else "OK"
    return level, f"{whose} is valid until {end:%Y-%m-%d} ({days:.0f} days)"


def clock(ahead: float | None) -> Lines:
    """Say how far this clock is ahead of the server's, in seconds; beyond a limit no call is accepted."""
    if ahead is None:
        yield "WARN", "the server sends no time"
        return
    most, text = clock_limit(ahead), clock_difference(ahead)
    if abs(ahead) <= _CLOCK_MARGIN * most:
        yield "OK", text
    else:
        level: Level = "FAIL" if abs(ahead) > most else "WARN"
        yield level, f"{text}: from {most} s on it refuses every call; set this machine's clock (NTP)"


def _known(config: ClientMachineConfig) -> Lines:
    check_authorized(config.superlink)
    yield "OK", "the server does not refuse it"


def folders(config: ClientMachineConfig) -> Lines:
    """Return whether the cache and the state can be written, and how much room there is."""
    for key, folder in (("cache", cache_folder(config.cache)), ("state", Path(config.state).absolute())):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield "FAIL", f"{key} = {folder}: it cannot be written; choose another folder"
            continue
        free = shutil.disk_usage(there).free
        text = f"{key} = {folder}: {formatting.size(free)} free"
        yield ("WARN", f"{text}; make room") if free < _LITTLE else ("OK", text)


def policy(config: ClientMachineConfig, experiment: ExperimentConfig | None) -> Lines:
    """Say what the owner's policy allows, and whether it allows the experiment."""
    held = Policy(config.policy, Path(config.state))
    for sentence in held.summary():
        yield "OK", sentence
    if experiment is not None:
        text = experiment.to_toml()
        held.check_experiment(experiment.name, text)
        yield "OK", f"experiment {experiment.name} is sha256:{digest(text)}"


def _plugins(config: ClientMachineConfig, experiment: ExperimentConfig) -> Lines:
    config.permit_experiment(experiment)
    yield "OK", "the experiment names nothing that this client does not allow"


def _masks(config: ClientMachineConfig) -> None:
    """Check that this client can prove itself to the others.

    Raises:
        ConfigError: It cannot.
    """
    (certificate, *_) = masking.read_certificates(config.share.certificate)
    key = read_key(config.superlink.key)
    card = masking.advertise_key("doctor", X25519PrivateKey.generate(), key, certificate)
    authority = config.share.authority or config.superlink.root_certificate
    masking.holder(card, "doctor", masking.read_certificates(authority))


def _sharing(config: ClientMachineConfig, experiment: ExperimentConfig) -> Lines:
    if experiment.loss.needs_federation and config.share.counts == "none":
        yield (
            "FAIL",
            "the experiment's loss needs the federation's class counts (loss.prior is not local) and this "
            'client shares none; set share.counts to "masked", "noisy" or "plain", or do not join',
        )
    elif config.share.counts == "masked":
        _masks(config)
        yield (
            "OK",
            f"class counts are reported in sums over {masking.MIN_GROUP_SIZE} or more clients that mask them",
        )
    elif config.share.counts == "noisy":
        yield "OK", f"class counts are reported with noise of epsilon {config.share.epsilon:g}"
    else:
        sharing = "reported as they are" if config.share.counts == "plain" else "not reported"
        yield "OK", f"class counts are {sharing}"
