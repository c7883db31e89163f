"""Published statements checked on synthetic curves."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.results_fixtures import KEYS
from tune_hpc import load
from tune_hpc.analysis.claims import BOUNDS, MEASURES, ORDERS, check_claims, describe_measure, describe_rule
from tune_hpc.report import findings, tables

ROUNDED, UNDECIDED, SINGLE = (
    "differences within rounding error", "seeds do not decide", "a single seed does not decide",
)  # fmt: skip

STEPS = np.arange(9)
#: From 0 to 1: with oscillations, with a detour, straight, and without convergence.
CURVES = {
    "swing": [0, 1.5, 0.6, 1.3, 0.8, 1.1, 0.992, 1.004, 1.0],
    "detour": [0, -0.5, -0.2, 0.3, 0.7, 0.9, 0.96, 0.999, 1.0],
    "straight": [0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.995],
    "never": [0, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3, 0.4],
}


def claim(measure, relation="rising", values=tuple(CURVES), **more):
    defaults = {"steps": 8, "bound": 0, "target": 1, "tolerance": 0.01}
    fixed = {"text": "so it is", "source": "report", "parameter": "optimizer", "values": values, "metric": "W"}
    return fixed | {"measure": measure, "relation": relation} | defaults | more


def of_line(trial, results_of, curves, claims, seeds=None, **more):
    """Results of the line, which needs no repeats, with the curves as the history of W."""
    trials = []
    for number, (name, values) in enumerate(curves):
        config = {"optimizer": name, "model": "line", "seed": seeds[number] if seeds else 0} | more
        row, _ = trial(f"{number:05d}", **config)
        history = pd.DataFrame({"step": np.arange(len(values)), "W": np.asarray(values, float)})
        trials.append((row, history))
    return results_of(*trials, claims=list(claims), config_keys=[*KEYS, "model"])


@pytest.fixture
def curves(trial, results_of):
    return lambda *claims, **more: of_line(trial, results_of, CURVES.items(), claims, **more)


@pytest.fixture
def decide(trial, results_of):
    """Return a function that checks a relation of numbers of the line."""

    def check(relation, numbers, **more):
        named = {f"value {position}": number for position, number in enumerate(numbers)}
        made = of_line(trial, results_of, ((name, [1.0, number]) for name, number in named.items()),
                       [claim("value", relation, tuple(named), steps=1, **more)])  # fmt: skip
        return tuple(check_claims(made)[["holds", "note"]].iloc[0])

    return check


@pytest.fixture
def repeated(trial, results_of):
    """Return a function that checks a relation of test losses: optimizers with one loss per seed."""

    def check(relation, losses, *, seeds=3, **more):
        trials = [
            trial(f"{name}{seed}", loss, optimizer=name, seed=seed)
            for name, sample in losses.items()
            for seed, loss in enumerate(sample[:seeds])
        ]
        declared = claim("result", relation, tuple(losses), metric="test_loss", steps=20, **more)
        (row,) = check_claims(results_of(*trials, claims=[declared])).to_dict("records")
        return row | {"holds": None if pd.isna(row["holds"]) else row["holds"]}

    return check


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("value", "swing: 1, detour: 1, straight: 0.995, never: 0.4"),
        ("settling_step", "swing: 6, detour: 7, straight: 8, never: never"),
        ("crossings", "swing: 5, detour: 0, straight: 0, never: 0"),
        ("reversals", "swing: 7, detour: 1, straight: 0, never: 0"),
        ("max_departure", "swing: 0, detour: 0.5, straight: 0, never: 0"),
        ("max_departure_step", "swing: 0, detour: 1, straight: 0, never: 0"),
        ("wrong_until", "swing: 0, detour: 1, straight: 0, never: 0"),
    ],
)
def test_measures_have_known_values(curves, measure, expected):
    assert check_claims(curves(claim(measure)))["numbers"].tolist() == [expected]


def test_remaining_fraction_is_relative_to_the_first_value(curves):
    made = curves(claim("remaining_fraction"))
    made.history["W"] += 1
    assert check_claims(made)["numbers"][0] == "swing: 2, detour: 2, straight: 2, never: 1.4"


def test_crossings_within_the_tolerance_are_ignored(curves):
    made = curves(*(claim("crossings", values=("swing",), tolerance=tolerance) for tolerance in (0.5, 0)))
    assert check_claims(made)["numbers"].tolist() == ["swing: 0", "swing: 7"]


@pytest.mark.parametrize(
    ("relation", "numbers", "bound", "holds"),
    [
        ("rising", [1, 2, 3], 0, True), ("rising", [1, 3, 2], 0, False),
        ("falling", [3, 2, 1], 0, True), ("falling", [1, 2], 0, False),
        ("first_lowest", [0, 2, 1], 0, True), ("first_lowest", [1, 0, 2], 0, False),
        ("first_highest", [3, 2, 2], 0, True), ("first_highest", [3, 2, 4], 0, False),
        ("some_above_first", [1, 0, 2], 0, True), ("some_above_first", [1, 0, 0.5], 0, False),
        ("at_most", [1, 2], 2, True), ("at_most", [1, 3], 2, False),
        ("below", [1, 1.9], 2, True), ("below", [1, 2], 2, False),
        ("above", [3, 4], 2, True), ("above", [2, 3], 2, False),
        ("within", [0.5, 1.4], 0.5, True), ("within", [0.5, 1.6], 0.5, False), ("within", [0.4, 1], 0.5, False),
    ],
)  # fmt: skip
def test_relations_hold_or_not(decide, relation, numbers, bound, holds):
    assert decide(relation, numbers, bound=bound) == (holds, "")


@pytest.mark.parametrize(
    ("relation", "numbers", "holds"),
    [
        ("rising", [0.1, 0.1 + 9e-7], None), ("rising", [0.1 + 9e-7, 0.1], None), ("rising", [0.1, 0.1], None),
        ("rising", [0.1, 0.1 + 3e-6], True), ("rising", [0.1 + 3e-6, 0.1], False),
        ("rising", [1.8e-14, 1.4e-14, 0.5], None), ("rising", [1.8e-14, 1.4e-14, -0.5], False),
        ("some_above_first", [0.1, 0.1 + 9e-7, 0.2], True), ("some_above_first", [0.1, 0.1 + 9e-7], None),
        ("at_most", [0.5 + 9e-7], None), ("at_most", [0.5 + 2e-6], False), ("above", [0.5], False),
    ],
)  # fmt: skip
def test_differences_within_rounding_error_are_inconclusive(decide, relation, numbers, holds):
    outcome, note = decide(relation, numbers, bound=0.5)
    assert (None if pd.isna(outcome) else outcome) == holds
    # Both numbers of a difference have an error.
    assert note == (f"{ROUNDED} ({'1e-06' if relation == 'at_most' else '2e-06'})" if holds is None else "")


def test_counts_have_no_rounding_error(curves):
    equal = claim("crossings", values=("detour", "straight"))
    assert check_claims(curves(equal))["holds"].tolist() == [False]


def test_numbers_that_are_never_reached_are_the_highest(curves):
    made = curves(
        claim("settling_step", values=("straight", "never")), claim("settling_step", values=("never", "straight"))
    )
    assert check_claims(made)["holds"].tolist() == [True, False]


def test_two_numbers_that_are_never_reached_are_inconclusive(curves):
    made = curves(claim("settling_step", values=("straight", "never")), seeds=[3, 4, 5, 6])
    assert check_claims(made)["holds"].tolist() == [True]
    made.history.loc[made.history["trial_id"] == "00002", "W"] = 0.5
    row = check_claims(made).iloc[0]
    assert (row["holds"], row["numbers"]) == (pd.NA, "straight: never, never: never")


CLOSE = {"adam": [0.30, 0.31, 0.35], "momentum": [0.31, 0.30, 0.36], "ftrl": [0.90, 0.91, 0.97]}


@pytest.mark.parametrize(
    ("relation", "names", "holds", "note"),
    [
        ("first_lowest", ("adam", "ftrl"), True, ""),
        ("first_lowest", ("ftrl", "adam"), False, ""),
        ("first_lowest", ("adam", "momentum", "ftrl"), None, UNDECIDED),
        ("first_lowest", ("momentum", "ftrl", "adam"), None, UNDECIDED),
        ("rising", ("ftrl", "adam", "momentum"), False, ""),
        ("some_above_first", ("adam", "momentum", "ftrl"), True, ""),
    ],
)
def test_orders_are_decided_by_the_seeds(repeated, relation, names, holds, note):
    row = repeated(relation, {name: CLOSE[name] for name in names})
    assert (row["holds"], row["note"]) == (holds, note)


def test_pairs_of_seeds_decide_what_their_means_do_not(repeated):
    # The seeds differ by 0.1 and the optimizers by 0.01 with every seed.
    row = repeated("first_lowest", {"adam": [0.3, 0.4, 0.5], "momentum": [0.31, 0.411, 0.5105]})
    assert row["holds"] is True


def test_bounds_are_compared_with_the_interval_of_each_value(repeated):
    # Student's with two values and 97.5 %: 0.32 ± 6.205 * 0.01 / sqrt(3) = 0.32 ± 0.0358.
    losses = {"adam": [0.31, 0.32, 0.33], "momentum": [0.11, 0.12, 0.13]}
    above = 2 * np.exp(-20 / 5)  # the part of the fixture's last loss that decays
    holds = [repeated("below", losses, bound=bound + above)["holds"] for bound in (0.357, 0.355, 0.285, 0.283)]
    assert holds == [True, None, None, False]
    row = repeated("below", losses, bound=0.355)
    assert row["numbers"] == "adam: 0.3566 ± 0.025, momentum: 0.1566 ± 0.025"
    assert row["note"] == UNDECIDED
    assert repeated("within", losses, bound=0.3, target=0.3)["holds"] is True
    assert repeated("within", losses, bound=0.1, target=0.157)["holds"] is False


def test_single_seed_of_a_random_trial_is_inconclusive(repeated):
    for relation in (*ORDERS, *BOUNDS):
        row = repeated(relation, CLOSE, seeds=1, bound=0.1)
        assert (row["holds"], row["note"]) == (None, SINGLE), relation


@pytest.mark.parametrize(
    ("config", "is_decided"),
    [
        ({}, True), ({"batching": "single_pass"}, True), ({"batching": "shuffled"}, False), ({"max_shift": 1}, False),
        ({"initial_weights": "pytorch"}, False), ({"model": "cnn"}, False), ({"model": "line"}, True),
    ],
)  # fmt: skip
def test_trials_without_random_numbers_need_no_repeats(trial, results_of, config, is_decided):
    fixed = {"model": "softmax", "batching": "sequential", "initial_weights": "tutorial"}
    fixed |= dict.fromkeys(("max_shift", "max_rotation", "max_scaling"), 0.0)
    trials = [trial(name, loss, optimizer=name, **fixed | config) for name, loss in (("adam", 0.3), ("ftrl", 0.5))]
    declared = [
        claim("result", values=("adam", "ftrl"), metric=metric, steps=20) for metric in ("test_loss", "train_s")
    ]
    made = results_of(*trials, claims=declared, config_keys=[*KEYS, *fixed])
    assert check_claims(made)["holds"].notna().tolist() == [is_decided, False]


def test_model_of_a_user_may_have_the_name_of_a_built_in_one(trial, results_of):
    made = of_line(trial, results_of, [("a", [1.0, 0.2]), ("b", [1.0, 0.3])],
                   [claim("value", "rising", ("a", "b"), steps=1)])  # fmt: skip
    assert check_claims(made)["holds"].tolist() == [True]
    made.experiment["trainable"] = "mine:train"
    assert check_claims(made)["note"].tolist() == [SINGLE]


@pytest.mark.parametrize(("relation", "bound", "holds"), [("within", 0.8, True), ("within", 0.5, None)])
def test_ratios_have_intervals_on_a_log_scale(trial, results_of, relation, bound, holds):
    ratios = [0.8, 1.0, 1.25]
    trials = []
    for seed, ratio in enumerate(ratios):
        row, history = trial(f"{seed}", optimizer="adam", seed=seed)
        trials.append((row | {"speedup": ratio}, history))
    declared = claim("result", relation, ("adam",), metric="speedup", steps=0, bound=bound)
    (row,) = check_claims(results_of(*trials, claims=[declared])).to_dict("records")
    half = stats.t.ppf(0.975, 2) * np.log(1.25) / np.sqrt(3)
    assert row["numbers"] == f"adam: 1 ({np.exp(-half):.3g} to {np.exp(half):.3g})"
    assert (None if pd.isna(row["holds"]) else row["holds"]) == holds


def test_best_configuration_represents_a_value(grid):
    declared = claim("result", values=("momentum", "adam"), metric="test_accuracy", steps=20)
    made = grid(claims=[declared, declared | {"where": {"learning_rate": 0.1}}, declared | {"steps": 21}])
    df = check_claims(made)
    assert df["numbers"].tolist() == [
        "momentum: 0.9317 ± 0.013, adam: 0.9317 ± 0.013", "momentum: 0.9317 ± 0.013, adam: 0.7317 ± 0.013",
        "momentum: not measured, adam: not measured",
    ]  # fmt: skip
    assert df["measure"].tolist() == [
        "test accuracy in 20 steps", "test accuracy in 20 steps, learning rate 0.1", "test accuracy in 21 steps",
    ]  # fmt: skip
    assert df["note"].str.partition(" (")[0].tolist() == [ROUNDED, "", "not measured"]
    assert not df["holds"][1]


def test_table_has_the_numbers_the_rule_and_the_outcome(curves):
    made = curves(
        claim("settling_step", "at_most", ("swing", "never"), bound=8), claim("value", "above", ("swing",), bound=0.5),
        claim("value", "rising", ("swing", "detour"), steps=8),
    )  # fmt: skip
    made.history["W"] += 1
    made.experiment["claims"][0]["target"] = 2
    df = check_claims(made)
    assert df["holds"].tolist() == [False, True, pd.NA]
    assert df["numbers"].tolist() == ["swing: 6, never: never", "swing: 2", "swing: 2, detour: 2"]
    assert df["measure"][0] == "step from which weight W stays within 0.01 of 2, in 8 steps"
    assert df["rule"].tolist() == ["each at most 8", "each above 0.5", "rising"]
    assert findings.findings(made)[-1] == "Of 3 published statements, 1 holds, 1 does not hold, 1 is inconclusive."
    text = tables.to_markdown(df)
    assert "| so it is |" in text.replace("  ", "")
    assert "| inconclusive | differences within rounding error (2e-06) |" in text
    assert tables.report_tables(made)[0][0] == "Published statements, checked"


def test_shorter_runs_and_missing_trials_are_inconclusive(curves):
    made = curves(claim("value", steps=9), claim("value", values=("swing", "ftrl")), claim("value", metric="b"))
    df = check_claims(made)
    assert df["holds"].isna().all()
    assert df["note"].eq("not measured").all()
    assert df["numbers"].tolist()[1] == "swing: 1, ftrl: not measured"
    assert not any("published statement" in sentence for sentence in findings.findings(made))


@pytest.mark.parametrize("measure", ["result", "value"])
def test_claim_on_texts_is_not_measured(curves, measure):
    made = curves(claim(measure, metric="note"), claim(measure, metric="trial_id"))
    made.trials["note"], made.history["note"] = "1.5", "1.5"
    assert check_claims(made)["note"].eq("not measured").all()


def test_configurations_with_a_diverged_seed_are_not_measured(trial, results_of):
    named = [("a", [0, 1]), ("a", [0, 5]), ("a", [0, 3])]
    made = of_line(trial, results_of, named, [claim("value", values=("a",), steps=1)], seeds=[0, 1, 2])
    assert check_claims(made)["numbers"][0] == "a: 3"
    made.trials.loc[1, "status"] = "diverged"
    assert check_claims(made)["numbers"][0] == "a: not measured"


def test_order_of_the_first_line_losses_is_inconclusive():
    df = check_claims(load("docs/results/exercise1_2ndpart"))
    row = df[df["claim"].str.endswith("by their loss")].iloc[0]
    assert row["holds"] is pd.NA
    assert row["note"].startswith(ROUNDED)
    assert df["rule"].iloc[0] == "each at most 0.5"


def test_every_measure_and_relation_has_a_description():
    assert all(describe_measure(claim(measure)) for measure in ("result", *MEASURES))
    rules = [describe_rule(claim("value", relation, bound=0.5)) for relation in (*ORDERS, *BOUNDS)]
    assert len(set(rules)) == len(rules) == 9
