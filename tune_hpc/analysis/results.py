"""Trials and history of a search as two data frames.

**trials**: one row per trial, whatever its outcome.

    experiment, trial_id   identity of the trial
    status                 finished, stopped, diverged, failed or running; disturbed for a repeat of a scaling
                           measurement that does not count
    stop_reason            text: all steps done, single pass over, non-finite loss at step 3, ...
    error                  last line of the exception of a failed trial
    <config columns>       the completed configuration; missing where a key does not apply
    <metrics>              last value of each metric that the trainable reported: train_loss, valid_loss,
                           valid_accuracy, test_loss, test_accuracy, ...
    best_test_accuracy, best_step
                           highest test accuracy and its step: the report's measure, selected on the test set
    best_valid_accuracy, selected_step, selected_test_accuracy
                           highest validation accuracy, its step, and the test accuracy there: the unbiased measure
    steps_run              number of optimizer steps
    setup_s, train_s, eval_s, samples_per_s
                           seconds before the first step, in steps, in evaluations; training samples per train_s
    num_fused              number of trials that trained as one program; durations are this trial's share of it
    attempt                attempt (start, resume or extension) of the experiment in which the trial ended
    host, device           where the trial ran
    ended_at               time of the end (UTC, ISO 8601); not in searches of early releases
    config                 the configuration as JSON, with the types of its values

**history**: long form with ``trial_id``, ``step`` and one column per metric, missing at steps without a measurement.
A row is the state after ``step`` updates; its ``train_loss`` is the loss of the next batch before the update.

``status`` is a category of ``STATUSES``. Other texts are strings (pandas' ``str``, stored by Arrow). Counts, steps and
seeds are integers, or floats if a value is missing. All other columns are float or bool.

Fractions are 0 to 1, durations end in ``_s``, rates in ``_per_s``, counts begin with ``num_``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tune_hpc.analysis import ranking
from tune_hpc.analysis.comparison import Comparison, compare_values
from tune_hpc.analysis.frame_query import csv_text
from tune_hpc.analysis.frames import STATUSES, generations_frame, rungs_frame, write_parquet
from tune_hpc.analysis.stability import rung_correlation
from tune_hpc.errors import FolderError, UnknownNameError
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.filesystem import Storage

if TYPE_CHECKING:
    from tune_hpc.learning.models import SingleModel


@dataclass(frozen=True, repr=False)
class Results:
    """Trials and history of one experiment.

    Attributes:
        experiment: Contents of experiment.json.
        trials: One row per trial.
        history: Long form, one row per trial and step.
        folder: The experiment folder, if the results were loaded from one.

    Example:
        >>> from tune_hpc import load
        >>> results = load("docs/results/exercise2.softmax.shuffled")
        >>> results.trials.groupby("optimizer")["test_accuracy"].max().round(3).tail(2)
        optimizer
        proximal_adagrad    0.918
        rmsprop             0.922
        Name: test_accuracy, dtype: float64
        >>> sorted(results.history)[:2]
        ['fit_accuracy', 'fit_loss']
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
        """The configuration columns of ``trials``."""
        return [name for name in self.experiment["config_keys"] if name in self.trials]

    @property
    def varied_parameters(self) -> list[str]:
        """The configuration columns that were searched, and ``seed`` if there are several.

        Columns that differ only because another optimizer has other defaults are not included.
        """
        space = self.experiment.get("space")
        if space is None:
            return [name for name in self.config_columns if self._differs(name)]
        searched = {name for name, value in space.items() if isinstance(value, Mapping)}
        return [name for name in self.config_columns if name in searched or (name == "seed" and self._differs(name))]

    def _differs(self, name: str) -> bool:
        return len(self.trials[name].drop_duplicates()) > 1

    def counts(self) -> dict[str, int]:
        """Return the number of trials with each status; a status without trials is omitted."""
        counts = self.trials["status"].value_counts()
        return {status: int(counts[status]) for status in STATUSES if counts.get(status, 0)}

    @property
    def first_error(self) -> str:
        """The first failed trial and its error; empty if no trial failed."""
        for trial in self.trials[self.trials["status"] == "failed"].to_dict("records"):
            return f"{trial['trial_id']}: {trial.get('error') or 'unknown'}"
        return ""

    @property
    def failures(self) -> str:
        """The number of failed trials, the first error, and the folder of the logs; empty if no trial failed."""
        if not self.first_error:
            return ""
        folder = ExperimentFolder(self.folder) if self.folder else None
        # A local run has no logs.
        where = f"; logs: {folder.uri}/logs" if folder and folder.storage.list_names(folder.logs) else ""
        return f"{self.counts()['failed']} of {len(self.trials)} trials failed, {self.first_error}{where}"

    def top(self, n: int = 10, metric: str | None = None, mode: str | None = None) -> pd.DataFrame:
        """Return the best ``n`` configurations, best first; none with a diverged or failed seed.

        Args:
            n: Maximum number of rows.
            metric: A numeric column of ``trials``; by default the experiment's metric.
            mode: ``min`` or ``max``; by default the direction that the experiment declares for the metric.

        Returns:
            The varied parameters, the metric (mean over the seeds), ``METRIC_deviation`` and ``num_seeds``. Its text
            has all columns.

        Raises:
            UnknownNameError: The column is absent or not numeric, or its direction is unknown.

        Example:
            >>> from tune_hpc import load
            >>> load("docs/results/exercise2.softmax.shuffled").top(2)[["optimizer", "learning_rate", "num_seeds"]]
              optimizer  learning_rate  num_seeds
            0   rmsprop          0.005          5
            1      adam          0.005          5
        """
        return ranking.top(self, n, metric or self.metric, mode)

    def best(self, metric: str | None = None, mode: str | None = None) -> pd.Series:
        """Return the best configuration: all its parameters, and the columns of ``top``.

        Args:
            metric: As for ``top``.
            mode: As for ``top``.

        Raises:
            UnknownNameError: As for ``top``, or no configuration has a value.

        Example:
            >>> from tune_hpc import load
            >>> best = load("docs/results/exercise2.softmax.shuffled").best()
            >>> best["optimizer"], float(best["learning_rate"])
            ('rmsprop', 0.005)
        """
        best = ranking.best_configuration(self, metric or self.metric, mode)
        return pd.Series({**best.astype(object), **ranking.config_of(self, best)})

    def best_config(self, metric: str | None = None, mode: str | None = None) -> dict[str, Any]:
        """Return the best configuration as a dictionary without the seed; arguments and errors as for ``best``.

        Example:
            >>> from tune_hpc import load
            >>> config = load("docs/results/exercise2.softmax.shuffled").best_config()
            >>> config["optimizer"], config["batch_size"]
            ('rmsprop', 100)
        """
        return ranking.config_of(self, ranking.best_configuration(self, metric or self.metric, mode))

    def best_trial(self, metric: str | None = None, mode: str | None = None) -> pd.Series:
        """Return the best single trial as a row of ``trials``; arguments and errors as for ``best``."""
        return ranking.best_trial(self, metric or self.metric, mode)

    def best_checkpoint(self) -> Path:
        """Return the retained checkpoint of the best trial of the best configuration.

        If none of its states was retained, a warning names the next best trial with one. With the policy ``best`` this
        happens if a configuration runs twice, as members of a population do.

        The file has the state that the trainable offered. ``torch.load`` and ``tune_hpc.load_state`` read it.

        Raises:
            FolderError: No checkpoint was retained.
            UnknownNameError: As for ``best``.
        """
        from tune_hpc.analysis.checkpoints import best_checkpoint

        return best_checkpoint(self)

    def checkpoint(self, trial_id: str) -> Path:
        """Return the retained checkpoint of a trial: of the step whose metric ranks it, if there are two.

        Raises:
            FolderError: No checkpoint was retained.
        """
        from tune_hpc.analysis.checkpoints import checkpoint

        return checkpoint(self, trial_id)

    def load_model(self, trial_id: str | None = None) -> "SingleModel":
        """Return a built-in model with the weights of a retained checkpoint.

        Args:
            trial_id: The trial; default: that of ``best_checkpoint``.

        Returns:
            Module from images (N, 1, 28, 28) with pixels from 0 to 1 to logits (N, 10).

        Raises:
            FolderError: No checkpoint was retained, or it has no built-in model.
        """
        from tune_hpc.analysis.checkpoints import load_model

        return load_model(self, trial_id)

    def predictions(self, trial_id: str | None = None) -> np.ndarray:
        """Return the predicted classes of the test images in a retained checkpoint.

        Built-in models predict all test images, or the first ``num_evaluation_images``. The state of a user-defined
        trainable needs a NumPy array ``predictions``.

        Args:
            trial_id: The trial; default: that of ``best_checkpoint``.

        Returns:
            Classes (N,), uint8 for a built-in model.

        Raises:
            FolderError: No checkpoint was retained, or it has no predictions.

        Example:
            >>> from search_spaces.exercise2 import softmax
            >>> from tune_hpc import run
            >>> experiment = softmax.with_values({"optimizer": "adam", "learning_rate": 0.005})
            >>> results = run(experiment, output_dir="runs/adam", show_progress=False)
            >>> is_correct = results.predictions() == results.labels()
            >>> bool(is_correct.mean() == results.trials["test_accuracy"][0])
            True
        """
        from tune_hpc.analysis.predictions import retained_classes

        return retained_classes(self, trial_id, "predictions")

    def labels(self, trial_id: str | None = None) -> np.ndarray:
        """Return the true classes of the images of ``predictions``; arguments and errors as there."""
        from tune_hpc.analysis.predictions import retained_classes

        return retained_classes(self, trial_id, "labels")

    def is_lower_better(self, metric: str, mode: str | None = None) -> bool:
        """Return whether a metric is best when low.

        The direction is ``mode``, or that which the experiment declares, or that of names that end in ``loss``,
        ``accuracy``, ``_s`` (seconds) and ``_per_s``.

        Raises:
            UnknownNameError: It is none of these.
        """
        return ranking.is_lower_better(self, metric, mode)

    def curve(self, metric: str) -> pd.DataFrame:
        """Return one metric in wide form.

        Returns:
            Index ``step``, one column per ``trial_id``; missing at steps without a measurement.

        Raises:
            UnknownNameError: There is no such metric.

        Example:
            >>> from tune_hpc import load
            >>> curves = load("docs/results/exercise2.softmax.shuffled").curve("test_accuracy")
            >>> curves.shape    # steps x trials
            (50, 360)
        """
        metrics = self.history.columns.drop(["trial_id", "step"])
        if metric not in metrics:
            known = ", ".join(map(str, metrics))
            raise UnknownNameError(f"no metric {metric!r} in the history of {self.name}; there are {known}")
        measured = self.history.dropna(subset=[metric])
        return measured.pivot_table(index="step", columns="trial_id", values=metric, observed=True)

    def compare(
        self,
        parameter: str,
        metric: str | None = None,
        *,
        confidence: float = 0.95,
        where: Mapping[str, Any] | None = None,
        mode: str | None = None,
    ) -> Comparison:
        """Compare the values of a parameter: seeds as blocks, pooled variance, Tukey's and Hsu's intervals.

        Args:
            parameter: A configuration column.
            metric: The column that is compared; by default the experiment's metric, which also selects the
                configuration of each value.
            confidence: Confidence level of all intervals and verdicts.
            where: Configuration values that select the trials.
            mode: ``min`` or ``max``; by default the direction that the experiment declares for the metric.

        Raises:
            UnknownNameError: The parameter is unknown or has more than 100 values, the metric is no numeric column, or
                ``where`` selects no trial.
            ValueError: The confidence is no fraction.

        Example:
            >>> from tune_hpc import load
            >>> comparison = load("docs/results/exercise2.softmax.shuffled").compare("optimizer", "test_accuracy")
            >>> comparison.values[["optimizer", "rank"]].tail(3)
                      optimizer  rank
            6              ftrl     3
            7  proximal_adagrad     3
            8          adadelta     9
        """
        return compare_values(self, parameter, metric, confidence=confidence, where=where, mode=mode)

    def with_trials(self, trials: pd.DataFrame) -> "Results":
        """Return the results with a subset of the trials."""
        return Results(self.experiment, trials.reset_index(drop=True), self.history, self.folder)

    def __repr__(self) -> str:
        return f"Results of {ranking.summary(self)}"

    def _repr_html_(self) -> str:
        table = self.top() if self.metric in self.trials else pd.DataFrame()
        return f"<p>{escape(ranking.summary(self))}</p>{table.to_html(index=False)}"

    def to_csv(self, folder: str | Path) -> list[Path]:
        """Write both frames as trials.csv and history.csv into a folder; return the files."""
        return self._write(folder, "csv", lambda df, path: path.write_text(csv_text(df), "utf-8", newline=""))

    def to_parquet(self, folder: str | Path) -> list[Path]:
        """Write both frames as trials.parquet and history.parquet into a folder; return the files."""
        return self._write(folder, "parquet", lambda df, path: write_parquet(df, path))

    def _write(self, folder: str | Path, suffix: str, write: Callable[[pd.DataFrame, Path], object]) -> list[Path]:
        storage, files = Storage(folder), []
        for name, df in (("trials", self.trials), ("history", self.history)):
            files.append(storage.local_path(f"{name}.{suffix}"))
            storage.write_atomic(files[-1], lambda path, df=df: write(df, path))  # type: ignore[misc]
        return files

    def generations(self) -> pd.DataFrame:
        """Return the members of each generation of population-based training, except the first generation.

        Returns:
            One row per generation and member: ``generation`` (from 1), ``trial_id``, ``copied_from`` (missing without
            an exploit), ``value`` (of the metric before), and the configuration.

        Raises:
            FolderError: The search has no population, or its file cannot be read.
        """
        return generations_frame(
            self.experiment, self._scheduler_file("population", "no generations; search with scheduler='pbt'")
        )

    def rungs(self) -> pd.DataFrame:
        """Return the arrivals of configurations at the rungs of successive halving, in order of time.

        Returns:
            One row per rung and configuration: ``rung`` (from 1), ``trial_id`` (of its first seed), ``step``, ``value``
            (the mean over its seeds; missing if one of them diverged or failed), ``is_promoted``.

        Raises:
            FolderError: The search has no rungs, or their file cannot be read.
        """
        return rungs_frame(self.experiment, self._scheduler_file("rungs", "no rungs; search with scheduler='asha'"))

    def rung_correlation(self) -> pd.DataFrame:
        """Compare the ranking of configurations at the rungs of ``asha`` with the final one.

        A search without a scheduler shows what successive halving would have stopped. Configurations count if all seeds
        ran to the last step of the search.

        Returns:
            One row per rung: ``step`` (the first measured one at 1/27, 1/9 and 1/3 of the steps), ``fraction`` of the
            steps, ``kendall_tau`` (rank correlation with the final values), ``num_configurations``, ``num_kept``,
            ``best_rank`` (at the rung, of the configuration that is the best at the end) and ``keeps_best``.

        Raises:
            UnknownNameError: The history has no such metric, or there are fewer than two steps or three configurations.
        """
        return rung_correlation(self)

    def _scheduler_file(self, name: str, problem: str) -> Path:
        file: Path = getattr(ExperimentFolder(self.folder or ""), name)
        if self.folder is None or not file.is_file():
            raise FolderError(f"{self.name} has {problem}")
        return file
