"""Statements on several runs of the reproduction, checked on synthetic runs with known answers."""

import itertools

import numpy as np
import pandas as pd
import pytest

from benchmarks.reproduction_claims import cross_claims, with_current_declarations
from tune_hpc import check_claims
from tune_hpc.analysis.results import Results

SIZES = [150, 100, 50, 25, 10, 8, 6, 4]
KEYS = ["batch_size", "batching", "learning_rate", "dropout", "seed", "width", "steps", "workers", "model"]
SHUFFLING, LARGE, DECAY, RATE, DROPOUT, TWO_WORKERS, FOUR_WORKERS = range(7)


def made(name, rows, metric="best_test_accuracy", **more):
    """Results of a run; a row has its configuration and its metric."""
    defaults = {"batching": "shuffled", "width": 1.0, "steps": 5000, "seed": 0, "model": "cnn", "status": "finished"}
    trials = pd.DataFrame([{"trial_id": f"{number:05d}"} | defaults | row for number, row in enumerate(rows)])
    experiment = {"name": name, "metric": metric, "mode": "max", "config_keys": KEYS} | more
    return Results(experiment, trials, pd.DataFrame({"trial_id": [], "step": []}))


def by_size(name, accuracies, **more):
    rows = [{"batch_size": size, "best_test_accuracy": accuracy} for size, accuracy in accuracies.items()]
    return {name: made(name, [row | more for row in rows])}


def pair(differences):
    once = {size: 0.95 + 0.001 * number for number, size in enumerate(SIZES)}
    shuffled = {size: once[size] + difference for size, difference in zip(SIZES, differences, strict=True)}
    return by_size("exercise3.batch_size_single_pass", once) | by_size("exercise3.batch_size_shuffled", shuffled)


def outcome(runs, position):
    row = cross_claims(runs).iloc[position]
    return None if pd.isna(row["holds"]) else row["holds"]


@pytest.mark.parametrize(
    ("differences", "helps", "helps_large"),
    [
        ([0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01], True, True),
        ([-0.01, -0.02, -0.03, -0.04, -0.05, -0.06, -0.07, -0.08], False, True),
        ([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08], True, False),
        ([0.08, 0.07, 0.06, 0.05, 0.04, 0.03, -0.02, -0.03], None, True),
        ([0.03, -0.01, 0.02, -0.02, -0.03, 0.01, 0.025, -0.025], None, None),
    ],
)
def test_signs_and_ranks_over_batch_sizes_decide(differences, helps, helps_large):
    runs = pair(differences)
    assert [outcome(runs, position) for position in (SHUFFLING, LARGE)] == [helps, helps_large]


def test_numbers_that_decide_are_printed():
    numbers = cross_claims(pair([0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01]))["numbers"]
    assert numbers[SHUFFLING].startswith("4: +0.0100, 6: +0.0200")
    assert numbers[SHUFFLING].endswith("mean +0.0450 ± 0.0205; 8 of 8 above 0 (p 0.0078)")
    assert numbers[LARGE] == "1.00 (p 5e-05)"


@pytest.mark.parametrize(("gain", "holds"), [(0.004, True), (-0.004, False), (0.002, None)])
def test_decay_is_compared_with_the_deviation_over_seeds(gain, holds):
    # The winner's deviation is 0.0006 with 2 degrees of freedom: the mean of two differences is ± 4.303 * 0.0006.
    winner = [{"batch_size": 150, "seed": seed, "best_test_accuracy": 0.993 + 0.0006 * (seed - 1)} for seed in range(3)]
    runs = by_size("exercise3.batch_size_shuffled", {150: 0.989, 100: 0.988})
    runs |= by_size("exercise3.decay", {150: 0.989 + gain, 100: 0.988 + gain})
    assert outcome(runs, DECAY) is None
    assert cross_claims(runs)["note"][DECAY] == "seeds do not decide"
    runs["exercise3.winner"] = made("exercise3.winner", winner)
    assert outcome(runs, DECAY) == holds
    assert cross_claims(runs)["numbers"][DECAY].endswith("± 0.0026; deviation over seeds 0.0006 (2 degrees of freedom)")


def grid_of(name, parameter, effects, noise=0.0002):
    """Two batch sizes as blocks; the noise of each has the opposite sign."""
    rows = [
        {parameter: value, "batch_size": size, "best_test_accuracy": 0.99 + effect + sign * (0.001 + noise * (-1) ** n)}
        for n, (value, effect) in enumerate(effects.items())
        for size, sign in ((150, 1), (100, -1))
    ]
    return {name: made(name, rows)}


RATES = [number * 1e-4 for number in range(2, 11)]


@pytest.mark.parametrize(("lead", "holds"), [(0.005, True), (-0.005, False), (0.0003, None)])
def test_best_rate_leads_in_the_additive_model(lead, holds):
    runs = grid_of("exercise3.learning_rate", "learning_rate", {rate: lead * (rate == RATES[-1]) for rate in RATES})
    assert outcome(runs, RATE) == holds
    assert f"least lead {lead:+.4f} ± 0.00" in cross_claims(runs)["numbers"][RATE]


@pytest.mark.parametrize(
    ("gain", "noise", "holds"),
    [(0.005, 0.0002, False), (-0.005, 0.0002, True), (0.0, 0.0001, True), (0.0, 0.0004, None)],
)
def test_dropout_improves_less_than_a_margin(gain, noise, holds):
    effects = {number / 10: gain * (number > 0) for number in range(10)}
    runs = grid_of("exercise3.dropout", "dropout", effects, noise)
    assert outcome(runs, DROPOUT) == holds


def test_wider_networks_are_compared_by_repeats():
    rows = [
        {"width": width, "workers": workers, "seed": seed, "speedup": 1 + 0.2 * width * (workers == 2) + 0.01 * seed}
        | {"train_s": 1.0 + 0.001 * (seed * width) ** 2}
        for width, workers, seed in itertools.product((0.25, 1.0), (1, 2, 4), range(3))
    ]
    rows = [row | {"speedup": row["speedup"] + 0.001 * (number % 2)} for number, row in enumerate(rows)]
    runs = {"widths": made("exercise4", rows, "train_s", mode="min")}
    assert (outcome(runs, TWO_WORKERS), outcome(runs, FOUR_WORKERS)) == (True, None)
    assert cross_claims(runs)["measure"][TWO_WORKERS] == "speedup, workers 2"


def test_deeper_networks_are_compared_by_repeats():
    rows = [
        {"depth": depth, "workers": workers, "seed": seed, "train_s": 1.0 + 0.001 * seed**2}
        | {"speedup": 1 + 0.2 * depth * (workers == 2) + 0.001 * ((seed + depth) % 3)}
        for depth, workers, seed in itertools.product((0, 2, 4), (1, 2), range(3))
    ]
    runs = {"depth": made("exercise4", rows, "train_s", mode="min")}
    statement = cross_claims(runs).iloc[-1]
    assert statement["claim"] == "more complex networks gain more: deeper ones, on 2 workers"
    assert statement["holds"]
    assert statement["numbers"].startswith("0: 1.001 (")


def test_missing_and_smaller_runs_are_not_measured():
    smaller = {
        name: results.with_trials(results.trials.assign(width=0.125))
        for name, results in pair(np.linspace(0.08, 0.01, 8)).items()
    }
    for runs in ({}, smaller):
        df = cross_claims(runs)
        assert df["holds"].isna().all()
        assert set(df["note"]) == {"not measured"}
        assert list(df) == list(check_claims(made("x", [{"best_test_accuracy": 1.0}])))


def test_current_declarations_replace_those_of_a_run():
    old = made("exercise2.softmax", [{"best_test_accuracy": 1.0}], claims=[], published=[])
    for name in ("exercise2.softmax", "exercise2.softmax.shuffled"):
        current = with_current_declarations(name, old).experiment
        assert [claim["relation"] for claim in current["claims"]] == ["below", "above", "first_lowest", "first_highest"]
        assert len(current["published"]) >= 18
    assert (
        with_current_declarations("exercise3.dropout", old).experiment["published"][0]["source"] == "report, Table 4.5"
    )
    unknown = made("my_search", [{"best_test_accuracy": 1.0}])
    assert with_current_declarations("my_search", unknown) is unknown
