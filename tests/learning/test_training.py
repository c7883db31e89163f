"""Training loop: curves, precision, divergence, resume and reproducibility."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.learning.tensorflow1 import LINE, TOLERANCE, hyperparameters, label, optimizer_name
from tests.learning.training_runs import FileCheckpoint, History, needs_cuda, same_bits
from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning import stack_member, training
from tune_hpc.learning.config import BATCHING_POLICIES, OPTIMIZER_DEFAULTS, SCHEDULES, complete
from tune_hpc.learning.cuda_graphs import NUM_EAGER_STEPS
from tune_hpc.learning.training import Training, train

#: 15 steps are one pass over the 600 images.
SOFTMAX = {"model": "softmax", "batch_size": 40, "steps": 24, "num_evaluations": 6, "learning_rate": 0.05, "seed": 3}
CNN = {
    **SOFTMAX,
    "model": "cnn",
    "width": 0.03,
    "dropout": 0.5,
    "learning_rate": 1e-3,
    "num_evaluation_images": 30,
}
LINE_FIT = {"model": "line", "steps": 24, "num_evaluations": 6, "learning_rate": 1e-3}
MODELS = {"line": LINE_FIT, "softmax": SOFTMAX, "cnn": CNN}
every_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
every_image_model = pytest.mark.parametrize("config", [SOFTMAX, CNN], ids=["softmax", "cnn"])
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZER_DEFAULTS)
CURVES = {"softmax": {"train_loss"}, "cnn": {"train_loss"}, "line": {"train_loss", "W", "b"}}
EVALUATIONS = {"valid_loss", "valid_accuracy", "test_loss", "test_accuracy"}
CPU = torch.device("cpu")


def images_of(config, images):
    return None if config["model"] == "line" else images


def line_step(slope, bias, learning_rate):
    """Return the loss of the line at a step, and its parameters after it."""
    errors = [slope * x + bias - (1 - x) for x in (1, 2, 3, 4)]
    slope_gradient = sum(2 * error * x for error, x in zip(errors, (1, 2, 3, 4), strict=True))
    updated = slope - learning_rate * slope_gradient, bias - learning_rate * sum(2 * error for error in errors)
    return sum(error**2 for error in errors), *updated


def run_line(**config):
    history = History()
    row = train({"model": "line", "num_evaluations": 20, **config}, history, device="cpu")
    return row, history


class TestLine:
    @pytest.mark.parametrize("recorded", [run for run in LINE["runs"] if run["part"] == "b"], ids=label)
    def test_each_recorded_step_matches_tensorflow(self, recorded):
        row, history = run_line(
            optimizer=optimizer_name(recorded),
            learning_rate=recorded["learning_rate"],
            steps=recorded["n_steps"],
            precision=recorded["dtype"],
            **hyperparameters(recorded),
        )
        assert row["status"] == "finished"
        tolerance = TOLERANCE[recorded["dtype"]]
        for record in recorded["records"]:
            step = record["step"]
            actual = [history[name, step] for name in ("train_loss", "W", "b")]
            expected = [record["loss"], record["W"], record["b"]]
            if recorded["optimizer"] == "RMSProp" and step > 100:
                # The approach to the optimum amplifies the last digit by a factor of a billion, and torch adds the four
                # points in another order. Then the parameters jump across the optimum at every step, on a random side,
                # but with a determined distance and loss.
                tolerance = max(TOLERANCE[recorded["dtype"]], 1e-6)
                actual[1:] = [abs(actual[1] + 1), abs(actual[2] - 1)]
                expected[1:] = [abs(expected[1] + 1), abs(expected[2] - 1)]
            assert actual == pytest.approx(expected, abs=tolerance, rel=0)

    @pytest.mark.parametrize("precision", ["float32", "float64"])
    @pytest.mark.parametrize("learning_rate", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    def test_gradient_descent_matches_tensorflow_at_each_rate(self, learning_rate, precision):
        (recorded,) = (
            run
            for run in LINE["runs"]
            if (run["part"], run["learning_rate"], run["dtype"]) == ("a", learning_rate, precision)
        )
        _, history = run_line(learning_rate=learning_rate, steps=1000, precision=precision)
        for record in recorded["records"]:
            if record["step"] <= 1000:
                actual = [history[name, record["step"]] for name in ("train_loss", "W", "b")]
                expected = [record["loss"], record["W"], record["b"]]
                assert actual == pytest.approx(expected, abs=TOLERANCE[precision], rel=0)

    def test_loss_of_a_row_belongs_to_its_parameters(self):
        _, history = run_line(steps=30, precision="float64", num_evaluations=7)
        for step in range(31):
            loss, _, _ = line_step(history["W", step], history["b", step], 0.01)
            assert history["train_loss", step] == pytest.approx(loss, abs=1e-13)

    @pytest.mark.parametrize("num_evaluations", [1, 7, 50])
    def test_rows_include_the_states_before_the_first_and_after_the_last_update(self, num_evaluations):
        _, history = run_line(steps=50, num_evaluations=num_evaluations)
        for name in CURVES["line"]:
            assert history.steps(name) == list(range(51))

    def test_decay_of_the_line_happens_at_every_step(self):
        _, history = run_line(steps=3, decay_rate=0.5, precision="float64")
        slope, bias = 0.3, -0.3
        for step in range(3):
            _, slope, bias = line_step(slope, bias, 0.01 * 0.5**step)
        assert (history["W", 3], history["b", 3]) == pytest.approx((slope, bias), abs=1e-14)


class TestRows:
    @every_image_model
    def test_images_have_a_loss_before_each_update_and_metrics_at_evaluations(self, run, config):
        _, history, _ = run(config)
        assert {name for name, _ in history} == {"train_loss"} | EVALUATIONS
        assert history.steps("train_loss") == list(range(24))
        for name in EVALUATIONS:
            assert history.steps(name) == [4, 8, 12, 16, 20, 24]

    def test_row_describes_the_state_after_its_number_of_updates(self, run, images):
        _, history, parameters = run({**SOFTMAX, "steps": 5, "num_evaluations": 5})
        by_hand = Training([complete(SOFTMAX)], images, CPU)
        assert history["train_loss", 0] == pytest.approx(math.log(10), abs=1e-6)
        for step in range(5):
            assert by_hand.run(step, step + 1).tolist() == [[[history["train_loss", step]]]]
            assert by_hand.evaluate() == {name: [history[name, step + 1]] for name in EVALUATIONS}
        assert same_bits(parameters, by_hand.model.parameters())

    @every_image_model
    def test_metrics_on_training_images_are_those_of_the_last_step(self, run, images, config):
        config = {**config, "num_fit_images": 50, "dropout": 0.0}
        _, history, parameters = run(config)
        assert [step for name, step in history if name == "fit_loss"] == [config["steps"]]
        training = Training([complete(config)], images, CPU)
        for parameter, trained in zip(training.optimizers.parameters, parameters, strict=True):
            parameter.data.copy_(trained)
        pixels = images.train_images[None, :50].float() / 255
        with torch.inference_mode():
            logits = training.model(pixels, None)[0].T
        labels = images.train_labels[:50]
        assert history["fit_accuracy", config["steps"]] == (logits.argmax(1) == labels).double().mean().item()
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        assert history["fit_loss", config["steps"]] == pytest.approx(loss, rel=1e-5)

    @example(5000, 50)
    @given(st.integers(1, 3000), st.integers(1, 200))
    def test_evaluations_are_evenly_spaced_up_to_the_last_step(self, num_steps, num_evaluations):
        steps = training._evaluation_steps(num_steps, num_evaluations)
        assert len(steps) == min(num_steps, num_evaluations)
        assert steps[-1] == num_steps
        gaps = [after - before for before, after in itertools.pairwise([0, *steps])]
        assert min(gaps) >= 1
        # Each step is rounded by at most one half.
        assert max(gaps) - min(gaps) <= 2

    def test_number_of_evaluations_changes_no_update(self, run):
        seldom, often = (run({**CNN, "num_evaluations": number}) for number in (1, 24))
        assert seldom[1].curve("train_loss") == often[1].curve("train_loss")
        assert same_bits(seldom[2], often[2])

    def test_softmax_learns(self, run):
        _, history, _ = run({**SOFTMAX, "optimizer": "adam", "learning_rate": 0.01, "steps": 60})
        assert history["test_accuracy", 60] > 0.95


class TestCurves:
    """Curves of ``Training.run`` and ``loss_at``: (quantities, members, steps)."""

    @every_model
    def test_curves_have_a_number_for_each_quantity_member_and_step(self, images, config):
        members = [complete({**config, "learning_rate": rate}) for rate in (1e-3, 2e-3, 3e-3)]
        stack = Training(members, images_of(config, images), CPU)
        assert set(stack.curves) == CURVES[config["model"]]
        assert stack.run(0, 4).shape == (len(stack.curves), 3, 4)
        assert stack.run(4, 4).shape == (len(stack.curves), 3, 0)
        assert stack.loss_at(4).shape == (len(stack.curves), 3, 1)
        assert np.isfinite(stack.run(4, 6)).all()

    @every_model
    def test_division_into_windows_changes_no_bit(self, images, monkeypatch, config):
        whole, parts = (
            Training(
                [complete({**config, "optimizer": optimizer, "decay_rate": 0.9}) for optimizer in ("adam", "ftrl")],
                images_of(config, images),
                CPU,
            )
            for _ in range(2)
        )
        expected = whole.run(0, 20)
        monkeypatch.setattr(Training, "WINDOW", 4)
        actual = np.concatenate([parts.run(start, end) for start, end in ((0, 1), (1, 3), (3, 17), (17, 20))], axis=2)
        assert np.array_equal(actual, expected)
        assert same_bits(parts.model.parameters(), whole.model.parameters())

    @pytest.mark.parametrize("config", [LINE_FIT, SOFTMAX], ids=["line", "softmax"])
    def test_loss_at_is_the_loss_of_the_next_step_and_has_no_side_effect(self, images, config):
        stack = Training([complete(config)], images_of(config, images), CPU)
        stack.run(0, 5)
        seen = stack.loss_at(5)
        assert np.array_equal(stack.loss_at(5), seen)
        assert stack.run(5, 6) == pytest.approx(seen, rel=1e-6)


class TestPrecision:
    @pytest.fixture
    def run_in(self, run):
        return lambda config, precision: run({**config, "precision": precision})

    @pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
    @every_model
    def test_parameters_are_float32_if_only_products_are_shorter(self, run_in, config, precision):
        row, history, parameters = run_in(config, precision)
        assert row["status"] == "finished"
        assert {parameter.dtype for parameter in parameters} == {torch.float32}
        assert all(math.isfinite(value) for value in history.values())

    @every_model
    def test_tf32_equals_float32_without_a_gpu(self, run_in, config):
        single, short = (run_in(config, precision) for precision in ("float32", "tf32"))
        assert short[1] == single[1]
        assert same_bits(short[2], single[2])

    @every_image_model
    def test_bfloat16_is_close_to_float32_but_different(self, run_in, config):
        single, short = (run_in(config, precision)[1] for precision in ("float32", "bfloat16"))
        assert short.curve("train_loss") != single.curve("train_loss")
        # bfloat16 has eight bits. The losses are up to 2.4, with observed differences up to 0.0012.
        assert short.curve("train_loss") == pytest.approx(single.curve("train_loss"), abs=5e-3)
        assert short.curve("valid_loss") == pytest.approx(single.curve("valid_loss"), abs=5e-3)

    @pytest.mark.parametrize(("around", "flag"), [("tf32", "tf32"), ("float64", "ieee")])
    @pytest.mark.parametrize("within", ["float32", "tf32"])
    def test_product_precision_is_restored_after_success_and_error(self, around, flag, within):
        with training._matrix_products(around):
            with training._matrix_products(within):
                assert _gpu_products() == ["tf32" if within == "tf32" else "ieee"] * 2
            assert _gpu_products() == [flag, flag]
            with pytest.raises(ZeroDivisionError), training._matrix_products(within):
                raise ZeroDivisionError
            assert _gpu_products() == [flag, flag]


def _gpu_products():
    return [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision]


@pytest.mark.parametrize("precision", ["float32", "float64", "tf32", "bfloat16"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_precision_of_products_applies_only_inside_the_training(images, precision, device):
    stack = Training([complete({**CNN, "precision": precision})], images, torch.device(device))
    seen = []
    stack.model.register_forward_pre_hook(lambda *_: seen.append((*_gpu_products(), torch.is_autocast_enabled(device))))
    before = _gpu_products()
    curves = [stack.run(0, NUM_EAGER_STEPS + 2)]
    stack.evaluate()
    curves.append(stack.loss_at(NUM_EAGER_STEPS + 2))
    flag = "tf32" if precision == "tf32" else "ieee"
    assert set(seen) == {(flag, flag, precision == "bfloat16")}
    assert len(seen) >= 2 + 2 + 1
    assert np.isfinite(np.concatenate(curves, axis=2)).all()
    assert _gpu_products() == before
    assert not torch.is_autocast_enabled(device)


class TestEnds:
    def test_returned_row_has_the_documented_keys(self, run):
        row, _, _ = run(SOFTMAX)
        assert row == {
            "status": "finished",
            "stop_reason": "all steps done",
            "steps_run": 24,
            "setup_s": row["setup_s"],
            "train_s": row["train_s"],
            "eval_s": row["eval_s"],
            "samples_per_s": pytest.approx(24 * 40 / row["train_s"]),
            "num_fused": 1,
            "device": "cpu",
        }
        assert min(row["setup_s"], row["train_s"], row["eval_s"]) > 0

    def test_single_pass_ends_the_run_with_a_reason(self, run):
        row, history, _ = run({**SOFTMAX, "batching": "single_pass"})
        assert (row["status"], row["stop_reason"]) == ("finished", "single pass over after 15 steps")
        assert row["steps_run"] == 15
        assert history.steps("train_loss") == list(range(15))
        assert history.steps("test_loss")[-1] == 15

    @pytest.mark.parametrize("steps", [10, 15])
    def test_unfinished_single_pass_is_not_a_stop_reason(self, run, steps):
        row, _, _ = run({**SOFTMAX, "batching": "single_pass", "steps": steps})
        assert (row["steps_run"], row["stop_reason"]) == (steps, "all steps done")

    def test_unknown_key_is_rejected(self):
        with pytest.raises(InvalidConfigError, match="no such key 'epochs'"):
            train({"epochs": 5}, History())

    def test_batch_larger_than_the_data_is_rejected(self, run):
        with pytest.raises(InvalidConfigError, match="batch_size must be 1 to 600"):
            run({"batch_size": 601})

    def test_default_device_works(self, images):
        history = History()
        row = train(SOFTMAX, history, images=images)
        assert row["status"] == "finished"
        assert (row["device"] == "cpu") == (not torch.cuda.is_available())
        assert len(history.steps("train_loss")) == 24

    def test_images_are_loaded_by_default(self, images, monkeypatch):
        loaded = []
        monkeypatch.setattr(training, "load_images", lambda name: loaded.append(name) or images)
        train({**SOFTMAX, "data": "fashion_mnist", "steps": 1}, History(), device="cpu")
        assert loaded == ["fashion_mnist"]


def fifth_loss_over_the_limit(learning_rate):
    """Return the step at which the line's loss exceeds 10,000 times the first for the fifth time."""
    slope, bias, over = 0.3, -0.3, 0
    for step in itertools.count():
        loss, slope, bias = line_step(slope, bias, learning_rate)
        over += loss > 1e4 * 23.66
        if over == 5:
            return step


class TestDivergence:
    @pytest.mark.parametrize("num_evaluations", [1, 50, 1000])
    @pytest.mark.parametrize("learning_rate", [0.035, 0.05, 0.5])
    def test_divergence_is_detected_at_its_step_for_any_number_of_evaluations(self, learning_rate, num_evaluations):
        expected = fifth_loss_over_the_limit(learning_rate)
        row, history = run_line(
            learning_rate=learning_rate, steps=1000, precision="float64", num_evaluations=num_evaluations
        )
        assert row["status"] == "diverged"
        assert row["steps_run"] == expected
        assert f"at step {expected}, for 5 steps over 10000 times the first" in row["stop_reason"]
        assert history.steps("train_loss") == history.steps("W") == list(range(expected))

    @pytest.mark.parametrize(
        ("steps", "reason"),
        [(1000, "non-finite loss at step 1"), (1, "non-finite evaluation loss at step 1")],
        ids=["loss", "evaluation"],
    )
    def test_non_finite_number_ends_the_run(self, run, steps, reason):
        row, history, _ = run({**SOFTMAX, "learning_rate": 1e38, "steps": steps, "num_evaluations": 50})
        assert (row["status"], row["stop_reason"], row["steps_run"]) == ("diverged", reason, 1)
        assert list(history) == [("train_loss", 0)]

    def test_softmax_at_a_huge_rate_diverges_with_finite_losses(self, run):
        row, history, _ = run({**SOFTMAX, "learning_rate": 1e6, "steps": 1000, "num_evaluations": 50})
        assert row["status"] == "diverged"
        assert "over 10000 times the first" in row["stop_reason"]
        assert row["steps_run"] <= 5
        assert len(history.steps("train_loss")) == row["steps_run"]

    @every_optimizer
    def test_rate_beyond_float32_is_a_divergence(self, optimizer):
        row, _ = run_line(optimizer=optimizer, learning_rate=1e39, steps=10)
        assert (row["status"], row["steps_run"]) == ("diverged", 1)

    @pytest.mark.parametrize("num_evaluations", [1, 12])
    def test_loss_that_recovers_is_no_divergence(self, run, num_evaluations):
        config = {**CNN, "width": 1.0, "optimizer": "adam", "learning_rate": 0.5, "steps": 12}
        row, history, _ = run({**config, "num_evaluations": num_evaluations})
        losses = [history["train_loss", step] for step in range(12)]
        assert max(losses) > stack_member.DIVERGENCE_FACTOR * losses[0]
        assert losses[-1] < 100
        assert (row["status"], row["steps_run"]) == ("finished", 12)

    @every_optimizer
    @every_image_model
    def test_only_finite_numbers_are_reported(self, run, config, optimizer):
        row, history, _ = run({**config, "optimizer": optimizer, "learning_rate": 1e6})
        assert row["status"] in ("finished", "diverged")
        assert all(math.isfinite(value) for value in history.values())
        assert len(history.steps("train_loss")) == row["steps_run"]

    def test_diverged_runs_do_not_affect_the_next_run(self, run):
        wild = {**SOFTMAX, "learning_rate": 1e6}
        alone = run(SOFTMAX)
        run(wild)
        among = run(SOFTMAX)
        run(wild)
        assert among[1] == alone[1]
        assert same_bits(among[2], alone[2])


def check_resume(run, config, path):
    """Check that a run without a checkpoint, one with it, and the resumed one are equal."""
    row, history, parameters = run(config)
    checkpoint = FileCheckpoint(path, since=row["steps_run"] // 2)
    saved_row, saved, saved_parameters = run(config, checkpoint=checkpoint)
    assert saved == history
    assert same_bits(saved_parameters, parameters)

    resumed_row, resumed, resumed_parameters = run(config, checkpoint=FileCheckpoint(path))
    middle = checkpoint.saved_at
    assert 0 < middle < row["steps_run"]
    assert resumed == {
        (name, step): value
        for (name, step), value in history.items()
        if step > middle or (step == middle and name not in EVALUATIONS)
    }
    assert same_bits(resumed_parameters, parameters)
    for key in ("status", "stop_reason", "steps_run"):
        assert resumed_row[key] == saved_row[key] == row[key]
    return row


class TestResuming:
    @pytest.mark.parametrize("batching", BATCHING_POLICIES)
    @every_optimizer
    def test_softmax_resumes_to_the_same_bits(self, run, tmp_path, optimizer, batching):
        config = {**SOFTMAX, "optimizer": optimizer, "batching": batching, "decay_rate": 0.95}
        row = check_resume(run, config, tmp_path / "checkpoint")
        assert row["steps_run"] == (15 if batching == "single_pass" else 24)

    @every_optimizer
    @pytest.mark.parametrize("config", [LINE_FIT, CNN], ids=["line", "cnn_with_dropout"])
    def test_other_models_resume_to_the_same_bits(self, run, tmp_path, config, optimizer):
        check_resume(run, {**config, "optimizer": optimizer, "decay_rate": 0.95}, tmp_path / "checkpoint")

    @pytest.mark.parametrize(
        "config",
        [
            *({**CNN, "optimizer": "adam", "batching": batching, "decay_rate": 0.95} for batching in BATCHING_POLICIES),
            *(
                {
                    **CNN,
                    "optimizer": "adam",
                    "schedule": name,
                    "max_shift": 2.0,
                    "max_rotation": 10.0,
                    "max_scaling": 0.1,
                }
                for name in SCHEDULES
            ),
            {**SOFTMAX, "optimizer": "rmsprop", "momentum": 0.5, "centered": True},
            {**SOFTMAX, "optimizer": "ftrl", "l1": 0.01, "l2": 0.01, "l2_shrinkage": 0.01, "initial_accumulator": 0.0},
        ],
        ids=[*BATCHING_POLICIES, *(f"augmentation_{name}" for name in SCHEDULES), "rmsprop", "ftrl"],
    )
    def test_batching_schedule_augmentation_and_every_slot_are_restored(self, run, tmp_path, config):
        check_resume(run, config, tmp_path / "checkpoint")

    def test_divergence_after_a_resume_uses_the_first_loss_of_the_run(self, run, tmp_path):
        config = {"model": "line", "learning_rate": 0.035, "steps": 1000, "num_evaluations": 1000}
        assert check_resume(run, config, tmp_path / "checkpoint")["status"] == "diverged"

    def test_state_is_offered_after_every_evaluation_but_the_last(self, run, tmp_path):
        checkpoint = FileCheckpoint(tmp_path / "checkpoint")
        run(SOFTMAX, checkpoint=checkpoint)
        assert checkpoint.offered == [4, 8, 12, 16, 20]
        assert not checkpoint.path.exists()

    def test_finished_run_can_be_extended(self, run, tmp_path):
        _, whole, parameters = run({**CNN, "num_evaluations": 6})
        run({**CNN, "steps": 16, "num_evaluations": 4}, checkpoint=FileCheckpoint(tmp_path / "checkpoint", since=12))
        row, rest, longer = run({**CNN, "num_evaluations": 6}, checkpoint=FileCheckpoint(tmp_path / "checkpoint"))
        assert row["steps_run"] == 24
        assert rest.items() <= whole.items()
        assert same_bits(longer, parameters)


class TestReproducibility:
    @every_image_model
    def test_run_is_reproducible_to_the_bit(self, run, config):
        first = run(config)
        torch.manual_seed(123)
        run({**CNN, "seed": 9, "optimizer": "adam", "width": 0.1, "precision": "float64"})
        torch.rand(17)
        again = run(config)
        assert again[1] == first[1]
        assert same_bits(again[2], first[2])

    @every_image_model
    def test_seeds_give_different_results(self, run, config):
        first, second = (run({**config, "seed": seed})[1] for seed in (1, 2))
        assert first.curve("train_loss")[1:] != second.curve("train_loss")[1:]

    def test_batching_policies_differ_except_single_pass_and_sequential(self, run):
        single_pass, sequential, shuffled, random = (
            run({**SOFTMAX, "steps": 15, "batching": batching})[1] for batching in BATCHING_POLICIES
        )
        assert single_pass == sequential
        assert sequential != shuffled != random != sequential

    def test_dropout_changes_the_cnn_but_not_softmax(self, run):
        assert run({**CNN, "dropout": 0.0})[1] != run(CNN)[1]
        assert run({**SOFTMAX, "dropout": 0.5})[1] == run(SOFTMAX)[1]

    def test_global_generator_is_unchanged(self, run):
        before = torch.get_rng_state()
        run(CNN)
        assert torch.equal(torch.get_rng_state(), before)

    def test_images_are_unchanged(self, run, images):
        before = images.train_images.clone(), images.test_images.clone()
        run(CNN)
        assert same_bits(before, (images.train_images, images.test_images))
