"""Fused training agrees with separate training.

They agree within rounding, because matrix products of other shapes add their terms in another order. Changes of one
member do not change a bit of another.
"""

import itertools
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.learning.fused_configs import (
    CNN,
    CNN_CONFIGS,
    CNN_RATES,
    FUSED_CONFIGS,
    LINE_CONFIGS,
    LINE_RATES,
    SOFTMAX,
    SOFTMAX_CONFIGS,
    SOFTMAX_RATES,
)
from tests.learning.training_runs import FileCheckpoint, History, same_bits
from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning import training
from tune_hpc.learning.config import OPTIMIZER_DEFAULTS, TRIAL_KEYS, WORKER_KEYS, complete
from tune_hpc.learning.fusion import MEMBER_KEYS, check_fusible, fusion_key, max_fused_trials, stream_key
from tune_hpc.learning.tasks import ImageClassification
from tune_hpc.learning.training import Training, train_fused

every_model = pytest.mark.parametrize("members", FUSED_CONFIGS.values(), ids=FUSED_CONFIGS)


def ending(row):
    return [row[key] for key in ("status", "stop_reason", "steps_run")]


def assert_agree(results, others, rtol, atol=0.0, parameter_atol=1e-12):
    """Compare the ends, the histories and the final parameters of members."""
    for (row, history, parameters), (other_row, other_history, other_parameters) in zip(results, others, strict=True):
        assert ending(row) == ending(other_row)
        assert list(history) == list(other_history)
        np.testing.assert_allclose(list(history.values()), list(other_history.values()), rtol=rtol, atol=atol)
        torch.testing.assert_close(parameters, other_parameters, rtol=rtol, atol=parameter_atol)


def assert_same_bits(results, others):
    for (row, history, parameters), (other_row, other_history, other_parameters) in zip(results, others, strict=True):
        assert ending(row) == ending(other_row)
        assert history == other_history
        assert same_bits(parameters, other_parameters)


class TestFusedEqualsSeparate:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("batching", "steps"), [("shuffled", 500), ("random", 500), ("sequential", 500), ("single_pass", 85)]
    )
    def test_softmax_with_all_optimizers_and_batching_policies(self, run, run_fused, batching, steps):
        # 500 batches of 7 are more than five passes over the 600 images; a single pass has 85.
        shared = {"precision": "float64", "batching": batching, "batch_size": 7, "steps": 500}
        members = [member | shared for member in SOFTMAX_CONFIGS]
        together = run_fused(members)
        assert {row["steps_run"] for row, _, _ in together} == {steps}
        # Observed: up to 1.2e-11 at a loss of 3e-6, which is a difference of numbers near 1; else 2e-14.
        assert_agree(together, [run(member) for member in members], rtol=1e-9)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("members", "config", "atol"),
        [
            # Observed: up to 3e-13, at b = 5e-4 near its zero crossing.
            (LINE_CONFIGS, {"steps": 500}, 1e-15),
            # Observed with six sets of seeds: up to 1.3e-14, and 8e-15 in the parameters.
            (CNN_CONFIGS, {"steps": 20}, 0.0),
            (CNN_CONFIGS, {"steps": 20, "max_shift": 2.0, "max_rotation": 10.0, "max_scaling": 0.1}, 0.0),
        ],
        ids=["lines", "cnns_with_dropout", "cnns_with_augmentation"],
    )
    def test_other_models_in_double_precision(self, run, run_fused, members, config, atol):
        members = [member | {"precision": "float64"} | config for member in members]
        assert_agree(run_fused(members), [run(member) for member in members], rtol=1e-11, atol=atol)

    @pytest.mark.parametrize("seed", [0, 10])
    def test_cnns_with_dropout_in_single_precision(self, run, run_fused, seed):
        # A fifth of the rates. At the full rates 20 steps amplify rounding to 1e-3 if it decides which of four numbers
        # is the largest, or whether one is above zero.
        members = [
            member | {"steps": 20, "seed": member["seed"] + seed, "learning_rate": member["learning_rate"] / 5}
            for member in CNN_CONFIGS
        ]
        # Observed with 20 sets of seeds: losses within 4.2e-7; parameters mostly within 4e-6, in three cases 1e-5 to
        # 1.7e-5, because Adam turns a gradient of pure rounding into a full step.
        assert_agree(run_fused(members), [run(member) for member in members], rtol=3e-6, parameter_atol=1e-4)

    @pytest.mark.parametrize("optimizer", ["gradient_descent", "adam"])
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("learning_rate", (0.02, 0.01)),
            ("decay_rate", (0.5, 0.9)),
            ("schedule", ("cosine", "one_cycle")),
            ("dropout", (0.5, 0.2)),
            ("seed", (1, 2)),
            ("initial_weights", ("tutorial", "pytorch")),
        ],
    )
    def test_members_that_differ_in_one_key(self, run, run_fused, name, values, optimizer):
        config = CNN | {"width": 0.03} if name == "dropout" else SOFTMAX
        shared = {"precision": "float64", "optimizer": optimizer}
        members = [config | shared | {name: value} for value in (*values, values[0])]
        results = run_fused(members)
        assert_agree(results, [run(member) for member in members], rtol=1e-11)
        assert results[0][1] != results[1][1]

    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        members=st.lists(
            st.fixed_dictionaries(
                {
                    "optimizer": st.sampled_from(list(OPTIMIZER_DEFAULTS)),
                    "learning_rate": st.floats(1e-4, 0.5),
                    "decay_rate": st.floats(0.5, 1.0),
                    "seed": st.integers(0, 2),
                    "initial_weights": st.sampled_from(["tutorial", "pytorch"]),
                }
            ),
            min_size=1,
            max_size=4,
        ),
        batch_size=st.integers(1, 100),
        batching=st.sampled_from(["single_pass", "sequential", "shuffled", "random"]),
    )
    def test_random_softmax_regressions(self, run, run_fused, members, batch_size, batching):
        shared = {"batch_size": batch_size, "batching": batching, "steps": 12, "num_evaluations": 3}
        members = [member | shared | {"precision": "float64"} for member in members]
        assert_agree(run_fused(members), [run(member) for member in members], rtol=1e-9, atol=1e-14)


class TestMembers:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_order_of_members_does_not_matter(self, run, run_fused, seed):
        members = [member | {"precision": "float64"} for member in SOFTMAX_CONFIGS]
        alone = [run(member) for member in members]
        order = random.Random(seed).sample(range(len(members)), len(members))
        together = run_fused([members[number] for number in order])
        assert_agree(together, [alone[number] for number in order], rtol=1e-9)

    @every_model
    def test_fused_training_is_reproducible_to_the_bit(self, run_fused, members):
        first = run_fused(members)
        torch.manual_seed(123)
        run_fused(SOFTMAX_CONFIGS[3:5])
        assert_same_bits(run_fused(members), first)

    @pytest.mark.slow
    @every_model
    def test_equal_members_learn_the_same(self, run_fused, members):
        members = [member | {"precision": "float64"} for member in members]
        results = run_fused([*members, *members[::-1]])
        # Not to the bit: the last rows of a product and the last numbers of a kernel may be summed in another order.
        assert_agree(results[: len(members)], results[len(members) :][::-1], rtol=1e-10, atol=1e-14)

    def test_members_have_individual_hyperparameters(self, run, run_fused):
        changes = [
            {"optimizer": "rmsprop", "momentum": 0.5, "centered": True, "rho": 0.8},
            {"optimizer": "rmsprop", "learning_rate": 0.005},
            {"optimizer": "ftrl", "l1": 0.01, "l2": 0.01, "l2_shrinkage": 0.01, "initial_accumulator": 0.0},
            {"optimizer": "ftrl", "l1": 0.01, "l2": 0.02, "learning_rate_power": -0.3},
            {"optimizer": "adam", "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3},
            {"optimizer": "rmsprop", "momentum": 0.5, "centered": True, "rho": 0.8, "learning_rate": 0.02},
            {"optimizer": "ftrl", "l1": 0.01, "l2": 0.02, "learning_rate_power": -0.3, "learning_rate": 0.2},
            {"optimizer": "proximal_adagrad", "l1": 0.001, "l2": 0.02},
            {"optimizer": "proximal_adagrad", "l1": 0.001, "l2": 0.02, "learning_rate": 0.03},
            {"optimizer": "proximal_gradient_descent", "l1": 0.001, "l2": 0.02},
            {"optimizer": "proximal_gradient_descent", "l1": 0.001, "l2": 0.02, "learning_rate": 0.03},
            {"optimizer": "momentum", "momentum": 0.0},
            {"optimizer": "momentum", "momentum": 0.5},
        ]
        members = [SOFTMAX | {"precision": "float64", "initial_weights": "pytorch"} | change for change in changes]
        assert_agree(run_fused(members), [run(member) for member in members], rtol=1e-9)


def at_rate(members, optimizers, rate):
    """Change the rate of the first member of each optimizer; return the members and the indices of the changed ones."""
    changed = [next(n for n, one in enumerate(members) if one["optimizer"] == name) for name in optimizers]
    return [one | ({"learning_rate": rate} if n in changed else {}) for n, one in enumerate(members)], changed


class TestSideEffects:
    @every_model
    @pytest.mark.parametrize("optimizer", ["gradient_descent", "adagrad", "adam", "rmsprop"])
    def test_rate_of_one_member_changes_no_bit_of_another(self, run_fused, members, optimizer):
        first, second = (index for index, member in enumerate(members) if member["optimizer"] == optimizer)
        like_second = {key: members[second][key] for key in ("learning_rate", "decay_rate")}
        alike = [member | (like_second if index == first else {}) for index, member in enumerate(members)]
        results, changed = run_fused(members), run_fused(alike)
        del results[first], changed[first]
        assert_same_bits(changed, results)


class TestDivergence:
    @pytest.mark.parametrize(
        ("model", "rate", "optimizers"),
        [
            ("line", 0.5, ["gradient_descent"]),
            ("line", 0.5, ["momentum", "nesterov", "proximal_gradient_descent"]),
            ("line", 1e38, list(LINE_RATES)),
            ("softmax", 1e38, ["gradient_descent"]),
            ("softmax", 1e38, ["adam"]),
            ("softmax", 1e38, list(SOFTMAX_RATES)),
            ("softmax", 1e6, ["momentum"]),
            ("cnn", 1e38, ["gradient_descent"]),
            ("cnn", 1e38, ["momentum"]),
            ("cnn", 1e38, list(CNN_RATES)),
        ],
    )
    def test_diverging_member_changes_no_bit_of_another(self, run, run_fused, model, rate, optimizers):
        healthy = run_fused(FUSED_CONFIGS[model])
        members, diverging = at_rate(FUSED_CONFIGS[model], optimizers, rate)
        results = run_fused(members)
        others = [number for number in range(len(members)) if number not in diverging]
        assert others
        assert_same_bits([results[number] for number in others], [healthy[number] for number in others])
        for index in diverging:
            (row, history, _), (alone, alone_history, _) = results[index], run(members[index])
            assert row["status"] == "diverged"
            assert ending(row) == ending(alone)
            assert list(history) == list(alone_history)

    def test_member_with_non_finite_evaluation_ends_alone(self, run, run_fused):
        configs = [member | {"num_evaluations": 40} for member in SOFTMAX_CONFIGS]
        healthy = run_fused(configs)
        members, (index,) = at_rate(configs, ["adam"], 1e38)
        results = run_fused(members)
        row, history, _ = results.pop(index)
        assert ending(row) == ["diverged", "non-finite evaluation loss at step 1", 1]
        assert list(history) == [("train_loss", 0)]
        del healthy[index]
        assert_same_bits(results, healthy)

    @pytest.mark.parametrize(("num_evaluations", "expected"), [(4, ["run"]), (40, ["run", "evaluate"])])
    def test_training_ends_when_all_members_have_diverged(self, run_fused, monkeypatch, num_evaluations, expected):
        calls = []
        for name in ("run", "evaluate"):
            method = getattr(Training, name)

            def counted(self, *arguments, name=name, method=method, **options):
                calls.append(name)
                return method(self, *arguments, **options)

            monkeypatch.setattr(Training, name, counted)
        members = [member | {"learning_rate": 1e38, "num_evaluations": num_evaluations} for member in SOFTMAX_CONFIGS]
        members = [member for member in members if member["optimizer"] != "adadelta"]
        assert {row["status"] for row, _, _ in run_fused(members)} == {"diverged"}
        assert calls == expected


class TestTime:
    @pytest.fixture
    def members(self):
        wild, tame, other = SOFTMAX_CONFIGS[:3]
        return [wild | {"learning_rate": 1e38}, tame, other]

    def test_active_members_share_the_time_of_the_program(self, run_fused, monkeypatch, members):
        # Each call of this clock returns one second more.
        monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
        rows = [row for row, _, _ in run_fused(members)]
        assert [row["setup_s"] for row in rows] == pytest.approx([1 / 3] * 3)
        assert [row["train_s"] for row in rows] == pytest.approx([1 / 3, 1 / 3 + 3 / 2, 1 / 3 + 3 / 2])
        assert [row["eval_s"] for row in rows] == [0, 2, 2]
        assert [row["samples_per_s"] for row in rows] == pytest.approx(
            [1 * 35 * 3, 40 * 35 / (11 / 6), 40 * 35 / (11 / 6)]
        )

    def test_shares_add_up_to_at_most_the_elapsed_time(self, run_fused, members):
        began = time.perf_counter()
        rows = [row for row, _, _ in run_fused(members)]
        passed = time.perf_counter() - began
        shares = [row[key] for row in rows for key in ("setup_s", "train_s", "eval_s")]
        assert sum(shares) <= passed
        assert all(row["train_s"] > 0 and row["num_fused"] == 3 for row in rows)
        assert rows[0]["train_s"] < min(rows[1]["train_s"], rows[2]["train_s"])


class TestResuming:
    @every_model
    def test_fused_training_resumes_from_a_file_to_the_same_bits(self, run_fused, tmp_path, members):
        # One member diverges before the checkpoint, and one of the lines after it.
        members, (early,) = at_rate(members, ["momentum"], 1e38)
        if members[0]["model"] == "line":
            members, _ = at_rate(members, ["gradient_descent"], 0.0311)
        whole = run_fused(members)
        checkpoint = FileCheckpoint(tmp_path / "checkpoint", since=members[0]["steps"] // 2)
        saved = run_fused(members, checkpoint=checkpoint)
        resumed = run_fused(members, checkpoint=FileCheckpoint(tmp_path / "checkpoint"))
        middle = checkpoint.saved_at
        assert 0 < middle < members[0]["steps"]
        for number, (row, history, parameters) in enumerate(whole):
            assert ending(saved[number][0]) == ending(resumed[number][0]) == ending(row)
            assert saved[number][1] == history
            assert resumed[number][1] == {
                (name, step): value
                for (name, step), value in history.items()
                if step > middle or (step == middle and name in ("train_loss", "W", "b"))
            }
            if row["status"] == "finished":
                assert same_bits(saved[number][2], parameters)
                assert same_bits(resumed[number][2], parameters)
        assert whole[early][0]["steps_run"] < middle
        assert resumed[early][1] == {}
        late = [row for row, _, _ in whole if row["status"] == "diverged" and row["steps_run"] > middle]
        assert len(late) == (members[0]["model"] == "line")

    def test_times_accumulate_after_a_resume(self, run_fused, tmp_path, monkeypatch):
        members = SOFTMAX_CONFIGS[:2]
        path = tmp_path / "checkpoint"
        monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
        for checkpoint in (FileCheckpoint(path, since=20), FileCheckpoint(path)):
            rows = [row for row, _, _ in run_fused(members, checkpoint=checkpoint)]
            assert [(row["train_s"], row["eval_s"]) for row in rows] == [(2, 2), (2, 2)]


#: Different value of each shared key.
OTHER_VALUES = {
    "model": "cnn",
    "data": "fashion_mnist",
    "batch_size": 50,
    "batching": "random",
    "max_shift": 2.0,
    "max_rotation": 5.0,
    "max_scaling": 0.1,
    "steps": 2000,
    "width": 0.5,
    "depth": 1,
    "precision": "float64",
    "num_evaluations": 5,
    "num_evaluation_images": 30,
    "num_fit_images": 20,
}
#: Two values of each worker key.
WORKER_VALUES = {
    "workers": (2, 3),
    "bucket_mb": (1.0, 25.0),
    "bucket_view": (False, True),
    "compression": ("none", "bf16"),
    "local_steps": (1, 2),
}
#: Different value of each member key.
MEMBER_VALUES = {
    "optimizer": "adam",
    "learning_rate": 0.5,
    "schedule": "cosine",
    "decay_rate": 0.5,
    "dropout": 0.5,
    "seed": 1,
    "initial_weights": "pytorch",
}


class TestWhoMayTrainTogether:
    def test_each_key_is_either_shared_or_a_member_key(self):
        assert set(WORKER_VALUES) == set(WORKER_KEYS)
        assert {*OTHER_VALUES, *MEMBER_KEYS, *WORKER_KEYS} == set(TRIAL_KEYS)
        assert not {*OTHER_VALUES} & {*MEMBER_KEYS}

    @pytest.mark.parametrize("name", WORKER_VALUES)
    def test_members_with_different_worker_keys_are_rejected(self, name):
        first, second = (complete({name: value}) for value in WORKER_VALUES[name])
        assert fusion_key(first) != fusion_key(second)
        for other in (first, complete({})):
            with pytest.raises(InvalidConfigError, match=f"share {name}"):
                check_fusible([other, second])

    @pytest.mark.parametrize("name", OTHER_VALUES)
    def test_members_with_different_shared_keys_are_rejected(self, images, name):
        # Only the cnn has a depth.
        model = {"model": "cnn"} if name == "depth" else {}
        members = [{"batching": "shuffled", **model}, {name: OTHER_VALUES[name], **model}]
        first, second = (complete(member) for member in members)
        assert fusion_key(first) != fusion_key(second)
        message = f"fused trials must share {name}; got {first.get(name)!r} and {second[name]!r}"
        with pytest.raises(InvalidConfigError, match=f"^{message}$"):
            check_fusible([first, first, second])
        with pytest.raises(InvalidConfigError, match=f"share {name}"):
            train_fused(members, [History(), History()], images=images, device="cpu")

    @pytest.mark.parametrize("name", MEMBER_VALUES)
    def test_members_may_differ_in_member_keys(self, name):
        first, second = complete({}), complete({name: MEMBER_VALUES[name]})
        assert first != second
        assert fusion_key(first) == fusion_key(second)
        check_fusible([first, second])

    def test_order_of_keys_does_not_matter(self):
        config = complete({})
        assert fusion_key(dict(reversed(config.items()))) == fusion_key(config)

    def test_invalid_member_is_rejected_before_the_training(self, images):
        history = History()
        with pytest.raises(InvalidConfigError, match="learning_rate must be a number above 0"):
            train_fused([{}, {"learning_rate": -1.0}], [history, History()], images=images, device="cpu")
        assert not history

    @pytest.mark.parametrize("batching", ["single_pass", "sequential", "shuffled", "random"])
    @pytest.mark.parametrize("seeds", [(1, 1), (1, 2)])
    def test_members_with_one_stream_key_have_the_same_batches(self, images, batching, seeds):
        configs = [complete({"batching": batching, "seed": seed}) for seed in seeds]
        task = ImageClassification(configs, images, torch.device("cpu"), 0)
        num_streams = task.batch_indices(0, 1).shape[1]
        assert num_streams == len({stream_key(config) for config in configs})

    def test_lines_have_one_stream_key(self):
        assert len({stream_key(complete({"model": "line", "seed": seed})) for seed in range(3)}) == 1

    def test_wide_cnns_are_not_fused_on_a_cpu(self):
        wide, narrow = (complete({"model": "cnn", "width": width}) for width in (0.25, 0.03))
        assert max_fused_trials(wide, on_gpu=False) == 1
        assert max_fused_trials(narrow, on_gpu=False) > 1
        assert max_fused_trials(wide, on_gpu=True) > 1
