"""Proof at start that what is built on Flower's non-public names still holds.

Two things are built on them. Without the first no message travels: how a message is cut into objects, how a
call is signed, which calls there are. If that does not hold, nothing is started. The second are shortcuts:
objects as files, calls past Flower's middleware, large objects past its client. If one of these does not
hold, all of them are left out and Flower does the same work in its own way, slower. Each check takes
milliseconds once Flower is imported, and runs what it checks instead of comparing version numbers.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from fedvision.errors import ConfigError

TESTED = "1.41 and 1.42"
"""Versions of flwr against which the contract tests run."""
_HERE = __name__.rpartition(".")[0]


def require_transport(*modules: str) -> None:
    """Try what no message can do without.

    Args:
        modules: Modules of this package that the caller is going to use, such as ``"internals_fleet"``.

    Raises:
        ConfigError: The installed flwr is not one with which messages can be exchanged.
    """
    reason = _failure(lambda: list(map(_load, modules))) or _failure(_exchange)
    if reason:
        raise ConfigError(
            f"flwr {metadata.version('flwr')} cannot be used for a deployment ({reason}); this version of "
            f"fedvision was tested with flwr {TESTED}: install one of these"
        )


def server_shortcuts() -> str:
    """Return why a SuperLink has to go without shortcuts, in one sentence; empty where it has them."""
    return _sentence(_failure(_server))


def client_shortcuts() -> str:
    """Return why a client has to go without its shortcut, in one sentence; empty where it has it."""
    return _sentence(_failure(lambda: _load("internals_large_objects").check_encoding()))


def _load(module: str) -> Any:
    return import_module(f"{_HERE}.{module}")


def _sentence(reason: str) -> str:
    if not reason:
        return ""
    return (
        f"flwr {metadata.version('flwr')}: messages go Flower's own way, which is slower, since a shortcut "
        f"past it does not fit this version ({reason}); tested versions are {TESTED}"
    )


def _failure(check: Callable[[], object]) -> str:
    """Run a check and return what went wrong; any error means that a name or its meaning has changed."""
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    return ""


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} is not as expected")


def _exchange() -> None:
    """Cut a message into objects, read it back from them, and sign a call."""
    from cryptography.hazmat.primitives.asymmetric import ec

    superlink, wire = _load("internals_superlink"), _load("internals_message_objects")
    message, payload = _message()
    tree, objects = wire.objects_of(message)
    content = {name: thing.deflate() for name, thing in objects.items()}
    _expect(all(sha256(body).hexdigest() == name for name, body in content.items()), "an object's id")
    pieces = [thing for thing in objects.values() if isinstance(thing, wire.TensorObject)]
    flowers = b"".join(wire.ArrayChunk.inflate(piece.deflate()).data for piece in pieces)
    _expect(flowers[: len(payload)] == payload, "a piece as Flower reads it")
    incoming = wire.IncomingMessage(message, tree, content.__getitem__)
    read = b"".join(bytes(piece) for piece in incoming.read(incoming.open()))
    _expect(read[: len(payload)] == payload, "a message that was read back")
    key = ec.generate_private_key(ec.SECP384R1())
    given = {name.lower().encode(): value.encode() for name, value in superlink.signed_headers(key).items()}
    names = (superlink.PUBLIC_KEY_HEADER, superlink.TIME_HEADER, superlink.SIGNATURE_HEADER)
    public, time, signature = (given[name] for name in names)
    _expect(superlink.is_signed(superlink.b64decode(public), time, signature), "a signature")
    known = {superlink.PUSH_MESSAGES, superlink.PUSH_OBJECT, superlink.CONFIRM, superlink.GET_RUN}
    _expect(known <= superlink.fleet_paths(), "the list of a client's calls")


def _message() -> tuple[Any, bytes]:
    """Return a packed message of one tensor, large enough for a file of its own, and the tensor's bytes."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, RecordDict

    from fedvision.flower import internals

    needed = ("internals_message_objects", "message_format", "blob_store")
    wire, message_format, store = map(_load, needed)
    values = np.arange(store.SMALL, dtype=np.float32)
    plain = RecordDict({"arrays": ArrayRecord({"w": Array(values)})})
    header = message_format.describe(plain)
    packed = wire.pack_tensors(message_format.TensorSource(plain, header), header)
    return internals.trial_message(wire.pack_message(header, packed)), values.tobytes()


def _server() -> None:
    """Keep a message in files, and see that Flower's handlers take what they will be given."""
    fast_path, store, wire = (
        _load(name) for name in ("internals_fast_path", "internals_store", "internals_message_objects")
    )
    message, _ = _message()
    tree, objects = wire.objects_of(message)
    with tempfile.TemporaryDirectory() as folder:
        files = store.FileObjectStore(Path(folder) / "objects")
        files.open()
        try:
            wanted = files.preregister(1, tree)
            _expect(set(wanted) >= objects.keys(), "the list of objects that are to come")
            for name, thing in objects.items():
                files.put(name, thing.deflate())
                _expect(files.get(name) == thing.deflate(), "an object that was kept")
            _expect(any(files.file(name) for name in objects), "the file of a large object")
            files.delete_objects_in_run(1)
            _expect(not any(name in files for name in objects), "a run that was forgotten")
        finally:
            files.close()
    for call, given, named in fast_path.contract():
        inspect.signature(call).bind(*given, **dict.fromkeys(named))
