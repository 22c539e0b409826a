"""Contract tests of the non-public Flower names that internals.py leans on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedvision.flower import internals
from fedvision.flower.internals import TensorArray


def test_a_message_takes_run_and_node_from_the_process_and_an_id_from_us() -> None:
    internals.identify(run_id=77)
    message = Message(RecordDict(), 5, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (77, internals.SERVER_NODE)
    internals.set_message_id(message, "m1")
    reply = Message(Error(code=internals.CLIENT_RAISED, reason="x"), reply_to=message)
    assert (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == ("m1", 5)


def test_an_empty_run_has_its_number() -> None:
    assert internals.empty_run(3).run_id == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_a_tensor_array_is_the_same_array_to_flower(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    lazy, eager = TensorArray(tensor), Array(tensor)
    assert (lazy.dtype, lazy.shape, lazy.stype) == (eager.dtype, eager.shape, eager.stype)
    assert "data" not in lazy.__dict__
    assert lazy.data == eager.data
    assert lazy.object_id == eager.object_id
    assert np.array_equal(lazy.numpy(), eager.numpy())


def test_a_record_of_tensor_arrays_inflates_to_the_same_tensors() -> None:
    state = {"w": torch.randn(3, 2), "b": torch.randn(2)}
    record = ArrayRecord({name: TensorArray(tensor) for name, tensor in state.items()})
    back = record.to_torch_state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_a_tensor_array_serialises_on_access() -> None:
    array = TensorArray(torch.zeros(4))
    assert array.tensor.data_ptr() == array.numpy().ctypes.data
    assert "data" not in array.__dict__
    with pytest.raises(AttributeError):
        _ = array.nothing


def test_importing_the_names_loads_no_torch() -> None:
    import subprocess
    import sys

    script = "import sys, fedvision.flower.internals; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_filled_record_is_one_that_was_set_array_by_array() -> None:
    arrays = {name: Array(np.full(2, value)) for name, value in (("a", 1.0), ("b", 2.0))}
    expected = ArrayRecord()
    for name, array in arrays.items():
        expected[name] = array
    made = internals.filled(ArrayRecord, arrays)
    assert made == expected
    assert list(made) == ["a", "b"]
    numbers = {"n": 3, "loss": 0.5}
    assert internals.filled(MetricRecord, numbers) == MetricRecord(numbers)
    assert internals.filled(ConfigRecord, numbers) == ConfigRecord(numbers)
    content = {"arrays": made, "metrics": MetricRecord(numbers)}
    assert internals.filled(RecordDict, content) == RecordDict(content)
