"""Checkpoint files: round trips, damage and code."""

import contextlib
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tune_hpc.errors import FolderError
from tune_hpc.learning.checkpoint import load_arrays, load_state, save_state

STATE = {
    "step": 500,
    "loss": 0.1 + 0.2,
    "model": {"weight": torch.linspace(0, 1, 100), "counts": torch.arange(3)},
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(2, 3)}}, "groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]},
    "status": "finished",
    "nothing": None,
}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "checkpoint.pt"
    save_state(file, STATE)
    return file


def random_changes(test):
    """Run a test with random ``changes``: relative positions and new bytes."""
    change = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))
    health = [HealthCheck.function_scoped_fixture]
    given_changes = given(changes=st.lists(change, min_size=1, max_size=4))(test)
    return settings(deadline=None, max_examples=200, suppress_health_check=health)(given_changes)


def change_bytes(path, changes):
    content = bytearray(path.read_bytes())
    for position, byte in changes:
        content[int(position * len(content))] = byte
    path.write_bytes(content)


def flip_bit(path, value, offset=0):
    """Flip a bit of the first occurrence of a byte string in a file."""
    content = bytearray(path.read_bytes())
    content[content.index(value) + offset] ^= 1
    path.write_bytes(content)


def as_lists(value):
    """Convert tensors to their type and numbers, which can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {key: as_lists(one) for key, one in value.items()}
    return [as_lists(one) for one in value] if isinstance(value, list) else value


class TestRoundTrip:
    def test_state_is_restored_to_the_bit(self, path):
        assert as_lists(load_state(path)) == as_lists(STATE)

    def test_channels_last_weights_keep_their_layout(self, tmp_path):
        weight = torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last)
        save_state(tmp_path / "file", {"weight": weight})
        again = load_state(tmp_path / "file")["weight"]
        assert again.stride() == weight.stride()
        assert torch.equal(again, weight)

    def test_arrays_are_loaded_without_tensors(self, tmp_path):
        module = torch.nn.Linear(2, 3)
        state = {
            **STATE, "predictions": np.arange(256, dtype=np.uint8), "size": torch.Size([2]),
            "module": module.state_dict(), "half": torch.ones(2, dtype=torch.bfloat16, requires_grad=True),
        }  # fmt: skip
        save_state(tmp_path / "file", state)
        loaded = load_arrays(tmp_path / "file")
        assert loaded.keys() == state.keys()
        assert (loaded["predictions"].dtype, loaded["predictions"].tolist()) == (np.uint8, list(range(256)))
        assert loaded["model"] == {"weight": None, "counts": None}
        assert loaded["module"] == {"weight": None, "bias": None}
        assert (loaded["step"], loaded["loss"], loaded["size"], loaded["half"]) == (500, 0.1 + 0.2, None, None)


class TestDamage:
    def test_truncated_file_is_rejected_with_its_name_and_the_remedy(self, path):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(FolderError, match=r"checkpoint\.pt is not readable as a checkpoint \(.*\); delete it"):
            load_state(path)

    @pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04", bytes(1000), b"\x80\x02}."])
    def test_other_contents_are_rejected(self, path, content):
        path.write_bytes(content)
        for load in (load_state, load_arrays):
            with pytest.raises(FolderError, match="is not readable as a checkpoint"):
                load(path)

    def test_flipped_bit_in_a_tensor_is_detected(self, path):
        flip_bit(path, STATE["model"]["weight"].numpy().tobytes(), offset=17)
        with pytest.raises(FolderError, match=r"the checksum of .*data.* differs"):
            load_state(path)

    @random_changes
    def test_changed_bytes_give_the_same_state_or_a_folder_error(self, path, changes):
        save_state(path, STATE)
        change_bytes(path, changes)
        # Any other error passes through and fails the test.
        with contextlib.suppress(FolderError):
            assert as_lists(load_state(path)) == as_lists(STATE)

    @pytest.mark.parametrize(
        ("offset", "value", "message"), [(38, 0x10, "is marked as a folder"), (10, 8, "decompressing")]
    )
    def test_tensor_with_a_wrong_flag_is_rejected(self, path, offset, value, message):
        # The flags in the directory of the archive: a folder, which torch reads as zeros; or compressed.
        content = bytearray(path.read_bytes())
        entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"checkpoint/data/0"))
        content[entry + offset] = value
        path.write_bytes(content)
        with pytest.raises(FolderError, match=message):
            load_state(path)

    def test_state_may_be_a_tensor(self, path):
        save_state(path, torch.ones(3))
        assert load_state(path).tolist() == [1.0, 1.0, 1.0]


class MakesFolder:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class TestCode:
    @pytest.mark.parametrize("is_bare", [False, True], ids=["checkpoint", "pickle"])
    def test_file_with_code_is_rejected_before_it_runs(self, path, tmp_path, is_bare):
        trap = tmp_path / "trap"
        if is_bare:
            path.write_bytes(pickle.dumps(MakesFolder(trap)))
        else:
            torch.save({"model": MakesFolder(trap)}, path)
        for load in (load_state, load_arrays):
            with pytest.raises(FolderError, match="is not readable as a checkpoint"):
                load(path)
        assert not trap.exists()


class TestWithoutTorch:
    """States of a process without torch are saved and loaded without it."""

    STATE: ClassVar = {"step": 500, "height": (0.1 + 0.2, None, [1, "two", b"three"]), "order": OrderedDict(b=1, a=2)}

    @pytest.fixture
    def no_torch(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "torch")

    @pytest.fixture
    def path(self, tmp_path, no_torch):
        file = tmp_path / "checkpoint.pt"
        save_state(file, self.STATE)
        return file

    def test_state_is_restored_to_the_bit(self, path):
        assert load_state(path) == self.STATE
        assert "torch" not in sys.modules

    def test_process_with_torch_loads_the_state(self, path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", torch)
        assert load_state(path) == self.STATE

    def test_flipped_bit_is_detected(self, path):
        flip_bit(path, b"three")
        with pytest.raises(FolderError, match=r"the checksum of plain\.pkl differs"):
            load_state(path)

    @random_changes
    def test_changed_bytes_give_the_same_state_or_a_folder_error(self, path, monkeypatch, changes):
        with monkeypatch.context() as patched:
            patched.delitem(sys.modules, "torch", raising=False)
            save_state(path, self.STATE)
        monkeypatch.setitem(sys.modules, "torch", torch)  # A changed name makes torch load the file.
        change_bytes(path, changes)
        with contextlib.suppress(FolderError):
            assert load_state(path) == self.STATE

    def test_code_is_rejected_before_it_runs(self, path, tmp_path):
        trap = tmp_path / "trap"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("plain.pkl", pickle.dumps({"model": MakesFolder(trap)}))
        with pytest.raises(FolderError, match=r"is not readable as a checkpoint \(it names posix\.mkdir\)"):
            load_state(path)
        assert not trap.exists()

    def test_state_may_be_a_list(self, path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("plain.pkl", pickle.dumps([1, 2]))
        assert load_state(path) == [1, 2]


@pytest.mark.parametrize("has_torch", [True, False])
def test_arrays_and_scalars_of_numpy_are_loaded(tmp_path, monkeypatch, has_torch):
    state = {"scalar": np.float64(1.5), "array": np.arange(3), "nested": [{"flag": np.bool_(True)}], "text": b"x"}
    if not has_torch:
        monkeypatch.delitem(sys.modules, "torch")
    save_state(tmp_path / "state", state)
    loaded = load_state(tmp_path / "state")
    assert loaded["array"].tolist() == [0, 1, 2]
    assert (loaded["scalar"], loaded["nested"], loaded["text"]) == (1.5, [{"flag": np.True_}], b"x")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [object()]}, r"the state\['a'\]\[0\] is of type object; a checkpoint has tensors"),
        ({"a": {1}}, r"the state\['a'\] is of type set"),
        ({"a": np.array(["x"])}, r"the state\['a'\] is an array of <U1; a checkpoint has arrays of numbers"),
        (torch.nn.Linear(1, 1), "the state is of type Linear; .*: convert it, or save its state_dict"),
    ],
)
def test_state_that_cannot_be_loaded_is_not_saved(tmp_path, state, message):
    with pytest.raises(TypeError, match=message):
        save_state(tmp_path / "state", state)
    assert not (tmp_path / "state").exists()
