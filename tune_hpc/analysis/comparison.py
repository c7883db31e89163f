"""Which value of a parameter is better, by how much, and how sure that is.

    ranking = results.compare("optimizer")
    ranking                  # says it in sentences
    ranking.values           # one row per value: mean, interval, rank; ties share a rank
    ranking.pairs            # one row per pair: difference, interval, p-value, verdict

Each value stands with the configuration in which it does best by the experiment's own metric, and its seeds are the
repeats. Where two values ran with the same seeds, which fix data order and first weights, their differences are taken
seed by seed. p-values of all pairs are corrected together (Holm), intervals hold together (Bonferroni), and what they
cannot tell apart is called a tie. A best configuration that was chosen on these very seeds flatters its value;
``tune_hpc.compare`` runs winners anew with fresh ones.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import COMPLETED, numeric_column, row_mask
from tune_hpc.analysis.formatting import display_name, format_metric, format_number, format_value
from tune_hpc.analysis.intervals import Difference, holm, mean_interval, paired_difference, welch_difference
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

BETTER, TIE, INCONCLUSIVE = "better", "tie", "cannot tell"
#: More values than this have too many pairs to tell any of them apart: those of a range that was sampled.
MAX_VALUES = 100


@dataclass(frozen=True)
class Comparison:
    """What a comparison of a parameter's values found.

    Attributes:
        parameter: What is compared.
        metric: By what.
        lower_is_better: Whether less of it is better.
        confidence: Of all intervals and verdicts.
        values: One row per value, by rank and mean: the value, the other parameters in the configuration it stands
            with, ``num_seeds``, ``mean``, ``deviation``, ``low`` and ``high`` (of the mean; Student's), ``rank`` (1
            more than there are values that are better for sure; missing where one cannot tell of all),
            ``is_tied_for_best`` (rank 1, and not alone), ``num_configurations`` it was chosen from, ``num_diverged``
            trials among them.
        pairs: One row per pair: ``first``, ``second`` (the better mean first), ``difference`` (first less second),
            ``low`` and ``high`` (of all pairs together), ``p``, ``p_corrected``, ``num_pairs`` (0: not paired),
            ``min_detectable_difference`` that would have been seen four times in five, ``verdict``: the first is
            ``better``, it is a ``tie``, or nobody ``cannot tell``.
    """

    parameter: str
    metric: str
    lower_is_better: bool
    confidence: float
    values: pd.DataFrame
    pairs: pd.DataFrame

    def sentences(self) -> list[str]:
        """Return what was found, most important first."""
        if self.values.empty:
            return [f"No value of {display_name(self.parameter)} has a {display_name(self.metric)}."]
        said = [self._best(), self._others(), self._power(), self._chosen()]
        return [sentence for sentence in said if sentence]

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{sentence}</p>" for sentence in self.sentences())
        return f"{said}{self.values.to_html(index=False)}"

    def _names(self, values: Any) -> str:
        """Return some of the parameter's values in a row of words."""
        texts = [format_value(value) for value in values]
        return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"

    def _best(self) -> str:
        best = self.values.iloc[0]
        first, label = format_value(best[self.parameter]), display_name(self.parameter)
        told = f"{display_name(self.metric)} {format_metric(best['mean'], self.metric)}"
        if not np.isnan(best["low"]):
            told += f" ({format_number(100 * self.confidence)} % interval {format_metric(best['low'], self.metric)} to "
            told += f"{format_metric(best['high'], self.metric)}, {best['num_seeds']} seeds)"
        if len(self.values) == 1:
            return f"Only {label} {first} has a value: {told}."
        against = self.pairs.loc[_is(self.pairs["first"], best[self.parameter]), "verdict"]
        if (against == INCONCLUSIVE).all():
            has_several = self.values["num_seeds"] > 1
            why = "one seed each cannot tell more"
            if has_several.all():
                why = "the seeds change nothing here and cannot tell more"
            elif has_several.any():
                why = "where there is one seed, or seeds change nothing, nobody can tell more"
            return f"{label} {first} has the best {told}; {why}."
        if (against == INCONCLUSIVE).any():
            return f"{label} {first} has the best {told}; not all others can be held against it."
        tied = self.values.loc[self.values["is_tied_for_best"].fillna(False).astype(bool), self.parameter]
        if len(tied) > 1:
            return f"{self._names(tied)} tie for the best {label}: {first} has {told}."
        return f"{first} is the best {label}, for sure: {told}."

    def _others(self) -> str:
        is_worse = (self.values["rank"] > 1).fillna(False).astype(bool)
        worse = self.values.loc[is_worse, self.parameter]
        if worse.empty:
            return ""
        verb = "is" if len(worse) == 1 else "are"
        text = f"{self._names(worse)} {verb} worse than one of the best, for sure"
        own = self.pairs[
            _is(self.pairs["first"], self.values.iloc[0][self.parameter]) & (self.pairs["verdict"] == BETTER)
        ]
        if own.empty:
            return f"{text}."
        nearest = own.iloc[int(np.argmin(own["difference"].abs()))]
        low, high = sorted((abs(nearest["low"]), abs(nearest["high"])))
        away = f"{format_metric(abs(nearest['difference']), self.metric)} away from {format_value(nearest['first'])}"
        between = f"{format_metric(low, self.metric)} to {format_metric(high, self.metric)}"
        return f"{text}: {format_value(nearest['second'])} is {away} ({between})."

    def _power(self) -> str:
        ties = self.pairs[self.pairs["verdict"] == TIE]
        seen = ties["min_detectable_difference"].median()
        if ties.empty or np.isnan(seen) or seen == 0:
            return ""
        return f"Differences below about {format_metric(seen, self.metric)} are too small for these seeds to tell."

    def _chosen(self) -> str:
        most = int(self.values["num_configurations"].max())
        if most < 2:
            return ""
        return (
            f"Each value stands with the best of up to {most} configurations, chosen on the same seeds, which flatters "
            "it; tune_hpc.compare runs the best anew."
        )


def compare_values(
    results: Results, parameter: str, metric: str | None = None, *, confidence: float = 0.95,
    where: Mapping[str, Any] | None = None,
) -> Comparison:  # fmt: skip
    """Rank the values of a parameter; see ``Results.compare``."""
    trials = results.trials.reset_index(drop=True)
    metric = metric or results.metric
    if parameter not in results.config_columns or parameter == "seed":
        known = ", ".join(name for name in results.config_columns if name != "seed")
        raise UnknownNameError(f"no parameter {parameter!r} in {results.name}: {known}")
    if metric not in trials or not pd.api.types.is_numeric_dtype(trials[metric]):
        numbers = trials.select_dtypes("number").columns
        raise UnknownNameError(f"no column of numbers {metric!r} in the trials of {results.name}: {', '.join(numbers)}")
    inside = trials[row_mask(trials, where or {})]
    if inside.empty:
        raise UnknownNameError(f"no trial of {results.name} has {', '.join(f'{k}={v}' for k, v in where.items())}")  # type: ignore[union-attr]
    if (num_values := inside[parameter].nunique(dropna=False)) > MAX_VALUES:
        raise UnknownNameError(
            f"{parameter} has {num_values} values in {results.name}, too many to tell apart (at most {MAX_VALUES}): "
            "draw them instead, or compare a parameter of a few values"
        )
    standing = _standing(results, inside, parameter, metric)
    lower = results.is_lower_better(metric)
    order = sorted(standing, key=lambda one: one.values.mean() if lower else -one.values.mean())
    pairs = _pairs(order, confidence)
    return Comparison(parameter, metric, lower, confidence, _values(order, pairs, parameter, confidence), pairs)


@dataclass
class _Standing:
    """A value of the parameter with the repeats that it is judged by.

    Attributes:
        value: The value.
        others: The other parameters in its configuration.
        values: The metric, by seed where there are seeds.
        num_configurations: How many it was chosen from.
        num_diverged: Diverged trials among them.
    """

    value: Any
    others: Mapping[str, Any]
    values: pd.Series
    num_configurations: int
    num_diverged: int


def _standing(results: Results, trials: pd.DataFrame, parameter: str, metric: str) -> list[_Standing]:
    others = [name for name in results.varied_parameters if name not in (parameter, "seed")]
    healthy = trials["status"].isin(COMPLETED)
    df = pd.DataFrame(
        {
            "value": trials[parameter],
            "configuration": trials.groupby([parameter, *others], dropna=False, sort=False).ngroup(),
            "seed": trials["seed"] if "seed" in trials else np.arange(len(trials)),
            "metric": numeric_column(trials, metric).where(healthy),
            "chosen_by": numeric_column(trials, results.metric).where(healthy),
            "has_diverged": trials["status"] == "diverged",
        }
    )
    # A configuration that ran twice with one seed has one repeat there: their mean.
    by_configuration = df.groupby("configuration", sort=False)
    merit = by_configuration["chosen_by"].mean().where(~by_configuration["has_diverged"].any())
    merit = merit if results.is_lower_better(results.metric) else -merit
    standing = []
    for value, own in df.groupby("value", sort=False, dropna=False, observed=True):
        ranked = merit[own["configuration"].unique()].dropna().sort_values(kind="stable")
        for configuration in ranked.index:
            chosen = own[own["configuration"] == configuration].dropna(subset=["metric"])
            if len(chosen):
                first = trials.loc[chosen.index[0]]
                told = {name: first[name] for name in others}
                repeats = chosen.groupby("seed")["metric"].mean()
                diverged = int(own["has_diverged"].sum())
                standing.append(_Standing(value, told, repeats, own["configuration"].nunique(), diverged))
                break
    return standing


def _pairs(order: list[_Standing], confidence: float) -> pd.DataFrame:
    num_pairs = max(1, len(order) * (len(order) - 1) // 2)
    together = 1 - (1 - confidence) / num_pairs
    rows = []
    for one, other in itertools.combinations(order, 2):
        told = compare_samples(one.values, other.values, together)
        rows.append(
            {
                "first": one.value, "second": other.value, "difference": told.interval.mean,
                "low": told.interval.low, "high": told.interval.high, "p": told.p, "num_pairs": told.num_pairs,
                "min_detectable_difference": told.min_detectable,
            }
        )  # fmt: skip
    columns = ["first", "second", "difference", "low", "high", "p", "num_pairs", "min_detectable_difference"]
    df = pd.DataFrame(rows, columns=columns)
    df.insert(6, "p_corrected", holm(df["p"]))
    verdict = np.where(df["p_corrected"] < 1 - confidence, BETTER, TIE)
    return df.assign(verdict=np.where(df["p_corrected"].isna(), INCONCLUSIVE, verdict))


def compare_samples(one: pd.Series, other: pd.Series, confidence: float) -> Difference:
    """Compare configurations, seed by seed where at least two seeds are shared and none is left over, or as wholes.

    Args:
        one: A metric, its index the seeds.
        other: The same of the other one.
        confidence: Of the interval.
    """
    shared = one.index.intersection(other.index)
    if len(shared) == len(one) == len(other) and len(shared) > 1:
        told = paired_difference(one[shared], other[shared], confidence)
        if not np.isnan(told.p):
            return told
        # All differences are the same, as those of accuracies on few images may be by chance.
    return welch_difference(one, other, confidence)


def _values(order: list[_Standing], pairs: pd.DataFrame, parameter: str, confidence: float) -> pd.DataFrame:
    rows = []
    for one in order:
        interval = mean_interval(one.values, confidence)
        beaten_by = int(((pairs["verdict"] == BETTER) & _is(pairs["second"], one.value)).sum())
        involved = pairs[_is(pairs["first"], one.value) | _is(pairs["second"], one.value)]
        is_known = len(involved) > 0 and not (involved["verdict"] == INCONCLUSIVE).any()
        rows.append(
            {
                parameter: one.value, **one.others, "num_seeds": len(one.values), "mean": interval.mean,
                "deviation": one.values.std(), "low": interval.low, "high": interval.high,
                "rank": 1 + beaten_by if is_known else pd.NA,
                "num_configurations": one.num_configurations, "num_diverged": one.num_diverged,
            }
        )  # fmt: skip
    others = list(order[0].others) if order else []
    columns = [parameter, *others, "num_seeds", "mean", "deviation", "low", "high", "rank"]
    df = pd.DataFrame(rows, columns=[*columns, "num_configurations", "num_diverged"])
    df["rank"] = df["rank"].astype("Int64")
    is_first = df["rank"] == 1
    df.insert(len(columns), "is_tied_for_best", (is_first & (is_first.sum() > 1)).astype("boolean"))
    return df.sort_values("rank", kind="stable", ignore_index=True)


def _is(column: pd.Series, value: Any) -> pd.Series:
    return column.isna() if pd.isna(value) else column == value
