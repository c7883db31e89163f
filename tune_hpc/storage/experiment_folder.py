"""Layout and atomic writes of an experiment folder.

    experiment.json    the experiment, its state, and the provenance of the run
    progress.json      during the search: number of ended trials and estimated time (progress_file.py)
    trials.parquet     one row per trial (columns: results.py)
    history.parquet    long form: trial_id, step, one column per metric
    proposals.jsonl    configurations that a model-based searcher suggested, one per line
    warm_start.jsonl   configurations and outcomes of the other searches from which it started
    rungs.jsonl        arrivals and promotions at the rungs of ASHA, one per line
    population.jsonl   exploits at the end of each generation of PBT, one per line
    attempts/N         one file for each start, resume and extension: the process that claimed it
    trials/            during the search: ID.parquet for each trial that ended or has reported for some seconds,
                       ID.checkpoint for a running trial, groups.json with the trials of each fused group, control with
                       the number of the attempt that may write and its stop flag
    checkpoints/       ID/STEP.checkpoint: retained states of trials (search/checkpoint_retention.py)
    artifacts/         ID/: files that trials wrote into their folders
    logs/              ID.log for each trial that wrote to its output or raised an exception
    changes/           N.diff with the uncommitted changes of the repository with the user's code, for attempt N
    tables/ figures/   tables and figures made from the frames
    report.html        both on one page
    tensorboard/       exports, if requested: event files in one folder per trial,
    optuna.journal     an Optuna study,
    mlflow.db          and MLflow runs
    ray/               Ray's files

A file appears under a temporary name and is then renamed, so that a reader never sees half of it, and it is on the disk
before the search continues. Parquet files, experiment.json, groups.json and each JSON line have a checksum (``crc32``);
remove it from a file that you edit. A folder is enough to analyse a search on any machine.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc.errors import ConflictError, FolderError
from tune_hpc.storage.checksum import dump_json, load_json
from tune_hpc.storage.filesystem import Storage
from tune_hpc.storage.process import this_process

if TYPE_CHECKING:
    import pandas as pd

#: The version of this layout.
FORMAT = 1
_TRIAL = ".parquet"


class ExperimentFolder:
    """Names and states of the files of one experiment.

    Every method raises ``FolderError`` if the folder cannot be read or written, or a file is missing or damaged.

    Args:
        path: The folder, or its URI.
        attempt: The attempt that this process writes for; ``None``: the process only reads.

    Attributes:
        storage: The files of the folder.
        path: The folder, or its working copy on this machine.
    """

    def __init__(self, path: str | os.PathLike[str], attempt: int | None = None) -> None:
        self.storage = Storage(path)
        self.path = self.storage.root
        self.attempt = attempt
        self.attempts = self.path / "attempts"
        self.experiment_file = self.path / "experiment.json"
        self.progress = self.path / "progress.json"
        self.trials_file = self.path / "trials.parquet"
        self.history_file = self.path / "history.parquet"
        self.proposals = self.path / "proposals.jsonl"
        self.warm_start = self.path / "warm_start.jsonl"
        self.rungs = self.path / "rungs.jsonl"
        self.population = self.path / "population.jsonl"
        self._journals = (self.proposals, self.warm_start, self.rungs, self.population)
        self.trials = self.path / "trials"
        self.groups = self.trials / "groups.json"
        self.control = self.trials / "control"
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"
        self.changes = self.path / "changes"
        self.tables = self.path / "tables"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"
        self.tensorboard = self.path / "tensorboard"
        self.optuna_journal = self.path / "optuna.journal"
        self.mlflow = self.path / "mlflow.db"
        self.ray = self.path / "ray"

    @property
    def uri(self) -> str:
        """Name of the folder on every machine."""
        return self.storage.uri

    def absolute(self) -> "ExperimentFolder":
        """Return the same folder with an absolute path."""
        return ExperimentFolder(self.path.absolute(), self.attempt)

    def trial_file(self, trial_id: str) -> Path:
        """Return the file with the row and the history of one trial."""
        return self.trials / f"{trial_id}{_TRIAL}"

    def checkpoint(self, trial_id: str) -> Path:
        """Return the checkpoint of one running trial."""
        return self.trials / f"{trial_id}.checkpoint"

    def retained_checkpoints(self, trial_id: str) -> Path:
        """Return the folder with the retained checkpoints of one trial."""
        return self.checkpoints / trial_id

    def retained_checkpoint(self, trial_id: str, step: int) -> Path:
        """Return the retained checkpoint of one trial after a number of steps."""
        return self.retained_checkpoints(trial_id) / f"{step}.checkpoint"

    def retained_steps(self, trial_id: str) -> list[int]:
        """Return the steps of the retained checkpoints of one trial, in ascending order."""
        stems = [
            name.removesuffix(".checkpoint") for name in self.storage.list_names(self.retained_checkpoints(trial_id))
        ]
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())

    def artifacts(self, trial_id: str) -> Path:
        """Return the folder for the files of one trial."""
        return self.path / "artifacts" / trial_id

    def log(self, trial_id: str) -> Path:
        """Return the file with the output and the traceback of one trial."""
        return self.logs / f"{trial_id}.log"

    def trial_ids(self) -> list[str]:
        """Return the trials that have a trial file in the working copy, in order."""
        names = [path.name for path in _children(self.trials)] if self.trials.exists() else []
        return [name.removesuffix(_TRIAL) for name in names if name.endswith(_TRIAL)]

    def write_trial(self, trial_id: str, row: Mapping[str, Any], history: "pd.DataFrame") -> None:
        """Write the row and the history of one trial."""
        from tune_hpc.storage.trial_file import write_table

        self.storage.write_atomic(self.trial_file(trial_id), lambda path: write_table(path, row, history))

    def read_trial(self, trial_id: str) -> tuple[dict[str, Any], "pd.DataFrame"]:
        """Return the row and the history of one trial from the working copy."""
        from tune_hpc.storage.trial_file import read_table, to_row

        path = self.trial_file(trial_id)
        table = read_table(path)
        return to_row(path, table), table.to_pandas()

    def read_row(self, trial_id: str) -> dict[str, Any] | None:
        """Return the row of one trial; ``None`` if it has no trial file."""
        from tune_hpc.storage.trial_file import read_table, to_row

        path = self.trial_file(trial_id)
        return to_row(path, read_table(path)) if self.storage.download(path) else None

    def update_status(self, trial_id: str, changes: Mapping[str, Any]) -> None:
        """Change columns in the row of one trial."""
        row, history = self.read_trial(trial_id)
        self.write_trial(trial_id, row | dict(changes), history)

    def delete_checkpoint(self, trial_id: str) -> None:
        """Delete the checkpoint of one trial, if it exists."""
        self.storage.delete(self.checkpoint(trial_id))

    def last_attempt(self) -> int:
        """Return the number of the latest attempt; 0 if there is none."""
        names = self.storage.list_names(self.attempts)
        return max((int(name) for name in names if name.isascii() and name.isdigit()), default=0)

    def claim_attempt(self, last: int, number: int | None = None) -> None:
        """Become the only driver of the folder: a compare-and-swap on the number of the attempt.

        The number is a fencing token: earlier drivers and their trials stop, and write nothing from then on.

        Args:
            last: The latest attempt that the caller saw.
            number: The number to claim; by default the next one.

        Raises:
            ConflictError: another process has claimed the folder since.
        """
        number = last + 1 if number is None else number
        self.storage.make_folder(self.attempts)
        is_first = self.last_attempt() == last and number > last
        text = dump_json(this_process())
        if not is_first or not self.storage.create_exclusive(self.attempts / str(number), text):
            raise ConflictError(f"another process resumed {self.path} (attempt {self.last_attempt()}); see its status")
        self.attempt = number
        self.write_control()

    def write_control(self, *, stop: bool = False) -> None:
        """Publish the attempt that may write, and whether its trials must save their state and stop."""
        self.storage.make_folder(self.trials)
        self.storage.rewrite(self.control, f"{self.attempt} {'stop' if stop else 'run'}\n")

    def read_control(self) -> tuple[int | None, bool]:
        """Return the attempt that may write, and whether its trials must stop.

        The number is ``None`` if the file is missing: the search has ended, or its folder was deleted.
        """
        try:
            number, _, order = self.storage.read_text(self.control).partition(" ")
        except FileNotFoundError:
            return None, False
        # The file may be read while it is rewritten; an empty file has no effect.
        return (int(number), order.strip() == "stop") if number.isdigit() else (self.attempt, False)

    def is_superseded(self) -> bool:
        """Return whether another attempt may write instead of this one."""
        return self.attempt is not None and self.read_control()[0] != self.attempt

    def check_attempt(self) -> None:
        """Raise unless the attempt of this process may still write.

        Raises:
            ConflictError: another process has resumed the search, or the folder was deleted.
        """
        if self.is_superseded():
            raise ConflictError(
                f"attempt {self.attempt} of {self.path} was superseded (attempt {self.last_attempt()}), or the folder "
                "was deleted; it writes nothing more"
            )

    @property
    def holds_experiment(self) -> bool:
        """True if the folder has an experiment.json."""
        return self.storage.download(self.experiment_file)

    def check_free(self, name: str, *, overwrite: bool = False) -> None:
        """Raise if a new experiment cannot use the folder; change nothing.

        Args:
            name: The experiment's name.
            overwrite: Accept the files of an earlier experiment of this name.

        Raises:
            FolderError: the folder holds an experiment or other files, or cannot be made.
        """
        if self.holds_experiment:
            present = self.read()["name"]
            if not overwrite or present != name:
                raise FolderError(
                    f"{self.path} already holds the experiment {present}; choose another output folder, "
                    "or resume or overwrite it (--resume, --overwrite)"
                )
        elif any(name not in (self.attempts.name, self.trials.name) for name in self._visible_names()):
            raise FolderError(f"{self.path} is not empty and holds no experiment; choose an empty or new output folder")
        self.storage.check_writable()

    def _visible_names(self) -> list[str]:
        """Return the files and folders directly in the folder, without temporary files.

        A start that failed before it wrote experiment.json leaves ``attempts`` and ``trials``.
        """
        return [name for name in self.storage.list_names() if not (name.startswith(".") and name.endswith(".tmp"))]

    def claim(self, name: str, *, overwrite: bool = False) -> None:
        """Make the folder, empty, for a new experiment; arguments and errors as for ``check_free``."""
        self.check_free(name, overwrite=overwrite)
        trials = (self.trials, self.checkpoints, self.path / "artifacts", self.logs, self.changes)
        for folder in (*trials, self.tables, self.figures, self.tensorboard, self.ray):
            self.storage.delete_tree(folder)
        frames = (self.trials_file, self.history_file)
        others = (self.progress, self.report, self.optuna_journal, self.mlflow)
        for file in (*frames, *self._journals, *others, self.experiment_file):
            self.storage.delete(file)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(
                f"{self.path} cannot be made: {error.strerror or error}; choose another output folder"
            ) from error

    def read(self) -> dict[str, Any]:
        """Return the contents of experiment.json."""
        try:
            experiment = load_json(self.storage.read_bytes(self.experiment_file))
        except FileNotFoundError:
            raise FolderError(f"{self.path} is no experiment folder: it has no experiment.json") from None
        except (ValueError, RecursionError) as error:
            raise FolderError(f"{self.experiment_file} cannot be read: {error}; restore it from a copy") from error
        if not isinstance(experiment, dict) or "name" not in experiment:
            raise FolderError(f"{self.experiment_file} describes no experiment: it has no name; restore it from a copy")
        keys, space = experiment.get("config_keys", []), experiment.get("space") or {}
        if not isinstance(space, dict) or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise FolderError(f"{self.experiment_file} is damaged: space or config_keys; restore it from a copy")
        process = experiment.get("process")
        if process is not None and not (isinstance(process, dict) and {"host", "pid"} <= set(process)):
            raise FolderError(f"{self.experiment_file} is damaged: process; restore it from a copy")
        return experiment

    def write(self, experiment: Mapping[str, Any]) -> None:
        """Replace experiment.json.

        Raises:
            ConflictError: another attempt may write now.
        """
        self.check_attempt()
        self.storage.write_atomic(self.experiment_file, dump_json(experiment, indent=1))

    def append_line(self, path: Path, line: Mapping[str, Any]) -> None:
        """Append a line to a file of JSON lines.

        Raises:
            ConflictError: another attempt may write now.
        """
        self.check_attempt()
        self.storage.append(path, dump_json(line))

    def num_lines(self) -> dict[str, int]:
        """Return the number of lines of each file of JSON lines."""
        files = [path for path in self._journals if self.storage.download(path)]
        return {path.name: path.read_bytes().count(b"\n") for path in files}

    def read_lines(
        self, path: Path, counter: str, first: int = 0, *, may_be_absent: bool = False
    ) -> list[dict[str, Any]]:
        """Return all lines of a file of JSON lines; remove an unfinished last line from the file.

        Args:
            path: The file.
            counter: The key that numbers the lines.
            first: The number of the first line.
            may_be_absent: Whether a missing file counts as an empty one.

        Raises:
            FolderError: the file is missing, or damaged before its last line.
        """
        if not self.storage.download(path) and may_be_absent:
            return []
        try:
            *texts, rest = path.read_text(encoding="utf-8").split("\n")
            lines = [load_json(text) for text in texts]
            check_num_lines(self.read(), path, len(lines))
            if [line[counter] for line in lines] != list(range(first, first + len(lines))):
                raise ValueError(f"its numbers are not {first}, {first + 1}, {first + 2}, ...")
            if rest:
                # The process died during the write, before it acted on this line.
                with path.open("r+", encoding="utf-8") as file:
                    file.truncate(sum(len(text.encode()) + 1 for text in texts))
                self.storage.upload(path)
            return lines
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FolderError(f"{path} cannot be read: {error}; restore it from a copy") from error


def check_num_lines(experiment: Mapping[str, Any], path: Path, number: int) -> None:
    """Raise ``ValueError`` if a file of JSON lines has fewer lines than at the end of the last run."""
    expected = (experiment.get("num_lines") or {}).get(path.name, 0)
    if number < expected:
        raise ValueError(f"{number} of its {expected} lines are there")


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise FolderError(f"{folder} cannot be read: {error.strerror or error}; choose another folder") from error


def find_experiments(path: str | os.PathLike[str]) -> list[ExperimentFolder]:
    """Return the experiment folders at ``path`` or below it, in the order of their names.

    Raises:
        FolderError: there is none.
    """
    storage = Storage(path)
    storage.download_tree()
    walked: set[Path] = set()  # symbolic links may form cycles

    def walk(path: Path) -> Iterator[ExperimentFolder]:
        folder = ExperimentFolder(path)
        if folder.holds_experiment:
            yield folder
        elif path.is_dir() and (real := path.resolve()) not in walked:
            walked.add(real)
            for child in _children(path):
                if child.is_dir() and (child.name != "ray" or ExperimentFolder(child).holds_experiment):
                    yield from walk(child)

    found = list(walk(storage.root))
    if not found:
        reason = "no experiment.json in it or below it" if storage.root.exists() else "the folder does not exist"
        raise FolderError(f"{storage.uri} is no experiment folder: {reason}")
    return found


def find_experiment(path: str | os.PathLike[str]) -> ExperimentFolder:
    """Return the experiment folder at ``path``, or the only one below it.

    Raises:
        FolderError: there is none, or ``path`` holds several.
    """
    found, root = find_experiments(path), Storage(path).root
    if len(found) > 1:
        names = ", ".join(str(folder.path.relative_to(root)) for folder in found)
        raise FolderError(f"{path} is no experiment folder, but holds some ({names}); name one, or use load_all")
    return found[0]


def new_folder(name: str, parent: str | Path = "runs") -> Path:
    """Return the first of ``runs/NAME``, ``runs/NAME-2`` and so on that does not exist."""
    return next(folder for folder in map(Path(parent).joinpath, numbered_names(name)) if not folder.exists())


def numbered_names(name: str) -> Iterator[str]:
    """Yield ``NAME``, ``NAME-2``, ``NAME-3`` and so on."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))
