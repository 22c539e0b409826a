r"""Flower's own client beside ours: the ClientApp that a stock ``flower-supernode`` starts for every message.

::

    flower-supernode --superlink HOST:PORT --root-certificates ca.crt \
        --auth-supernode-private-key client.key --node-config 'client="/etc/fedvision/client.toml"'

The machine's file says the same as to ``fedvision client``, except for ``[superlink]``, which Flower's
options replace. The answers are the same to the bit. What the resident client is for is missing: a process is
started and the images are read for each message, a reply that was lost is trained anew, and the server's
bundle, which holds no code here, is installed as Flower installs any.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.participation_policy import Policy
from fedvision.deployment.client.redaction import AT_HOME, cause, redact_paths
from fedvision.deployment.client.trainer import Trainer
from fedvision.deployment.run_manifest import RunManifest
from fedvision.deployment.transport import message_format
from fedvision.deployment.transport.internals_message_objects import contents, pack_message, pack_tensors
from fedvision.errors import ConfigError, RunError
from fedvision.flower import codec, masked_codec
from fedvision.flower.internals_message import answer
from fedvision.flower.query_codec import STATISTIC

CLIENT = "client"
"""Key of ``--node-config`` that names the machine's own file."""

app = ClientApp()


def _respond(message: Message, context: Context) -> Message:
    named = context.node_config.get(CLIENT)
    if not isinstance(named, str):
        raise ConfigError(
            f"this SuperNode names no client's TOML file; start it with --node-config '{CLIENT}=\"FILE\"'"
        )
    # What is raised travels to the server as a sentence; where it came from stays in this machine's log.
    try:
        client = ClientMachineConfig.load(named)
    except ConfigError as error:
        raise RunError(AT_HOME) from error
    try:
        content = _work(client, Path(named).absolute().parent, message, context)
    except (Exception, SystemExit) as error:
        raise RunError(redact_paths(cause(error), client)) from error
    return answer(content, message)


def _work(client: ClientMachineConfig, folder: Path, message: Message, context: Context) -> RecordDict:
    kind = message.metadata.message_type
    manifest, policy = RunManifest.from_table(context.run_config), Policy(client.policy, Path(client.state))
    layout, blob = contents(message.content)
    policy.check(manifest, kind, layout.members)
    trainer = Trainer(client, folder)
    expected = trainer.open(manifest.to_table())["expected"]
    # Requests beside the rounds come without tensors.
    may_come = (
        message_format.Expected.from_text(expected[kind]) if kind in expected else message_format.Expected()
    )
    may_come.check(layout)
    content = trainer.do(kind, layout.client, message_format.unpack(layout, blob))
    if kind == MessageType.TRAIN:
        policy.trained(manifest.run)
    header = message_format.describe(content)
    return pack_message(
        header, pack_tensors(message_format.TensorSource(content, header), header), ordered=False
    )


for register in (
    app.train(),
    app.evaluate(),
    app.query(codec.CLIENT_INFO.removeprefix("query.")),
    app.query(masked_codec.MASKED.removeprefix("query.")),
    app.query(STATISTIC.removeprefix("query.")),
):
    register(_respond)
