"""What happened, as two data frames: their columns, how they are saved, loaded and asked.

**trials**: one row per trial, whatever became of it.

    experiment, trial_id   which trial
    status                 finished, stopped, diverged, failed or running
    stop_reason            in words: all steps done, single pass over, non-finite loss at step 3, ...
    error                  the exception's last line, for a failed trial
    <config columns>       the completed configuration; absent (missing) where a key does not apply
    <metrics>              the last value of each metric that the trainable reported: train_loss, valid_loss,
                           valid_accuracy, test_loss, test_accuracy, ...
    best_test_accuracy, best_step
                           highest test accuracy of the run and when: the report's own measure, chosen on the test set
    best_valid_accuracy, selected_step, selected_test_accuracy
                           chosen on validation images, and the test accuracy there: the honest measure
    steps_run              optimizer steps done
    setup_s, train_s, eval_s, samples_per_s
                           seconds before the first step, in steps, in evaluations; training samples a second of train_s
    num_fused              how many trials trained as one program; durations are this trial's share of the program's
    attempt                the attempt (start, resume or extension) of the experiment in which it ended
    host, device           where it ran

**history**: long form, ``trial_id``, ``step``, one column per metric; missing where a metric was not taken at a step.
A row describes the state after ``step`` updates: its ``train_loss`` is the loss of the next batch, before it is used.

``status`` is a category of ``STATUSES``; other words are strings (pandas' ``str``, which is Arrow's); counts, steps and
seeds are integers, or floats where one is missing; all else is float or bool.

Fractions are 0..1, durations end in ``_s``, rates in ``_per_s``, counts begin with ``num_``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tune_hpc.analysis.frames import STATUSES, generations_frame, read_folder, rungs_frame
from tune_hpc.errors import FolderError, UnknownNameError
from tune_hpc.storage.experiment_folder import ExperimentFolder, find_experiments, find_one, write_atomic

if TYPE_CHECKING:
    from tune_hpc.analysis.comparison import Comparison


@dataclass(frozen=True, repr=False)
class Results:
    """The outcome of one experiment.

    Attributes:
        experiment: The contents of experiment.json.
        trials: One row per trial.
        history: Long form, one row per trial and step.
        folder: Where it was loaded from.
    """

    experiment: Mapping[str, Any]
    trials: pd.DataFrame
    history: pd.DataFrame
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.experiment["name"])

    @property
    def metric(self) -> str:
        """The column that ranks trials."""
        return str(self.experiment["metric"])

    @property
    def config_columns(self) -> list[str]:
        """The columns of ``trials`` that hold the configuration."""
        return [name for name in self.experiment["config_keys"] if name in self.trials]

    @property
    def varied_parameters(self) -> list[str]:
        """The configuration columns that were searched, and the seed where several ran.

        A column may differ without having been searched: another optimizer brings other defaults along.
        """
        space = self.experiment.get("space")
        if space is None:
            return [name for name in self.config_columns if self._differs(name)]
        searched = {name for name, value in space.items() if isinstance(value, Mapping)}
        return [name for name in self.config_columns if name in searched or (name == "seed" and self._differs(name))]

    def _differs(self, name: str) -> bool:
        return len(self.trials[name].drop_duplicates()) > 1

    def counts(self) -> dict[str, int]:
        """Return how many trials have each status; statuses that no trial has are left out."""
        counted = self.trials["status"].value_counts()
        return {status: int(counted[status]) for status in STATUSES if counted.get(status, 0)}

    def top(self, n: int = 10, metric: str | None = None) -> pd.DataFrame:
        """Return the best ``n`` trials that finished or were stopped, best first.

        Args:
            n: Number of rows at most.
            metric: A numeric column of ``trials``; by default the experiment's metric. Of others, losses and
                durations are best when low.

        Raises:
            UnknownNameError: no such column, or one without numbers.
        """
        metric = metric or self.metric
        if metric not in self.trials:
            raise UnknownNameError(
                f"no column {metric!r} in the trials of {self.name}: {', '.join(map(str, self.trials))}"
            )
        if not pd.api.types.is_numeric_dtype(self.trials[metric]):
            numbers = self.trials.select_dtypes("number").columns
            raise UnknownNameError(f"the column {metric} of {self.name} holds no numbers; {', '.join(numbers)} do")
        healthy = self.trials[self.trials["status"].isin(["finished", "stopped"])].dropna(subset=[metric])
        return healthy.sort_values(metric, ascending=self.is_lower_better(metric), kind="stable").head(n)

    def is_lower_better(self, metric: str) -> bool:
        """Whether less of a metric is better: of the experiment's own it says so; losses and durations are."""
        if metric == self.metric:
            return bool(self.experiment["mode"] == "min")
        return metric.endswith("loss") or (metric.endswith("_s") and not metric.endswith("_per_s"))

    def best(self, metric: str | None = None) -> pd.Series:
        """Return the best trial as a row.

        Raises:
            UnknownNameError: no such column, or no trial has a value in it.
        """
        top = self.top(1, metric)
        if top.empty:
            raise UnknownNameError(f"no trial of {self.name} finished with a value of {metric or self.metric}")
        return top.iloc[0]

    def curve(self, metric: str) -> pd.DataFrame:
        """Return one metric in wide form.

        Returns:
            Index ``step``, one column per ``trial_id``, missing where the metric was not taken.

        Raises:
            UnknownNameError: no such metric.
        """
        if metric not in self.history:
            raise UnknownNameError(
                f"no metric {metric!r} in the history of {self.name}: {', '.join(map(str, self.history))}"
            )
        taken = self.history.dropna(subset=[metric])
        return taken.pivot_table(index="step", columns="trial_id", values=metric, observed=True)

    def compare(
        self,
        parameter: str,
        metric: str | None = None,
        *,
        confidence: float = 0.95,
        where: Mapping[str, Any] | None = None,
    ) -> "Comparison":
        """Say which value of a parameter is better, by how much, and how sure that is; ties are called ties.

        Args:
            parameter: A configuration column.
            metric: What is compared; by default the experiment's metric. Configurations are chosen by the latter.
            confidence: Of all intervals and verdicts.
            where: Configuration values that the trials must have.

        Raises:
            UnknownNameError: no such parameter, or one of more than 100 values; no such column of numbers, or no such
                trial.
        """
        from tune_hpc.analysis.comparison import compare_values

        return compare_values(self, parameter, metric, confidence=confidence, where=where)

    def __repr__(self) -> str:
        from tune_hpc.report.findings import findings

        return "\n".join([f"Results of {self.name}:", *findings(self)])

    def _repr_html_(self) -> str:
        from tune_hpc.report.findings import findings
        from tune_hpc.report.tables import best_trials

        said = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings(self))
        return f"<b>{escape(self.name)}</b><ul>{said}</ul>{best_trials(self).to_html(index=False)}"

    def to_csv(self, folder: str | Path) -> list[Path]:
        """Write both frames as trials.csv and history.csv into a folder; return the files."""
        return self._write(folder, "csv", lambda df, path: df.to_csv(path, index=False))

    def to_parquet(self, folder: str | Path) -> list[Path]:
        """Write both frames as trials.parquet and history.parquet into a folder; return the files."""
        return self._write(folder, "parquet", lambda df, path: df.to_parquet(path, index=False))

    def _write(self, folder: str | Path, ending: str, write: Callable[[pd.DataFrame, Path], object]) -> list[Path]:
        files = []
        for name, df in (("trials", self.trials), ("history", self.history)):
            files.append(Path(folder) / f"{name}.{ending}")
            write_atomic(files[-1], lambda path, df=df: write(df, path))  # type: ignore[misc]
        return files

    def generations(self) -> pd.DataFrame:
        """Return what each member of a population was in each generation but the first.

        Returns:
            One row per generation and member: ``generation`` (from 1), ``trial_id``, ``copied_from`` (missing where it
            copied nobody), ``value`` (what it had reached before), and its configuration.

        Raises:
            FolderError: the search has no population, or its file cannot be read.
        """
        file = self._decided("population", "no generations; search with scheduler='pbt'")
        return generations_frame(file)

    def rungs(self) -> pd.DataFrame:
        """Return who came to which rung of a successive halving, in this order.

        Returns:
            One row per rung and configuration: ``rung`` (from 1), ``trial_id`` (of its first seed), ``step``, ``value``
            (what it is ranked by: the mean over its seeds; missing where one of them diverged or failed), ``goes_on``.

        Raises:
            FolderError: the search has no rungs, or their file cannot be read.
        """
        file = self._decided("rungs", "no rungs; search with scheduler='asha'")
        return rungs_frame(file, max(1, len(self.experiment["seeds"])))

    def _decided(self, name: str, lacks: str) -> Path:
        """Return the file of what a search decided while it ran."""
        file: Path = getattr(ExperimentFolder(self.folder or ""), name)
        if self.folder is None or not file.is_file():
            raise FolderError(f"{self.name} has {lacks}")
        return file


def load(folder: str | Path) -> Results:
    """Load one experiment's results, finished or not.

    Args:
        folder: An experiment folder.

    Raises:
        FolderError: no experiment there, several, or a file that cannot be read.
    """
    return load_folder(find_one(folder))


def load_all(folder: str | Path) -> list[Results]:
    """Load every experiment at a folder or below it, in the order in which they were run.

    Raises:
        FolderError: there is none, or a file cannot be read.
    """
    return sorted((load_folder(one) for one in find_experiments(folder)), key=_in_order)


def _in_order(results: Results) -> tuple[str, int]:
    """Sort experiments as they were run; those of one run began at the same moment."""
    return results.experiment.get("provenance", {}).get("started", ""), results.experiment.get("position", 0)


def load_folder(folder: ExperimentFolder) -> Results:
    """Load one experiment's results, finished or not.

    Args:
        folder: Of the experiment.

    Raises:
        FolderError: no experiment there, or a file that cannot be read.
    """
    experiment, trials, histories = read_folder(folder)
    return Results(experiment, trials, histories.of(), folder.path)
