"""``fedvision server``, ``submit`` and ``client``: the same experiment across machines."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fedvision import log_format, registry
from fedvision.cli import watch
from fedvision.cli.announcement import add_log_format, announce
from fedvision.cli.queue import MODULES, serve
from fedvision.errors import ConfigError, FedVisionError, RunExpired
from fedvision.formatting import listed, plural
from fedvision.interruption import treat_termination_as_ctrl_c
from fedvision.stages import stage
from fedvision.streams import complain, show

if TYPE_CHECKING:
    from fedvision.config import ExperimentConfig
    from fedvision.deployment.client.config import ClientMachineConfig
    from fedvision.deployment.server.options import SuperlinkOptions
    from fedvision.deployment.server.superlink_process import SuperlinkProcess
    from fedvision.experiment import Experiment
    from fedvision.runs.folder import RunFolder

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_AGAIN = "the same command goes on from the last round"
_PRIVATE, _PUBLIC, _STATE = "127.0.0.1:8000", "0.0.0.0:8443", Path("superlink")


def add(verbs: Verbs) -> None:
    """Add the verbs to the command line."""
    server = verbs.add_parser("server", description="run an experiment on the machines that own the images")
    _add_run(server, nargs="?")
    server.add_argument(
        "--queue", type=Path, metavar="QUEUE", help="run what `fedvision queue` adds to this folder, in turn"
    )
    server.add_argument(
        "--clients", type=Path, metavar="DIR", help="folder of NAME.pub (default: TLS/clients)"
    )
    server.add_argument(
        "--public", default=_PUBLIC, metavar="HOST:PORT", help=f"for clients (default: {_PUBLIC})"
    )
    server.add_argument("--insecure", action="store_true", help="plain text, for trials on one machine")
    server.add_argument("--client-certificates", action="store_true", help="demand them (mutual TLS)")
    server.add_argument("--keep", action="store_true", help="stay up for `fedvision submit`")
    watch.add_to_server(server)
    server.set_defaults(call=_server, again=_AGAIN)

    submit = verbs.add_parser("submit", description="run an experiment on a SuperLink that was left up")
    _add_run(submit)
    submit.set_defaults(call=_submit, again=_AGAIN, watch=None, token_file=None)

    client = verbs.add_parser("client", description="join a federation with this machine's images")
    client.add_argument("client", type=Path, metavar="CLIENT", help="TOML file of this machine")
    client.add_argument("--superlink", metavar="HOST:PORT", help="another address than the file's")
    add_log_format(client)
    client.set_defaults(call=_client, again="the same command joins again")


def _add_run(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument("experiment", type=Path, nargs=nargs, metavar="EXPERIMENT", help="TOML file")
    parser.add_argument(
        "--wait-for", type=int, default=1, metavar="N", help="clients to begin with (default: 1)"
    )
    parser.add_argument("--out", type=Path, help="run folder (default: runs/NAME)")
    parser.add_argument("--tls", type=Path, metavar="DIR", help="folder of ca.crt, server.crt and server.key")
    parser.add_argument(
        "--private", default=_PRIVATE, metavar="HOST:PORT", help=f"loopback (default: {_PRIVATE})"
    )
    parser.add_argument(
        "--state", type=Path, default=_STATE, metavar="DIR", help="the SuperLink's files (default: superlink)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard scalars")
    parser.add_argument("--mlflow", default="", metavar="STORE", help="also write to MLflow, a URL or a file")
    add_log_format(parser)
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="training.lr=0.1"
    )


def _server(options: argparse.Namespace) -> None:
    from fedvision.deployment.server.options import SuperlinkOptions

    if (options.experiment is None) == (options.queue is None):
        raise ConfigError("server: name an experiment's TOML file, or a queue of experiments with --queue")
    if options.queue is not None:
        _check_of_queue(options)
    watch.check_beside_server(options)
    config = _read(options) if options.queue is None else None
    tls, clients = options.tls, options.clients or (options.tls and options.tls / "clients")
    if options.insecure and not clients:
        raise ConfigError("--clients: name the folder with one NAME.pub a client")
    place = SuperlinkOptions(
        tls=tls and tls.resolve(),
        clients=(clients or Path()).resolve(),
        state=options.state.resolve(),
        public=options.public,
        private=options.private,
        insecure=options.insecure,
        client_certificates=options.client_certificates,
    )
    place.files()  # what the SuperLink would refuse is better said before anything is written
    # On standard output: what is wrong stays a line of its own on the other.
    show(f"the server is starting: clients on {options.public}, its own side on {options.private}")
    _check_transport("internals_run")
    from fedvision.deployment.server.superlink_process import SuperlinkProcess

    if config is None:
        _serve_queue(options, SuperlinkProcess(place, keep=True))
    else:
        _run(config, options, place, SuperlinkProcess(place, keep=options.keep))


def _check_of_queue(options: argparse.Namespace) -> None:
    """Refuse options of one run beside a queue, which would not reach its experiments.

    Raises:
        ConfigError: There is one.
    """
    own = {"--wait-for": options.wait_for != 1, "--out": options.out is not None, "--set": options.overrides}
    if given := [name for name, there in own.items() if there]:
        raise ConfigError(f"{listed(given)}: with --queue give this to `fedvision queue add`")
    if options.watch is not None or options.token_file is not None:
        raise ConfigError(
            "--watch: its page shows one run, and a queue has several; `fedvision watch RUN` shows one, also "
            "before it begins"
        )


def _serve_queue(options: argparse.Namespace, process: SuperlinkProcess) -> None:
    """Run what stands in a queue, until somebody ends this process."""
    from fedvision.runs.folder_lock import claimed

    treat_termination_as_ctrl_c()
    with claimed(process.place.state, "name another one with --state"):
        place = process.open()
        tls = ["--tls", str(place.tls)] if place.tls else []
        further = ["--log-format", options.log_format, *["--tensorboard"] * options.tensorboard]
        if options.mlflow:  # each run has a working folder of its own
            store = options.mlflow if "://" in options.mlflow else str(Path(options.mlflow).absolute())
            further += ["--mlflow", store]
        own = ["--private", place.private, "--state", str(place.state)]
        try:
            serve(options.queue, process, [*own, *tls, *further])
        finally:
            process.stop()


def _submit(options: argparse.Namespace) -> None:
    config = _read(options)
    _check_transport("internals_run")
    from fedvision.deployment.server.options import SuperlinkOptions
    from fedvision.deployment.transport.internals_run import silence

    tls = options.tls.resolve() if options.tls else None
    place = SuperlinkOptions(
        tls=tls,
        insecure=tls is None,
        clients=Path(),
        state=options.state.resolve(),
        private=options.private,
    )
    if not (place.state / "secret").exists():
        raise ConfigError(
            f"--state {options.state}: there is no SuperLink's secret; name the server's folder"
        )
    if silence(place.private, _readable(place.roots)):
        raise ConfigError(
            f"--private {options.private}: no SuperLink answers there; start one with `fedvision server ... "
            "--keep`, and give its --tls and --private here"
        )
    _run(config, options, place, None)


def _readable(roots: Path | None) -> Path | None:
    if roots is not None and not roots.is_file():
        raise ConfigError(f"--tls: {roots} cannot be read; name the server's folder of certificates")
    return roots


def _read(options: argparse.Namespace) -> ExperimentConfig:
    """Read the experiment's file, and say so before anything that takes seconds."""
    from fedvision.config import ExperimentConfig

    if options.wait_for < 1:
        raise ConfigError(f"--wait-for must be >= 1, not {options.wait_for}")
    registry.allow_folder(Path(os.environ.get(MODULES) or options.experiment.parent))
    config = ExperimentConfig.load(options.experiment, options.overrides)
    announce(f"{options.experiment}, {plural(config.rounds, 'round')}")
    return config


def _check_transport(module: str) -> None:
    stage("loading Flower and checking its transport")
    from fedvision.deployment.transport.self_check import require_transport

    require_transport(module)
    log_format.adopt("flwr", "uvicorn", "httpx", "httpcore")


def _run(
    config: ExperimentConfig,
    options: argparse.Namespace,
    place: SuperlinkOptions,
    process: SuperlinkProcess | None,
) -> None:
    from fedvision.experiment import Experiment
    from fedvision.reporting.pages import page_writer

    pages = page_writer(tensorboard=options.tensorboard, mlflow=options.mlflow)
    federation = Experiment.build(config, split_here=False)
    from fedvision.api import default_folder, open_folder
    from fedvision.runs.folder_lock import claimed

    out = options.out or default_folder(federation.config.name, resume=True)
    page = watch.beside_server(options, out)
    with ExitStack() as claims:
        claims.enter_context(claimed(out, "name another one with --out"))
        folder = open_folder(federation.config, out, resume=True)
        if process is not None:
            claims.enter_context(claimed(place.state, "name another one with --state"))
        if page is not None:
            from fedvision.watching.watch_process import WatchProcess

            show(f"the run is shown on {claims.enter_context(WatchProcess(page)).address}")
        _run_in(folder, federation, options, place, process, pages)


def _run_in(
    folder: RunFolder,
    federation: Experiment,
    options: argparse.Namespace,
    place: SuperlinkOptions,
    process: SuperlinkProcess | None,
    pages: Callable[[RunFolder], None],
) -> None:
    from fedvision.deployment.server.deployment import Deployment
    from fedvision.reporting import render
    from fedvision.runs.progress import Progress

    folder.note_invocation({"server": _same_place(options, place, ours=process is not None)})
    run = Deployment(federation, folder, progress=Progress(), write_pages=pages)
    treat_termination_as_ctrl_c()
    try:
        run.run(place, process, options.wait_for)
        page = folder.path / "report.html"
        show(f"{render.run_table(folder)}\nreport: {page}", recorded=str(page))
    except RunExpired as error:
        run.note(f"{error}; the run goes on from its last round")
        if process is not None:
            process.stop()
        _once_more()
    except (FedVisionError, KeyboardInterrupt) as error:
        run.mark_failed(error)
        if process is not None:
            process.stop()
        raise
    if process is not None and process.keep:
        _stay(process)


def _same_place(options: argparse.Namespace, place: SuperlinkOptions, *, ours: bool) -> list[str]:
    """Return verb and options that name the same SuperLink from any folder."""
    arguments = ["server" if ours else "submit", "--private", options.private, "--state", str(place.state)]
    arguments += ["--tls", str(place.tls)] if place.tls else []
    if ours:
        arguments += ["--clients", str(place.clients), "--public", options.public]
        arguments += ["--insecure"] * options.insecure + [
            "--client-certificates"
        ] * options.client_certificates
    return arguments


def _once_more() -> None:
    """Become the same command anew, as a person would give it after a crash."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _stay(process: SuperlinkProcess) -> None:
    """Keep the SuperLink up until somebody ends this process."""
    place = process.place
    show(
        f"the SuperLink stays up on {place.public}: `fedvision submit EXPERIMENT` with the same --tls, "
        "--state and --private sends it further runs, Ctrl-C ends it"
    )
    try:
        while True:
            process.ensure()
            time.sleep(1)
    except KeyboardInterrupt:
        pass
    finally:
        process.stop()


def _client(options: argparse.Namespace) -> None:
    from fedvision.deployment.client.config import ClientMachineConfig

    _log_to_standard_error()
    overrides = [f"superlink.address={json.dumps(options.superlink)}"] if options.superlink else []
    config = ClientMachineConfig.load(options.client, overrides)
    log_format.use(options.log_format, client=config.name)
    show(f"{config.name} is starting; its server is {config.superlink.address}")
    _check_data(options.client, config)
    _check_transport("internals_fleet")
    from fedvision.deployment.client.daemon import ClientDaemon
    from fedvision.libraries import prepare_process

    prepare_process()
    # Whoever runs it as a service ends it so; that is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ClientDaemon(config, options.client.absolute().parent, _question()).serve()


def _question() -> Callable[[str], str] | None:
    """Return what asks a person at the terminal; None where there is none."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(text: str) -> str:
        complain(text)
        return sys.stdin.readline()

    return ask


def _check_data(file: Path, config: ClientMachineConfig) -> None:
    """Refuse what would otherwise be found out when the first run begins.

    Raises:
        ConfigError: The data source is unknown, takes no such key, or its images are not there.
    """
    path = config.data.args.get("path")
    if ":" not in config.data.use:  # a source of the owner's own is code, which this process does not run
        try:
            registry.check("data", config.data)
        except ConfigError as error:
            raise type(error)(f"{file}: {error}") from error
        if isinstance(path, str) and not Path(path).exists():
            raise ConfigError(f"{file}: data.path: there is no {path}; correct it, or copy the images there")


def _log_to_standard_error() -> None:
    log = logging.getLogger("fedvision.deployment")
    log.setLevel(logging.INFO)
    if not log_format.is_json():  # which the root's handler writes
        log.addHandler(log_format.handler())
        log.propagate = False
