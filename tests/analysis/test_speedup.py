"""Speed-ups with known intervals, and serial fractions of known laws."""

import numpy as np
import pandas as pd
import pytest

from tune_hpc.analysis.intervals import Interval
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.speedup import (
    fit_amdahl,
    is_distinct_from_1,
    karp_flatt,
    paired_ratio,
    ratio_interval,
    serial_fractions,
    speedups,
)
from tune_hpc.errors import UnknownNameError

PUBLISHED_S = {1: 19.254, 2: 18.463, 4: 18.234}


def measurement(seconds, published=PUBLISHED_S, size=None, disturbed=(), quick=False):
    """Return the results of a measurement with seconds by workers, a value per repeat; four workers share cores."""
    rows = [
        {"trial_id": f"{workers}-{seed}", "workers": workers, "seed": seed, "mode": "strong", "width": 1.0,
         "status": "disturbed" if (workers, seed) in disturbed else "finished", "train_s": value, "step_s": value,
         "communicate_s": 0.0, "speedup": seconds[1][seed] / value, "oversubscribed": workers == 4,
         "efficiency": seconds[1][seed] / value / workers, "flop_per_gradient_byte": 940.0}
        for workers, values in seconds.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    numbers = [
        {"where": {"workers": workers}, "metric": "train_s", "value": value, "size": size or {}}
        for workers, value in published.items()
    ]
    experiment = {
        "name": "scaling", "metric": "train_s", "mode": "min", "published": numbers, "quick": quick,
        "config_keys": ["workers", "seed", "mode", "width"], "space": {"workers": {"choice": list(seconds)}},
    }  # fmt: skip
    return Results(experiment, pd.DataFrame(rows), pd.DataFrame({"trial_id": [], "step": []}), None)


def test_interval_of_a_ratio_is_symmetric_on_a_log_scale():
    interval = ratio_interval([2.0, 8.0])
    assert interval.mean == pytest.approx(4.0)
    # Student's t with one degree of freedom is 12.706; the standard error of the logarithms is log(2).
    assert interval.low == pytest.approx(4.0 * 2**-12.7062, rel=1e-4)
    assert interval.high == pytest.approx(4.0 * 2**12.7062, rel=1e-4)
    assert np.isnan(ratio_interval([3.0]).low)
    assert np.isnan(ratio_interval([]).mean)


def test_times_of_0_s_and_speedups_of_0_are_no_measurements():
    assert ratio_interval([0.0, 2.0, 8.0, np.inf, np.nan, -1.0]) == ratio_interval([2.0, 8.0])
    table = speedups(measurement({1: [8.0, 8.0], 2: [4.0, 4.1]}, {1: 0.0, 2: 5.0}))
    assert table["speedup"].iloc[1] == pytest.approx(2, rel=0.02)
    assert "published" not in table
    assert fit_amdahl([1, 2], [0.0, 0.0]) == (0, 0)
    assert speedups(measurement({1: [8.0, 8.0], 2: [4.0, np.inf]}))["train_s"].tolist() == [8, 4]


def test_measurement_without_oversubscription_and_an_empty_one_have_tables():
    made = measurement({1: [8.0, 8.0], 2: [4.0, 4.1]})
    made = made.with_trials(made.trials.drop(columns="oversubscribed"))
    assert "verdict" in speedups(made)
    assert len(serial_fractions(made)) == 5
    assert speedups(made.with_trials(made.trials[:0])).empty


@pytest.mark.parametrize(
    ("low", "high", "is_distinct"),
    [(1.1, 1.3, True), (0.7, 0.9, True), (0.9, 1.1, False), (1.0, 1.2, False), (0.8, 1.0, False),
     (np.nan, np.nan, False)],
)  # fmt: skip
def test_ratio_is_distinct_from_1_if_its_interval_excludes_it(low, high, is_distinct):
    assert is_distinct_from_1(Interval(1.0, low, high)) == is_distinct


def test_ratio_uses_common_repeats_only():
    first = pd.DataFrame({"seed": [0, 1, 2], "train_s": [1.0, 2.0, 9.0]})
    second = pd.DataFrame({"seed": [1, 0], "train_s": [1.0, 1.0]})
    assert paired_ratio(first, second, "train_s").mean == pytest.approx(2**0.5)


def test_speedup_is_the_geometric_mean_over_undisturbed_repeats():
    seconds = {1: (8.0, 8.8, 8.0), 2: (4.0, 4.0, 40.0)}
    table = speedups(measurement(seconds, disturbed={(2, 2)})).set_index("workers")
    assert table.loc[2, "num_repeats"] == 2
    assert table.loc[2, "speedup"] == pytest.approx((2.0 * 2.2) ** 0.5)
    assert table.loc[2, "efficiency"] == pytest.approx(table.loc[2, "speedup"] / 2)
    interval = ratio_interval([2.0, 2.2])
    assert table.loc[2, ["low", "high"]].tolist() == pytest.approx([interval.low, interval.high])
    bounds = [interval.low / 2, interval.high / 2]
    assert table.loc[2, ["efficiency_low", "efficiency_high"]].tolist() == pytest.approx(bounds)
    assert table.loc[2, "train_s"] == 4
    columns = ["num_repeats", "train_s", "speedup", "low", "high", "efficiency", "efficiency_low", "efficiency_high"]
    assert list(table)[: len(columns)] == columns
    assert table.loc[2, "flop_per_gradient_byte"] == 940
    assert table.loc[1, "speedup"] == 1
    assert np.isnan(table.loc[1, "low"])


def test_published_speedups_are_judged_and_seconds_are_not():
    slow = {1: (100.0, 101.0, 99.0), 2: (96.0, 96.5, 95.0), 4: (90.0, 91.0, 92.0)}
    table = speedups(measurement(slow)).set_index("workers")
    assert table.loc[2, "published"] == pytest.approx(1.0428, abs=1e-4)
    assert table.loc[4, "published"] == pytest.approx(1.0559, abs=1e-4)
    # Four workers share two cores.
    assert table["verdict"].to_list()[1:] == ["agrees", "not comparable"]
    fast = speedups(measurement(slow | {2: (51.0, 52.0, 50.0)})).set_index("workers")
    assert fast.loc[2, "verdict"] == "differs"
    assert speedups(measurement(slow, quick=True))["verdict"].to_list()[1:] == ["not comparable"] * 2
    # Speed-ups of another network are not comparable.
    assert "published" not in speedups(measurement(slow, size={"width": 4}))


def test_serial_fractions_of_the_published_times():
    table = serial_fractions(measurement({1: (100.0, 100.0), 2: (60.0, 60.0), 4: (90.0, 90.0)}))
    published = table[table["times"] == "published"].set_index("workers")
    assert published["serial_fraction"].to_list()[1:] == pytest.approx([0.918, 0.929], abs=5e-4)
    assert published["amdahl_s"].to_list() == pytest.approx([19.23, 18.53, 18.19], abs=0.01)
    assert published["amdahl_fraction"].iloc[0] == pytest.approx(0.928, abs=5e-4)
    measured = table[table["times"] == "measured"].set_index("workers")
    assert measured.loc[2, "serial_fraction"] == pytest.approx(0.2)
    # The fit excludes oversubscribed workers: 20 + 80 / n.
    assert measured["amdahl_s"].to_list() == pytest.approx([100, 60, 40])


def test_bounds_of_the_serial_fraction_are_those_of_the_speedup():
    results = measurement({1: (100.0, 102.0, 98.0), 2: (60.0, 61.0, 60.0)}, published={})
    speedup, fraction = speedups(results).iloc[1], serial_fractions(results).iloc[1]
    assert fraction["low"] == pytest.approx((1 / speedup["high"] - 0.5) / 0.5)
    assert fraction["high"] == pytest.approx((1 / speedup["low"] - 0.5) / 0.5)
    assert fraction["low"] < fraction["serial_fraction"] < fraction["high"]


def test_prediction_interval_of_one_more_repeat_judges_a_published_speedup():
    ratios = np.array([1.9, 2.0, 2.1])
    logs = np.log(ratios)
    # Student's quantile with two degrees of freedom is 4.3027.
    half = 4.3027 * logs.std(ddof=1) * np.sqrt(1 + 1 / 3)
    for end in (-1, 1):
        for part, verdict in ((0.99, "agrees"), (1.01, "differs")):
            published = {1: np.exp(logs.mean() + end * part * half), 2: 1.0}
            results = measurement({1: (1.0,) * 3, 2: tuple(1 / ratios)}, published=published)
            assert speedups(results).loc[1, "verdict"] == verdict
    single = speedups(measurement({1: (1.0,), 2: (0.5,)}, published={1: 2.0, 2: 1.0}))
    assert single.loc[1, "verdict"] == "inconclusive"


def test_cases_with_other_parameters_have_laws_of_their_own():
    results = measurement({1: (100.0, 100.0), 2: (60.0, 60.0)}, published=PUBLISHED_S)
    wide = results.trials.assign(
        width=4.0, trial_id="wide-" + results.trials["trial_id"], train_s=results.trials["train_s"] * 2,
    )  # fmt: skip
    wide.loc[wide["workers"] == 2, ["train_s", "speedup"]] = [150.0, 200 / 150]
    both = results.with_trials(pd.concat([results.trials, wide], ignore_index=True))
    both.experiment["space"]["width"] = {"choice": [1.0, 4.0]}
    table = serial_fractions(both)
    # The published seconds belong to one network.
    assert table["times"].tolist() == ["measured"] * 4
    assert table["width"].tolist() == [1.0, 1.0, 4.0, 4.0]
    assert table["amdahl_s"].tolist() == pytest.approx([100, 60, 200, 150])
    assert table["amdahl_fraction"].tolist() == pytest.approx([0.2, 0.2, 0.5, 0.5])
    assert table["serial_fraction"].tolist() == pytest.approx([np.nan, 0.2, np.nan, 0.5], nan_ok=True)


def test_weak_scaling_has_neither_serial_fractions_nor_published_speedups():
    results = measurement({1: (100.0, 101.0), 2: (101.0, 102.0)})
    weak = results.with_trials(results.trials.assign(mode="weak"))
    assert "published" not in speedups(weak)
    without = results.with_trials(results.trials.drop(columns="mode"))
    assert speedups(without)["published"].notna().sum() == 1
    assert serial_fractions(without)["times"].tolist() == ["published"] * 3 + ["measured"] * 2


def test_table_of_serial_fractions_is_sorted_by_workers():
    results = measurement({4: (40.0,), 1: (100.0,), 2: (60.0,)} | {1: (100.0,)}, published={})
    assert serial_fractions(results)["workers"].tolist() == [1, 2, 4]


def test_amdahl_law_is_recovered():
    workers = pd.Series([1, 2, 4, 8])
    seconds = 3 + 5 / workers
    assert fit_amdahl(workers, seconds) == pytest.approx((3, 5))
    assert karp_flatt(8 / seconds, workers).to_list()[1:] == pytest.approx([3 / 8] * 3)
    assert np.isnan(fit_amdahl([2, 2], [1.0, 1.0])[0])


def test_search_has_no_speedups():
    results = measurement({1: (1.0,)}, published={})
    with pytest.raises(UnknownNameError, match="no case with strong scaling on several workers"):
        serial_fractions(results)
    search = results.with_trials(results.trials.drop(columns="speedup"))
    with pytest.raises(UnknownNameError, match="has no speed-ups; measure them with tune-hpc scale"):
        speedups(search)
