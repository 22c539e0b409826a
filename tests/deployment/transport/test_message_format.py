"""A message as layout and blob: the same bits back, and nothing but a sentence for what does not fit."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings

from fedvision.deployment.transport import message_format
from fedvision.deployment.transport.message_format import PIECE, Expected, MessageHeader, TensorSource
from fedvision.errors import ProtocolError
from fedvision.flower.internals import TensorArray
from fedvision.updates.schema import ITEM_BYTES, TensorSpec, UpdateSchema

DTYPES = st.sampled_from(sorted(ITEM_BYTES))
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    dtype, shape = np.dtype(draw(DTYPES)), draw(SHAPES)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype == np.bool_:
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, dtype).reshape(shape).copy()


RECORDS = st.dictionaries(
    st.text(max_size=5), st.dictionaries(st.text(max_size=8), arrays(), max_size=4), max_size=3
)


def packed(content: RecordDict, client: int = -1) -> tuple[MessageHeader, bytearray]:
    layout = message_format.describe(content, client)
    source = TensorSource(content, layout)
    return layout, bytearray(b"".join(source.views(0, source.size)))


@settings(max_examples=60)
@given(groups=RECORDS)
def test_every_tensor_comes_back_with_its_bits(groups: dict[str, dict[str, np.ndarray[Any, Any]]]) -> None:
    content = RecordDict(
        {
            name: ArrayRecord({key: TensorArray(torch.from_numpy(value)) for key, value in group.items()})
            for name, group in groups.items()
        }
    )
    layout, blob = packed(content)
    back = message_format.unpack(MessageHeader.from_text(layout.to_text()), blob)
    assert list(back.array_records) == list(groups)
    for name, group in groups.items():
        assert list(back.array_records[name]) == list(group)
        for key, value in group.items():
            found = back.array_records[name][key].numpy()
            assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes())


def test_numbers_and_strings_round_trip() -> None:
    config = {"i": 2**40, "f": 0.1, "s": "ü", "b": True, "raw": b"\x00\xff", "l": [1, 2], "e": float("inf")}
    content = RecordDict({"config": ConfigRecord(config), "metrics": MetricRecord({"n": 3, "x": [1.5, 2.0]})})
    layout, blob = packed(content, client=7)
    read = MessageHeader.from_text(layout.to_text())
    back = message_format.unpack(read, blob)
    assert read.client == 7
    assert dict(back.config_records["config"]) == config
    assert type(back.config_records["config"]["i"]) is int
    assert type(back.config_records["config"]["b"]) is bool
    assert dict(back.metric_records["metrics"]) == {"n": 3, "x": [1.5, 2.0]}


@settings(max_examples=40)
@given(data=st.data())
def test_pieces_are_the_whole(data: st.DataObject) -> None:
    rng = np.random.default_rng(0)
    sizes = data.draw(st.lists(st.integers(0, 200), min_size=1, max_size=5))
    record = ArrayRecord(
        {str(i): Array(rng.integers(0, 255, n).astype(np.uint8)) for i, n in enumerate(sizes)}
    )
    content = RecordDict({"g": record})
    source = TensorSource(content, message_format.describe(content))
    whole = b"".join(source.views(0, source.size))
    assert (
        len(whole) == source.size == sum(-(-n // message_format.ALIGN) * message_format.ALIGN for n in sizes)
    )
    start = data.draw(st.integers(0, source.size))
    stop = data.draw(st.integers(start, source.size))
    assert b"".join(source.views(start, stop)) == whole[start:stop]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
PAGES = st.fixed_dictionaries(
    {
        "format": st.just(message_format.FORMAT) | JSON,
        "client": st.integers(-1, 5) | JSON,
        "tensors": st.dictionaries(
            st.text(max_size=3),
            st.lists(
                st.tuples(st.text(max_size=2), DTYPES, st.lists(st.integers(0, 3), max_size=3)).map(list)
                | JSON,
                max_size=3,
            ),
            max_size=2,
        )
        | JSON,
        "records": st.dictionaries(
            st.text(max_size=3),
            st.tuples(
                st.sampled_from(["config", "metrics", "x"]), st.dictionaries(st.text(max_size=3), JSON)
            ).map(list)
            | JSON,
            max_size=2,
        )
        | JSON,
    }
)


@pytest.mark.slow
@settings(max_examples=300)
@given(page=PAGES | JSON)
def test_what_strangers_write_is_read_or_refused_with_a_sentence(page: Any) -> None:
    with contextlib.suppress(ProtocolError):  # and nothing else
        layout = MessageHeader.from_text(json.dumps(page))
        if layout.size < 1 << 16:
            message_format.unpack(layout, bytearray(layout.size))


@settings(max_examples=200)
@given(text=st.text(max_size=200))
def test_noise_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        MessageHeader.from_text(text)


def test_deep_nesting_and_long_numbers_are_refused() -> None:
    for text in ("[" * 100_000, '{"format": ' + "9" * 10_000 + "}", "x" * (message_format.MAX_TEXT + 1)):
        with pytest.raises(ProtocolError):
            MessageHeader.from_text(text)


@pytest.mark.parametrize("depth", [490, 600, 900])
def test_a_record_of_nested_lists_is_refused_however_deep_it_is(depth: int) -> None:
    page = json.loads(MessageHeader().to_text()) | {"records": {"r": ["config", {"k": 0}]}}
    text = json.dumps(page).replace('"k": 0', f'"k": {"[" * depth}1{"]" * depth}')
    with pytest.raises(ProtocolError):
        message_format.unpack(MessageHeader.from_text(text), bytearray())


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_whole_numbers_of_more_than_64_bits_are_refused(number: int) -> None:
    page = json.loads(MessageHeader().to_text())
    for value in (number, [1, number]):
        text = json.dumps(page | {"records": {"metrics": ["metrics", {"num-examples": value}]}})
        with pytest.raises(ProtocolError, match="64 bits"):
            MessageHeader.from_text(text)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (["config", {"k": {"base64": "no base 64"}}], "holds bytes that are none"),
        (["metrics", {"loss": "high"}], "the message's records do not fit: "),
    ],
)
def test_values_that_a_record_cannot_hold_are_refused(record: list[Any], sentence: str) -> None:
    page = json.loads(MessageHeader().to_text()) | {"records": {"r": record}}
    with pytest.raises(ProtocolError, match=sentence):
        message_format.unpack(MessageHeader.from_text(json.dumps(page)), bytearray())


def test_a_shape_that_torch_cannot_count_is_refused() -> None:
    """Without elements it takes no memory, so that no limit of bytes meets it."""
    page = json.loads(MessageHeader().to_text()) | {"tensors": {"g": [["w", "float32", [2**40, 2**40, 0]]]}}
    with pytest.raises(ProtocolError, match="a shape"):
        MessageHeader.from_text(json.dumps(page))


MODEL = (TensorSpec("w", "float32", (2, 3)), TensorSpec("b", "float32", (3,)))
EXPECTED = Expected(groups={"arrays": UpdateSchema(MODEL)}, spare_bytes=128)


def layout(*entries: TensorSpec, **groups: tuple[TensorSpec, ...]) -> MessageHeader:
    return MessageHeader(tensors={"arrays": entries, **groups})


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (layout(MODEL[0]), "the tensor 'b' is missing (1 in all)"),
        (
            layout(*MODEL, TensorSpec("x", "float32", ())),
            "'x' is not expected (1 in all)",
        ),
        (
            layout(MODEL[0], TensorSpec("b", "float32", (4,))),
            "the tensor 'b' is float32 [4], not float32 [3]",
        ),
        (
            layout(MODEL[0], TensorSpec("b", "float64", (3,))),
            "the tensor 'b' is float64 [3], not float32 [3]",
        ),
        (MessageHeader(), "the tensor 'b' is missing (2 in all)"),
        (layout(*MODEL, more=(TensorSpec("m", "uint8", (129,)),)), "at most 128 are taken"),
        (layout(*MODEL, more=(TensorSpec("m", "float64", (2**24, 2**20)),)), "at most 128 are taken"),
    ],
)
def test_a_layout_that_does_not_fit_is_named(found: MessageHeader, sentence: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        EXPECTED.check(MessageHeader.from_text(found.to_text()))
    assert sentence in str(refused.value)


def test_a_layout_that_fits_passes_in_any_order_and_survives_the_pipe() -> None:
    expected = Expected.from_text(EXPECTED.to_text())
    assert expected == EXPECTED
    expected.check(layout(MODEL[1], MODEL[0], more=(TensorSpec("m", "uint8", (100,)),)))


def test_a_blob_of_another_size_is_refused() -> None:
    with pytest.raises(ProtocolError, match="has 64 bytes, not 128"):
        message_format.unpack(layout(*MODEL), bytearray(64))


def test_a_type_that_does_not_travel_is_refused_before_it_is_sent() -> None:
    content = RecordDict({"g": ArrayRecord({"c": Array(np.zeros(2, np.complex64))})})
    with pytest.raises(ProtocolError, match="complex64, which does not travel"):
        message_format.describe(content)


def test_tensors_share_the_blob_and_nothing_is_copied() -> None:
    blob = bytearray(layout(*MODEL).size)
    back = message_format.unpack(layout(*MODEL), blob)
    back.array_records["arrays"]["w"].numpy()[0, 0] = 1.0
    assert bytes(blob[:4]) == np.float32(1).tobytes()


def test_notes_travel_as_text_without_control_characters() -> None:
    layout = message_format.MessageHeader(notes=("it fell\n\x1b[2Jand rose", "ä"))
    assert message_format.MessageHeader.from_text(layout.to_text()).notes == ("it fell  [2Jand rose", "ä")


@pytest.mark.parametrize("notes", [["x" * 201], ["x"] * 9, [1], "x", {"x": 1}, None])
def test_notes_of_another_kind_are_refused(notes: object) -> None:
    page = json.loads(message_format.MessageHeader().to_text()) | {"notes": notes}
    with pytest.raises(ProtocolError, match="notes"):
        message_format.MessageHeader.from_text(json.dumps(page))


@settings(max_examples=60)
@given(groups=st.lists(st.tuples(st.booleans(), st.integers(0, 3 * PIECE)), max_size=5))
def test_pieces_end_where_groups_of_constants_do(groups: list[tuple[bool, int]]) -> None:
    tensors = {
        f"{'constant.' if constant else ''}{place}": (TensorSpec("t", "uint8", (size,)),)
        for place, (constant, size) in enumerate(groups)
    }
    layout = MessageHeader(tensors=tensors)
    ends, constant = layout.cuts(), layout.constant_pieces()
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == layout.size
    starts = [0, *ends][:-1]
    assert all(0 < end - start <= PIECE for start, end in zip(starts, ends, strict=True))
    begin = 0
    for group, entries in tensors.items():
        end = begin + sum(-(-entry.size // message_format.ALIGN) * message_format.ALIGN for entry in entries)
        inside = {
            n for n, (low, high) in enumerate(zip(starts, ends, strict=True)) if low < end and high > begin
        }
        if group.startswith("constant."):
            assert inside <= constant
            assert all(begin <= starts[n] and ends[n] <= end for n in inside), "no piece is of two groups"
        else:
            assert not inside & constant
        begin = end
    if not any(constant for constant, _ in groups):
        assert len(ends) == -(-layout.size // PIECE)
