"""Files of experiment folders with other values: an error that names the file, or results with what is there."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.profile import check_message, examples, restored
from tune_hpc.analysis.frames import write_parquet
from tune_hpc.analysis.loading import load, load_all
from tune_hpc.analysis.reader import ResultsReader
from tune_hpc.analysis.results import Results
from tune_hpc.errors import FolderError, TuneHpcError
from tune_hpc.storage.checksum import dump_json
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import write_parquet_table

KEYS = ["optimizer", "rate", "seed"]
EXPERIMENT = {
    "name": "made.up", "metric": "loss", "mode": "min", "config_keys": KEYS, "state": "finished", "seeds": [0, 1],
    "space": {"optimizer": {"choice": ["adam", "momentum"]}, "rate": {"uniform": [0, 1]}}, "num_trials": 4,
    "position": 0, "provenance": {"started": "2026-11-29T00:00:00+00:00"}, "published": [], "claims": [],
    "figures": [], "tables": [], "metrics": {}, "quick": False, "judge": "last", "num_lines": {}, "searcher": "random",
    "scheduler": "none",
}  # fmt: skip
ROWS = [
    {"experiment": "made.up", "trial_id": f"t{number:05d}", "status": "finished", "stop_reason": "all steps done",
     "error": None, "optimizer": "adam", "rate": 0.1 * (number // 2), "seed": number % 2, "loss": 1.0 / (number + 1),
     "steps_run": 2, "train_s": 0.5, "attempt": 1, "host": "here", "config": json.dumps({"optimizer": "adam",
     "rate": 0.1})}
    for number in range(4)
]  # fmt: skip
HISTORY = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]})
TEXTS = st.text(max_size=5) | st.sampled_from(["finished", "running", "made.up", "loss", "t00000", "step", "nan"])
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.sampled_from([0, 1, -1, 10**30, 1e400, 2.5])
)  # fmt: skip
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
FINITE_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6,
)  # fmt: skip
TYPES = st.sampled_from([
    pa.int64(), pa.float64(), pa.string(), pa.bool_(), pa.null(), pa.list_(pa.int64()), pa.binary(), pa.float32(),
    pa.timestamp("ns"), pa.struct({"a": pa.int64()}), pa.dictionary(pa.int32(), pa.string()), pa.uint64(),
    pa.decimal128(5),
])  # fmt: skip


@st.composite
def arrays(draw: Any, length: int) -> pa.Array:
    """Return a column of any type."""
    kind = draw(TYPES)
    values = {
        "int64": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), "double": st.floats(), "string": TEXTS,
        "bool": st.booleans(),
        "float": st.floats(width=32), "binary": st.binary(max_size=3), "list<item: int64>": st.lists(st.integers(0,
        3), max_size=2),
        "timestamp[ns]": st.integers(0, 10**18), "struct<a: int64>": st.fixed_dictionaries({"a": st.integers(0, 3)}),
        "uint64": st.integers(0, 2**64 - 1), "decimal128(5, 0)": st.integers(-9, 9), "null": st.none(),
    }.get(str(kind), TEXTS)  # fmt: skip
    values = st.none() | values
    if draw(st.booleans()):
        return pa.array([draw(values)] * length, kind)
    return pa.array(draw(st.lists(values, min_size=length, max_size=length)), kind)


@st.composite
def changed_tables(draw: Any, table: pa.Table) -> pa.Table:
    """Return a table with other, fewer or more columns, or repeated or no rows."""
    table = draw(
        st.sampled_from([table, table, table, table.slice(0, 1), table.slice(0, 0), pa.concat_tables([table] * 2)])
    )
    for name in draw(
        st.lists(st.sampled_from(table.column_names) | TEXTS.filter(bool), min_size=0, max_size=2, unique=True)
    ):
        if name in table.column_names:
            table = table.drop_columns(name)
        if draw(st.booleans()):
            table = table.append_column(name, draw(arrays(len(table))))
    return table


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of a search that has ended, and of one that still runs."""
    root = tmp_path_factory.mktemp("folders")
    for name in ("finished", "running"):
        folder = ExperimentFolder(root / name)
        folder.claim("made.up")
        folder.write(EXPERIMENT | {"state": name})
    finished, running = ExperimentFolder(root / "finished"), ExperimentFolder(root / "running")
    write_parquet(pd.DataFrame(ROWS), finished.trials_file)
    write_parquet(pd.concat([HISTORY.assign(trial_id=row["trial_id"]) for row in ROWS]), finished.history_file)
    for row in ROWS:
        running.write_trial(row["trial_id"], row, HISTORY)
    return finished, running


def read(folder: ExperimentFolder, *files: Path) -> Results | None:
    """Return the results of a folder after a change of some files, or None after an error that names one of them."""
    found = None
    for load_results in (lambda: load_all(folder.path)[0], ResultsReader(folder).results):
        try:
            found = load_results()
            assert len(found.history) >= 0
        except TuneHpcError as error:
            check_message(error, *files)
    if found is None:
        return None
    for function in (Results._repr_html_, Results.best, Results.rungs, lambda results: results.curve("loss")):
        try:
            function(found)
        except TuneHpcError as error:
            check_message(error)
    return found


@examples(25)
@given(st.sampled_from([*EXPERIMENT, "format", "process"]), JSON | FINITE_JSON, st.booleans(), st.booleans())
@example("space", [], False, True)
@example("metrics", None, False, True)
@example("provenance", None, False, False)
@example("mode", "x", False, True)
@example("seeds", None, True, True)
def test_experiment_json_with_another_value_is_rejected_or_read(folders, name, value, is_removed, has_checksum):
    experiment = (
        {key: old for key, old in EXPERIMENT.items() if key != name} if is_removed else EXPERIMENT | {name: value}
    )
    try:
        text = dump_json(experiment) if has_checksum else json.dumps(experiment)
    except ValueError:
        return
    folder = folders[0]
    with restored(folder.experiment_file):
        folder.experiment_file.write_bytes(text.encode())
        results = read(folder, folder.experiment_file, folder.trials_file)
        assert results is None or json.dumps(results.experiment) == json.dumps(experiment)


@examples(25)
@given(FINITE_JSON | st.text())
def test_experiment_json_with_other_contents_is_rejected_or_read(folders, value):
    folder = folders[0]
    with restored(folder.experiment_file):
        folder.experiment_file.write_bytes(json.dumps(value).encode())
        read(folder, folder.experiment_file)


@pytest.mark.parametrize("name", ["trials_file", "history_file"])
@examples(25)
@given(st.data(), st.booleans())
def test_frame_with_other_columns_is_rejected_or_read(folders, name, data, has_checksum):
    folder = folders[0]
    path = getattr(folder, name)
    table = data.draw(changed_tables(pq.ParquetFile(path).read().replace_schema_metadata(None)))
    with restored(path):
        if has_checksum:
            write_parquet_table(path, table, {})
        else:
            pq.write_table(table, path)
        results = read(folder, path)
        if results is not None:
            frame = results.trials if name == "trials_file" else results.history
            assert len(frame) == len(table)
            assert not len(table) or set(map(str, frame)) >= set(table.column_names)


TABLE = pa.Table.from_pandas(pd.DataFrame(ROWS), preserve_index=False)
HISTORIES = pa.table({"trial_id": ["t00000"], "step": [1], "loss": [0.5]})


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("trials_file", pa.concat_tables([TABLE] * 2), "has a trial twice"),
        ("trials_file", TABLE.drop_columns("status").append_column("status", [["ended"] * 4]), "an unknown status"),
        ("trials_file", TABLE.append_column("lists", [[[1]] * 4]), "no search writes (lists)"),
        ("trials_file", TABLE.drop_columns("config").append_column("config", [["{"] * 4]), "no JSON object: '{'"),
        ("trials_file", TABLE.append_column("loss", [[1] * 4]), "no search writes (twice)"),
        ("history_file", HISTORIES.append_column("text", [["a"]]), "no search writes (text)"),
        ("history_file", HISTORIES.append_column("truth", [[True]]), "no search writes (truth)"),
        ("history_file", pa.table({"trial_id": ["t00000"], "step": ["1"]}), "no search writes (step)"),
        ("history_file", pa.table({"trial_id": pa.nulls(1), "step": [1]}), "no search writes (trial_id)"),
    ],
)  # fmt: skip
def test_frame_that_no_search_writes_is_rejected(folders, name, table, message):
    path = getattr(folders[0], name)
    with restored(path):
        pq.write_table(table, path)
        with pytest.raises(FolderError, match=re.escape(message)):
            load(folders[0].path)


@examples(20)
@given(st.data())
def test_trial_file_with_other_contents_is_rejected_or_read(folders, data):
    folder = folders[1]
    path = folder.trial_file("t00001")
    table = data.draw(changed_tables(pa.Table.from_pandas(HISTORY, preserve_index=False)))
    row: Any = copy.copy(ROWS[1])
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(row)) | TEXTS)
        row[name] = data.draw(JSON)
        if data.draw(st.booleans()):
            del row[name]
    elif data.draw(st.booleans()):
        row = data.draw(JSON)
    with restored(path):
        write_parquet_table(path, table, {b"tune_hpc.trial": json.dumps(row).encode()})
        read(folder, path)


RUNG = {"event": "reached", "configuration": 0, "rung": 0, "steps": 3, "value": 0.5}
GENERATION = {
    "generation": 1, "members": {"t00000": {"copied_from": None, "value": 0.5, "config": {"rate": 0.1}}}
}  # fmt: skip


@pytest.mark.parametrize(("name", "line"), [("rungs", RUNG), ("population", GENERATION)])
@examples(25)
@given(st.data(), st.booleans())
def test_journal_with_other_values_is_rejected_or_read(folders, name, line, data, has_checksum):
    line = copy.deepcopy(line)
    target = line["members"]["t00000"] if name == "population" and data.draw(st.booleans()) else line
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(FINITE_JSON | JSON)
    lines = [line, data.draw(FINITE_JSON)] if data.draw(st.booleans()) else [line]
    try:
        text = "".join(
            dump_json(one) if has_checksum and isinstance(one, dict) else json.dumps(one) + "\n" for one in lines
        )
    except ValueError:
        return
    folder = folders[0]
    path = getattr(folder, name)
    path.write_text(text)
    try:
        results = load(folder.path)
        df = results.rungs() if name == "rungs" else results.generations()
        assert isinstance(df, pd.DataFrame)
    except TuneHpcError as error:
        check_message(error, path)
    finally:
        path.unlink()
