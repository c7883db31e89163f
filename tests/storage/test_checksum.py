"""Checksums inside files."""

import io
import json
import random
import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.storage.test_formats import FORMATS
from tune_hpc import load
from tune_hpc.errors import FolderError
from tune_hpc.storage.checksum import CRC, dump_json, load_json
from tune_hpc.storage.trial_file import read_table, to_row, write_table

DATA = {"name": "made.up", "rate": 0.1, "seeds": [0, 1, 2], "note": 'an "é" and }'}
HISTORY = pd.DataFrame({"step": [1, 2, 3], "test_loss": [0.5, 0.25, None]})


def flips(data: bytes):
    """Yield copies with one flipped bit each."""
    for position in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        yield bytes(damaged)


@pytest.mark.parametrize("indent", [None, 1])
def test_every_flipped_bit_of_json_is_an_error_or_harmless(indent):
    text = dump_json(DATA, indent).encode()
    assert load_json(text) == DATA
    outcomes = []
    for damaged in flips(text):
        try:
            outcomes.append(load_json(damaged))
        except ValueError:
            continue
    # Damage to the key or the digits of the checksum leaves all values.
    assert all({name: value[name] for name in DATA} == DATA for value in outcomes)
    assert len(outcomes) < 8 * len(f"{CRC}: 00000000")


def test_json_remains_readable_for_other_programs():
    value = json.loads(dump_json(DATA, indent=1))
    assert list(value) == [*DATA, CRC]


@pytest.mark.parametrize("text", ["{}", '{"a": 1}', "[1, 2]", '{"crc32": 1}', '{"crc32": "00000000", "a": 1}'])
def test_json_without_checksum_is_loaded(text):
    expected = json.loads(text)
    if isinstance(expected, dict):
        expected.pop(CRC, None)
    assert load_json(text) == expected


def test_edited_json_is_an_error():
    text = dump_json(DATA).replace("0.1", "0.2")
    with pytest.raises(ValueError, match="its checksum differs; if you edited it, remove its crc32"):
        load_json(text)


def test_flipped_bits_of_a_parquet_file_are_errors(tmp_path):
    path = tmp_path / "t00000.parquet"
    row = {"trial_id": "t00000", "note": "crc32", "test_loss": 0.25}
    write_table(path, row, HISTORY)
    data = path.read_bytes()
    expected = read_table(path)
    num_accepted = 0
    for damaged in random.Random(0).sample(list(flips(data)), 1000):
        path.write_bytes(damaged)
        try:
            table = read_table(path)
        except FolderError:
            continue
        assert table.equals(expected)
        assert to_row(path, table) == row
        num_accepted += 1
    assert num_accepted < 30


def test_parquet_files_remain_readable_for_other_programs_and_old_ones_are_read(tmp_path):
    path = tmp_path / "t00000.parquet"
    write_table(path, {"trial_id": "t00000"}, HISTORY)
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(path.read_bytes())), HISTORY)
    pq.write_table(pa.Table.from_pandas(HISTORY), path)
    assert read_table(path).num_rows == 3


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["trials/t00001.parquet", "history.parquet"])
def test_rest_of_a_folder_with_a_damaged_file_is_loaded_on_request(name, tmp_path):
    state = "killed" if name.startswith("trials/") else "finished"
    shutil.copytree(FORMATS / "8ccb666" / state, tmp_path / "out")
    damage(tmp_path / "out" / name)
    with pytest.raises(FolderError, match=r"checksum differs.*the rest with load\(folder, skip_damaged=True\)"):
        load(tmp_path / "out")
    with pytest.warns(UserWarning, match=f"skipped: .*{name} is not readable"):
        results = load(tmp_path / "out", skip_damaged=True)
    assert list(results.trials["trial_id"]) == (["t00000"] if state == "killed" else [f"t0000{i}" for i in range(5)])
    assert len(results.history) == (401 if state == "killed" else 0)
    assert results.best()["learning_rate"] == (0.5 if state == "killed" else 0.01)
