"""Compare the values of a parameter with an additive linear model.

Each value is represented by its best configuration by the experiment's metric, with the seeds as repeats. All values
share one model (``linear_model``): seeds are blocks, and the residual variance is pooled. Ranks, ties, the heat map and
the check of boundaries use the same simultaneous intervals of all pairs (Tukey-Kramer). The values that may be the best
are those of Hsu's multiple comparisons with the best. A configuration that was selected on these seeds is biased
upwards; ``tune_hpc.compare`` reruns the winners with fresh seeds.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    check_columns,
    filter_trials,
    searched_parameters,
    trial_values,
)
from tune_hpc.analysis.formatting import display_name, format_metric, format_number, format_value
from tune_hpc.analysis.intervals import POWER, check_confidence, mean_interval, sample_deviation
from tune_hpc.analysis.linear_model import AdditiveModel, Differences, all_differences
from tune_hpc.analysis.value_labels import with_value_labels
from tune_hpc.errors import UnknownNameError

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results

BETTER, TIE, INCONCLUSIVE = "better", "tie", "inconclusive"
#: Maximum number of values.
MAX_VALUES = 100
#: Columns of ``Comparison.values`` beside the parameters.
_COLUMNS = (
    "num_seeds", "mean", "deviation", "low", "high", "rank", "is_tied_for_best", "may_be_best", "lead_low", "lead_high",
    "num_configurations", "num_diverged",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Comparison of the values of a parameter.

    Attributes:
        parameter: The parameter.
        metric: The metric that is compared.
        lower_is_better: Whether lower values of the metric are better.
        confidence: Confidence level of all intervals and verdicts.
        values: One row per value, by rank and mean: the value, the other parameters of its configuration,
            ``num_seeds``, ``mean``, ``deviation``, ``low`` and ``high`` (of the mean over its seeds; Student's),
            ``rank`` (1 plus the number of significantly better values; missing if a comparison is inconclusive),
            ``is_tied_for_best`` (rank 1, shared), ``may_be_best`` (Hsu; missing without a variance), ``lead_low`` and
            ``lead_high`` (lead over the best of the others, negative if worse; Hsu's simultaneous interval),
            ``num_configurations`` that it was selected from, ``num_diverged`` trials among them. A parameter with the
            name of another column is ``PARAMETER (parameter)``, for example ``rank (parameter)``.
        pairs: One row per pair: ``first``, ``second`` (the better mean first), ``difference`` (first less second,
            adjusted for missing seeds), ``low`` and ``high`` (simultaneous for all pairs; Tukey-Kramer), ``p``
            (adjusted), ``num_pairs`` (seeds that are blocks; 0: none are), ``min_detectable_difference`` (with
            probability 0.8), ``verdict``: the first is ``better``, the values ``tie``, or the comparison is
            ``inconclusive``.
        model: Fit of all values, or of those without an outlying variance: residual ``deviation`` and ``degrees``.
    """

    parameter: str
    metric: str
    lower_is_better: bool
    confidence: float
    values: pd.DataFrame
    pairs: pd.DataFrame
    model: AdditiveModel

    @property
    def column(self) -> str:
        """The column of ``values`` with the values of the parameter: ``PARAMETER (parameter)`` if it is taken."""
        return _column(self.parameter)

    def sentences(self) -> list[str]:
        """Return the findings, most important first."""
        if self.values.empty:
            return [f"No value of {display_name(self.parameter)} has a {display_name(self.metric)}."]
        sentences = [self._best(), self._worse(), self._candidates(), self._power(), self._selection()]
        return [sentence for sentence in sentences if sentence]

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def _repr_html_(self) -> str:
        paragraphs = "".join(f"<p>{sentence}</p>" for sentence in self.sentences())
        return f"{paragraphs}{self.values.to_html(index=False)}"

    def _best(self) -> str:
        best = self.values.iloc[0]
        value, label = format_value(best[self.column]), display_name(self.parameter)
        text = f"{display_name(self.metric)} {format_metric(best['mean'], self.metric)}"
        if not np.isnan(best["low"]):
            low, high = (format_metric(best[end], self.metric) for end in ("low", "high"))
            text += f" ({self._level} interval {low} to {high}, {best['num_seeds']} seeds)"
        if len(self.values) == 1:
            return f"Only {label} {value} has a value: {text}."
        is_inconclusive = self.pairs.loc[_equals(self.pairs["first"], best[self.column]), "verdict"] == INCONCLUSIVE
        if is_inconclusive.any():
            reason = "some comparisons are inconclusive"
            if is_inconclusive.all():
                has_repeats = self.values["num_seeds"] > 1
                reason = "inconclusive with one seed each"
                if has_repeats.all():
                    reason = "inconclusive, because the seeds give identical values"
                elif has_repeats.any():
                    reason = "inconclusive where there is one seed, or seeds give identical values"
            return f"{label} {value} has the best {text.removeprefix('best ')}; {reason}."
        tied = self.values.loc[self.values["is_tied_for_best"].fillna(False).astype(bool), self.column]
        if len(tied) > 1:
            return f"{_enumerate(tied)} tie for the best {label} at {self._level}: {value} has {text}."
        return f"{value} is the best {label} at {self._level}: {text}."

    def _worse(self) -> str:
        worse = self.values.loc[(self.values["rank"] > 1).fillna(False).astype(bool), self.column]
        if worse.empty:
            return ""
        verb = "is" if len(worse) == 1 else "are"
        text = f"{_enumerate(worse)} {verb} worse at {self._level}"
        is_of_best = _equals(self.pairs["first"], self.values.iloc[0][self.column])
        beaten = self.pairs[is_of_best & (self.pairs["verdict"] == BETTER)]
        if beaten.empty:
            return f"{text}."
        nearest = beaten.iloc[int(np.argmin(beaten["difference"].abs()))]
        low, high = sorted((abs(nearest["low"]), abs(nearest["high"])))
        first, second = format_value(nearest["first"]), format_value(nearest["second"])
        difference, low, high = (format_metric(abs(x), self.metric) for x in (nearest["difference"], low, high))
        return f"{text}: {second} is {difference} away from {first} ({low} to {high})."

    def _candidates(self) -> str:
        may_be_best = self.values["may_be_best"].fillna(True).astype(bool)
        if may_be_best.sum() >= self.values["rank"].eq(1).sum():
            return ""
        names = _enumerate(self.values.loc[may_be_best, self.column])
        return (
            f"Only {names} may be better than all others at {self._level} (Hsu's multiple comparisons with the best)."
        )

    def _power(self) -> str:
        detectable = self.pairs.loc[self.pairs["verdict"] == TIE, "min_detectable_difference"].median()
        if np.isnan(detectable):
            return ""
        return (
            f"With these seeds a difference below about {format_metric(detectable, self.metric)} is detected with a "
            f"probability below {format_number(100 * POWER)} %."
        )

    @property
    def _level(self) -> str:
        return f"{format_number(100 * self.confidence)} %"

    def _selection(self) -> str:
        num_configurations = int(self.values["num_configurations"].max())
        if num_configurations < 2:
            return ""
        return (
            f"Each value is represented by the best of up to {num_configurations} configurations, selected on the same "
            "seeds, which biases it upwards; tune_hpc.compare reruns the best with fresh seeds."
        )


@dataclass
class _Candidate:
    """A value of the parameter, represented by its best configuration; the repeats are the metric by seed."""

    value: Any
    others: Mapping[str, Any]
    repeats: pd.Series
    num_configurations: int
    num_diverged: int


def compare_values(
    results: "Results", parameter: str, metric: str | None = None, *, confidence: float = 0.95,
    where: Mapping[str, Any] | None = None, mode: str | None = None,
) -> Comparison:  # fmt: skip
    """Compare the values of a parameter; see ``Results.compare``."""
    check_confidence(confidence)
    metric = metric or results.metric
    if parameter not in results.config_columns or parameter == "seed":
        known = ", ".join(name for name in results.config_columns if name != "seed")
        raise UnknownNameError(f"no parameter {parameter!r} in {results.name}; there are {known}")
    check_columns(results, [metric])
    results = with_value_labels(filter_trials(results, where))
    if (num_values := results.trials[parameter].nunique(dropna=False)) > MAX_VALUES:
        raise UnknownNameError(
            f"{parameter} has {num_values} values in {results.name}, too many to compare (at most {MAX_VALUES}): "
            "plot them, or compare a parameter with fewer values"
        )
    lower = results.is_lower_better(metric, mode)
    candidates = _candidates(results, parameter, metric)
    candidates.sort(key=lambda candidate: candidate.repeats.mean() if lower else -candidate.repeats.mean())
    samples = pd.DataFrame({number: candidate.repeats for number, candidate in enumerate(candidates)})
    found = all_differences(samples, lower, confidence)
    pairs = _pairs(candidates, found, lower, confidence)
    values = _values(candidates, pairs, found, parameter, confidence)
    return Comparison(parameter, metric, lower, confidence, values, pairs, found.model)


def _candidates(results: "Results", parameter: str, metric: str) -> list[_Candidate]:
    results = results.with_trials(results.trials)  # with an index of unique row numbers
    trials = results.trials
    others = [name for name in searched_parameters(results) if name != parameter]
    df = trial_values(results, [metric, results.metric])
    numbers = trials.groupby([parameter, *others], dropna=False, sort=False).ngroup()
    has_diverged = trials["status"] == "diverged"
    has_no_value = df[results.metric].isna() & ~has_diverged
    merit = df[results.metric].groupby(numbers).mean().where(~has_diverged.groupby(numbers).any())
    merit = merit if results.is_lower_better(results.metric) else -merit
    # A configuration with a failed seed represents a value only if the value has no other one.
    order = pd.DataFrame({"is_incomplete": has_no_value.groupby(numbers).any(), "merit": merit}).dropna()
    order = order.sort_values(["is_incomplete", "merit"], kind="stable")
    candidates = []
    for value, rows in df.groupby(trials[parameter], sort=False, dropna=False, observed=True):
        for number in order.index[order.index.isin(numbers[rows.index])]:
            measured = rows[numbers[rows.index] == number].dropna(subset=[metric])
            if len(measured):
                first = trials.loc[measured.index[0]]
                # Trials with the same configuration and seed are one repeat: their mean.
                repeats = measured.groupby("seed")[metric].mean()
                num_diverged = int(has_diverged[rows.index].sum())
                config = {name: first[name] for name in others}
                num_configurations = numbers[rows.index].nunique()
                candidates.append(_Candidate(value, config, repeats, num_configurations, num_diverged))
                break
    return candidates


def _pairs(
    candidates: list[_Candidate], found: Differences, lower_is_better: bool, confidence: float
) -> pd.DataFrame:  # fmt: skip
    rows = []
    for i, j in itertools.combinations(range(len(candidates)), 2):
        # An adjustment for missing seeds can change the order of two means.
        first, second = (j, i) if found.difference[i, j] * (1 if lower_is_better else -1) > 0 else (i, j)
        difference, half, p = (matrix[first, second] for matrix in (found.difference, found.half, found.p))
        values = candidates[first].value, candidates[second].value
        shared = candidates[i].repeats.index.intersection(candidates[j].repeats.index)
        num_pairs = len(shared) if found.model.has_blocks else 0
        verdict = INCONCLUSIVE if np.isnan(p) else BETTER if p < 1 - confidence else TIE
        numbers = (difference, difference - half, difference + half, p, num_pairs, found.min_detectable[i, j])
        rows.append((*values, *numbers, verdict))
    columns = ["difference", "low", "high", "p", "num_pairs", "min_detectable_difference", "verdict"]
    return pd.DataFrame(rows, columns=["first", "second", *columns])


def _values(
    candidates: list[_Candidate], pairs: pd.DataFrame, found: Differences, parameter: str, confidence: float
) -> pd.DataFrame:
    rows = []
    for candidate, lead_low, lead_high in zip(candidates, found.lead_low, found.lead_high, strict=True):
        interval = mean_interval(candidate.repeats, confidence)
        is_second = _equals(pairs["second"], candidate.value)
        verdicts = pairs.loc[is_second | _equals(pairs["first"], candidate.value), "verdict"]
        num_better = int((pairs.loc[is_second, "verdict"] == BETTER).sum())
        is_ranked = len(verdicts) > 0 and not (verdicts == INCONCLUSIVE).any()
        rows.append(
            {
                **{_column(name): value for name, value in [(parameter, candidate.value), *candidate.others.items()]},
                "num_seeds": len(candidate.repeats), "mean": interval.mean,
                "deviation": sample_deviation(candidate.repeats), "low": interval.low, "high": interval.high,
                "rank": 1 + num_better if is_ranked else pd.NA,
                "may_be_best": pd.NA if np.isnan(lead_high) else lead_high > 0,
                "lead_low": lead_low, "lead_high": lead_high,
                "num_configurations": candidate.num_configurations, "num_diverged": candidate.num_diverged,
            }
        )  # fmt: skip
    parameters = map(_column, [parameter, *(candidates[0].others if candidates else ())])
    df = pd.DataFrame(rows, columns=[*parameters, *_COLUMNS]).astype({"rank": "Int64", "may_be_best": "boolean"})
    is_best = df["rank"] == 1
    df["is_tied_for_best"] = (is_best & (is_best.sum() > 1)).astype("boolean")
    return df.sort_values("rank", kind="stable", ignore_index=True)


def _column(parameter: str) -> str:
    return f"{parameter} (parameter)" if parameter in _COLUMNS else parameter


def _equals(column: pd.Series, value: Any) -> pd.Series:
    return column.isna() if pd.isna(value) else column == value


def _enumerate(values: Iterable[Any]) -> str:
    texts = [format_value(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
