"""A client's sums for a server that asks in a file: ``fedvision sums``."""

from __future__ import annotations

from pathlib import Path

from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.trainer import Trainer
from fedvision.deployment.sums_files import ClientSums, SumsRequest
from fedvision.errors import ConfigError
from fedvision.files import write_new


def write_sums(client: ClientMachineConfig, folder: Path, request: Path, out: Path) -> ClientSums:
    """Compute this machine's sums with the constants of a run that it took part in, and write them.

    Args:
        client: The machine's own file.
        folder: Where it lies; modules beside it can be plug-ins.
        request: The server's file.
        out: The new file.

    Raises:
        FedVisionError: The request is for another client, the owner does not allow the statistic, or images
            or tensors are not those of the run.
    """
    asked = SumsRequest.read(request)
    if asked.name != client.name:
        raise ConfigError(
            f"{request}: it asks for the sums of client {asked.name}, and this machine is {client.name}; "
            "name the request for this one"
        )
    sums = Trainer(client, folder).sums_again(asked)
    found = ClientSums(client=asked.client, name=asked.name, request=asked.sha256, sums=sums)
    try:
        write_new(out, [found.to_bytes()])
    except OSError as error:
        raise ConfigError(f"{out}: it cannot be written: {error.strerror or error}") from error
    return found
