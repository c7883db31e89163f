"""TensorFlow 1 optimizers: recorded steps, the contract of torch, and invariants."""

import copy
import io
import itertools
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learning.tensorflow1 import LINE, TOLERANCE, hyperparameters, label, optimizer_name
from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning import optimizers
from tune_hpc.learning.config import OPTIMIZER_DEFAULTS
from tune_hpc.learning.optimizers import build_optimizer
from tune_hpc.learning.optimizers.elementwise import ElementwiseOptimizer

VECTORS = json.loads((Path(__file__).parent.parent / "data" / "tensorflow1_vectors.json").read_text())


def build(run, parameters):
    """Return the optimizer of a recorded run."""
    return build_optimizer(optimizer_name(run), parameters, run["learning_rate"], **hyperparameters(run))


def build_default(name, parameters):
    return build_optimizer(name, parameters, 0.01)


def reloaded(optimizer, new_optimizer):
    """Return ``new_optimizer`` with the state of ``optimizer``, saved and loaded."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    new_optimizer.load_state_dict(torch.load(file, weights_only=True))
    return new_optimizer


def vector_steps(run, *, groups=1, reload_at=None):
    """Yield the parameters after each of the 20 recorded gradients."""
    sequence = VECTORS["sequences"][run["sequence"]]
    initial = torch.tensor(sequence["initial_params"], dtype=torch.float64)
    parameters = [torch.nn.Parameter(part.clone()) for part in initial.tensor_split(groups)]
    as_groups = [{"params": [parameter]} for parameter in parameters]
    optimizer = build(run, as_groups)
    for step, gradient in enumerate(torch.tensor(sequence["gradients"], dtype=torch.float64)):
        if step == reload_at:
            optimizer = reloaded(optimizer, build(run, as_groups))
        for parameter, part in zip(parameters, gradient.tensor_split(groups), strict=True):
            parameter.grad = part.clone()
        optimizer.step()
        yield torch.cat([parameter.detach() for parameter in parameters])


vector_runs = pytest.mark.parametrize("run", VECTORS["runs"], ids=label)


class TestVectors:
    @vector_runs
    @pytest.mark.parametrize(
        ("how", "piece"),
        [({}, 131_072), ({"groups": 2}, 131_072), ({"reload_at": 10}, 131_072), ({}, 2)],
        ids=["one_group", "two_groups", "reloaded", "in_pieces"],
    )
    def test_each_step_matches_tensorflow(self, run, monkeypatch, how, piece):
        monkeypatch.setattr(ElementwiseOptimizer, "PIECE", piece)
        expected = torch.tensor(run["params_after_step"], dtype=torch.float64)
        actual = torch.stack(list(vector_steps(run, **how)))
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE["float64"])

    def test_recorded_runs_cover_the_ten_optimizers_of_tensorflow(self):
        recorded = {optimizer_name(run) for run in VECTORS["runs"]}
        assert len(recorded) == 10
        assert recorded <= set(OPTIMIZER_DEFAULTS)


def run_line(run):
    """Yield the step, W and b after 0, 1, 2, ... steps."""
    dtype = getattr(torch, run["dtype"])
    x = torch.tensor(LINE["x"], dtype=dtype)
    y = torch.tensor(LINE["y"], dtype=dtype)
    slope = torch.nn.Parameter(torch.tensor(0.3, dtype=dtype))
    bias = torch.nn.Parameter(torch.tensor(-0.3, dtype=dtype))
    optimizer = build(run, [slope, bias])
    for step in range(run["n_steps"] + 1):
        yield step, slope.item(), bias.item()
        with torch.no_grad():
            doubled_error = 2 * (slope * x + bias - y)
            slope.grad = sum_as_tensorflow(doubled_error * x)
            bias.grad = sum_as_tensorflow(doubled_error)
        optimizer.step()


def sum_as_tensorflow(four):
    # The order of additions matters in RMSprop's chaotic phase.
    pairs = four[:2] + four[2:]
    return pairs[0] + pairs[1]


class TestLine:
    # test_training.py runs the other optimizers inside the training loop. Only RMSprop is sensitive to the loop's order
    # of additions.
    @pytest.mark.parametrize("run", [run for run in LINE["runs"] if run["optimizer"] == "RMSProp"], ids=label)
    def test_rmsprop_matches_tensorflow_before_and_after_its_chaotic_phase(self, run):
        # Between them it amplifies a shift of 1e-12 by a factor of a billion.
        records = {record["step"]: record for record in run["records"] if not 100 < record["step"] < 500}
        for step, slope, bias in run_line(run):
            if step in records:
                expected = records[step]["W"], records[step]["b"]
                assert (slope, bias) == pytest.approx(expected, abs=TOLERANCE[run["dtype"]], rel=0)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_gradient_descent_matches_tensorflow_over_30000_steps(self, dtype):
        runs = [run for run in LINE["runs"] if run["part"] == "a" and run["dtype"] == dtype]
        rates = torch.tensor([[run["learning_rate"]] for run in runs], dtype=torch.float64)
        assert sorted(rates.flatten().tolist()) == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]
        # One tensor has a row for each rate, and the gradients include the rates, so one run of 30,000 steps suffices.
        weights = torch.nn.Parameter(torch.tensor([[0.3, -0.3]] * len(runs), dtype=getattr(torch, dtype)))
        optimizer = build_default("gradient_descent", [weights])
        x = torch.tensor(LINE["x"], dtype=weights.dtype)
        y = torch.tensor(LINE["y"], dtype=weights.dtype)
        design = torch.stack([x, torch.ones_like(x)])
        scales = (2 * rates / 0.01).to(weights.dtype)
        weights.grad = torch.zeros_like(weights)
        detached, gradient = weights.detach(), weights.grad
        records = [{record["step"]: (record["W"], record["b"]) for record in run["records"]} for run in runs]
        for step in range(30_001):
            if step in records[0]:
                expected = [recorded[step] for recorded in records]
                assert detached.numpy() == pytest.approx(np.array(expected), abs=TOLERANCE[dtype], rel=0)
            torch.mm(scales * (detached @ design - y), design.T, out=gradient)
            optimizer.step()


every_optimizer = pytest.mark.parametrize("name", OPTIMIZER_DEFAULTS)


def quadratic(name, num_steps=8):
    """Return a parameter on its descent to 1, 2, ..., 6, and its optimizer."""
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3))
    optimizer = build_default(name, [parameter])
    descend(optimizer, parameter, num_steps)
    return parameter, optimizer


def descend(optimizer, parameter, num_steps):
    target = torch.arange(1, 7, dtype=torch.float64).reshape(2, 3)
    for _ in range(num_steps):
        optimizer.zero_grad()
        ((parameter - target) ** 2).sum().backward()
        optimizer.step()


class TestTorchContract:
    @every_optimizer
    def test_torch_scheduler_sets_the_rate_of_each_step(self, name):
        parameter, optimizer = quadratic(name, 0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        by_hand, hand_optimizer = quadratic(name, 0)
        for step in range(6):
            descend(optimizer, parameter, 1)
            scheduler.step()
            hand_optimizer.param_groups[0]["lr"] = 0.01 * 0.5**step
            descend(hand_optimizer, by_hand, 1)
        assert torch.equal(parameter, by_hand)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**6)

    @pytest.mark.parametrize("name", ["momentum", "nesterov", "adam", "rmsprop"])
    def test_one_cycle_scheduler_changes_the_momentum(self, name):
        parameter, optimizer = quadratic(name, 0)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
        for _ in range(9):
            descend(optimizer, parameter, 1)
            scheduler.step()
        group = optimizer.param_groups[0]
        assert (group["betas"][0] if name == "adam" else group["momentum"]) == pytest.approx(0.95)
        assert torch.isfinite(parameter).all()

    @every_optimizer
    def test_copy_continues_like_the_original(self, name):
        parameter, optimizer = quadratic(name)
        for duplicate in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
            twin, twin_optimizer = duplicate((parameter, optimizer))
            original, original_optimizer = copy.deepcopy((parameter, optimizer))
            assert twin_optimizer.param_groups[0]["params"][0] is twin
            descend(twin_optimizer, twin, 3)
            descend(original_optimizer, original, 3)
            assert torch.equal(twin, original)

    @every_optimizer
    def test_step_returns_the_loss_of_the_closure(self, name):
        parameter, optimizer = quadratic(name)

        def closure():
            optimizer.zero_grad()
            loss = parameter.square().sum()
            loss.backward()
            return loss

        expected = parameter.detach().square().sum()
        assert optimizer.step(closure).item() == expected.item()

    @every_optimizer
    def test_parameter_without_gradient_is_unchanged(self, name):
        idle = torch.nn.Parameter(torch.ones(3))
        busy = torch.nn.Parameter(torch.ones(3))
        optimizer = build_default(name, [idle, busy])
        busy.grad = torch.ones(3)
        optimizer.step()
        assert torch.equal(idle, torch.ones(3))
        assert not torch.equal(busy, torch.ones(3))

    @every_optimizer
    def test_late_parameter_starts_at_its_first_step(self, name):
        early, late, alone = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(3))
        both, single = build_default(name, [early, late]), build_default(name, [alone])
        for step in range(6):
            early.grad = torch.full_like(early, 0.5)
            if step >= 3:
                late.grad = torch.full_like(late, 1.0 + step)
                alone.grad = late.grad.clone()
                single.step()
            both.step()
        assert torch.equal(late, alone)

    @every_optimizer
    def test_channels_last_weights_are_updated_like_contiguous_ones(self, name):
        torch.manual_seed(0)
        images = torch.rand(2, 3, 8, 8)
        plain = torch.nn.Conv2d(3, 4, 3)
        twin = copy.deepcopy(plain).to(memory_format=torch.channels_last)
        for network, batch in ((plain, images), (twin, images.to(memory_format=torch.channels_last))):
            optimizer = build_default(name, network.parameters())
            for _ in range(3):
                optimizer.zero_grad()
                network(batch).square().sum().backward()
                optimizer.step()
        torch.testing.assert_close(twin.weight, plain.weight, rtol=1e-4, atol=1e-5)

    @every_optimizer
    def test_gradient_with_another_memory_layout_gives_the_same_update(self, name):
        gradient = torch.arange(6.0).reshape(2, 3) - 2
        after = []
        for layout in (gradient, gradient.t().contiguous().t()):
            parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
            parameter.grad = layout
            build_default(name, [parameter]).step()
            after.append(parameter.detach())
        assert torch.equal(*after)

    @pytest.mark.parametrize("piece", [1, 2, 3, 5])
    @every_optimizer
    def test_matrix_in_pieces_has_the_same_updates(self, name, monkeypatch, piece):
        whole, _ = quadratic(name)
        monkeypatch.setattr(ElementwiseOptimizer, "PIECE", piece)
        in_pieces, _ = quadratic(name)
        torch.testing.assert_close(in_pieces, whole, rtol=0, atol=1e-14)

    @every_optimizer
    def test_non_finite_gradient_makes_parameters_non_finite(self, name):
        parameter, optimizer = quadratic(name)
        parameter.grad = torch.full_like(parameter, math.nan)
        optimizer.step()
        assert parameter.isnan().all()


numbers = st.floats(-10, 10, allow_subnormal=False)
gradient_lists = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=12)
rates = st.floats(1e-4, 1.0)


def walk(name, initial, gradients, learning_rate, **hyperparameters):
    parameter = torch.nn.Parameter(torch.tensor(initial, dtype=torch.float64))
    optimizer = build_optimizer(name, [parameter], learning_rate, **hyperparameters)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return parameter.detach()


class TestInvariants:
    @settings(deadline=None, max_examples=50)
    @given(st.tuples(numbers, numbers, numbers), gradient_lists, rates)
    def test_special_cases_of_gradient_descent_equal_it_bit_for_bit(self, initial, gradients, lr):
        expected = walk("gradient_descent", initial, gradients, lr)
        assert torch.equal(walk("proximal_gradient_descent", initial, gradients, lr), expected)
        for name in ("momentum", "nesterov"):
            assert torch.equal(walk(name, initial, gradients, lr, momentum=0.0), expected)

    @settings(deadline=None, max_examples=50)
    @given(st.tuples(numbers, numbers, numbers), gradient_lists, rates, st.floats(0.01, 10))
    def test_proximal_adagrad_without_penalties_is_adagrad(self, initial, gradients, lr, accumulator):
        torch.testing.assert_close(
            walk("proximal_adagrad", initial, gradients, lr, initial_accumulator=accumulator),
            walk("adagrad", initial, gradients, lr, initial_accumulator=accumulator),
            rtol=1e-13,
            atol=1e-13,
        )

    @settings(deadline=None, max_examples=50)
    @given(gradient_lists, rates, st.floats(0.01, 10))
    def test_ftrl_from_zero_is_adagrad(self, gradients, lr, accumulator):
        torch.testing.assert_close(
            walk("ftrl", [0.0] * 3, gradients, lr, initial_accumulator=accumulator),
            walk("adagrad", [0.0] * 3, gradients, lr, initial_accumulator=accumulator),
            rtol=1e-9,
            atol=1e-10,
        )

    @settings(deadline=None, max_examples=50)
    @given(st.tuples(numbers, numbers, numbers), gradient_lists, rates, st.floats(0.0, 5.0))
    def test_l1_penalty_zeroes_small_values_and_changes_no_sign(self, initial, gradients, lr, l1):
        free = walk("proximal_gradient_descent", initial, gradients[:1], lr)
        shrunk = walk("proximal_gradient_descent", initial, gradients[:1], lr, l1=l1)
        assert (shrunk * free >= 0).all()
        assert (shrunk.abs() <= free.abs()).all()
        assert (shrunk[free.abs() <= lr * l1] == 0).all()

    def test_ftrl_without_gradients_and_accumulator_stays_zero(self):
        end = walk("ftrl", [1.0, 0.0, 1.0], [(0.0, 1.0, 0.0)] * 3, 0.1, initial_accumulator=0.0)
        assert end[0] == end[2] == 0
        assert end[1] < 0

    def test_ftrl_parameter_is_zero_while_the_linear_term_is_within_l1(self):
        end = walk("ftrl", [0.0] * 3, [(0.4, -0.4, 3.0)] * 2, 0.1, l1=1.0)
        assert end[0] == end[1] == 0
        assert end[2] < 0


class TestRefusals:
    def test_unknown_name_is_rejected_with_the_known_names(self):
        with pytest.raises(InvalidConfigError, match=r"no such optimizer 'adamw'; there are gradient_descent, .*adam"):
            build_optimizer("adamw", [torch.nn.Parameter(torch.ones(1))], 0.1)

    @every_optimizer
    def test_hyperparameter_of_another_optimizer_is_rejected(self, name):
        parameter = torch.nn.Parameter(torch.ones(1))
        everything = set(itertools.chain.from_iterable(OPTIMIZER_DEFAULTS.values()))
        for foreign in sorted(everything - set(OPTIMIZER_DEFAULTS[name])):
            with pytest.raises(InvalidConfigError, match=f"{name} has no hyperparameter '{foreign}'"):
                build_optimizer(name, [parameter], 0.1, **{foreign: 0.5})

    @pytest.mark.parametrize(
        ("name", "hyperparameters"),
        [
            ("adam", {"beta1": 1.0}),
            ("adam", {"epsilon": -1e-8}),
            ("rmsprop", {"rho": 1.5}),
            ("rmsprop", {"centered": 1}),
            ("ftrl", {"learning_rate_power": 0.5}),
            ("adagrad", {"initial_accumulator": 0.0}),
            ("proximal_adagrad", {"initial_accumulator": 0.0}),
            ("proximal_gradient_descent", {"l1": -1.0}),
        ],
    )
    def test_value_out_of_bounds_is_rejected(self, name, hyperparameters):
        (key,) = hyperparameters
        with pytest.raises(InvalidConfigError, match=key):
            build_optimizer(name, [torch.nn.Parameter(torch.ones(1))], 0.1, **hyperparameters)

    @every_optimizer
    def test_nonpositive_learning_rate_is_rejected(self, name):
        with pytest.raises(InvalidConfigError, match="learning_rate must be a number above 0; got -1"):
            build_optimizer(name, [torch.nn.Parameter(torch.ones(1))], -1.0)

    @pytest.mark.parametrize(
        ("optimizer", "wrong"),
        [
            (optimizers.Adam, {"lr": -1}),
            (optimizers.Adam, {"betas": (0.9, 1.0)}),
            (optimizers.Adam, {"eps": -1}),
            (optimizers.Momentum, {"momentum": -0.1}),
            (optimizers.Adagrad, {"initial_accumulator": 0.0}),
            (optimizers.Adadelta, {"rho": 1.0}),
            (optimizers.RMSprop, {"rho": 1.0}),
            (optimizers.RMSprop, {"momentum": -0.1}),
            (optimizers.Ftrl, {"lr": 0}),
            (optimizers.Ftrl, {"learning_rate_power": 0.1}),
            (optimizers.Ftrl, {"l2_shrinkage": -1}),
            (optimizers.ProximalAdagrad, {"initial_accumulator": 0}),
            (optimizers.ProximalAdagrad, {"l2": -1}),
            (optimizers.ProximalGradientDescent, {"l1": -1}),
        ],
    )
    def test_class_checks_its_hyperparameters_like_torch(self, optimizer, wrong):
        (key,) = wrong
        with pytest.raises(ValueError, match=f"^{key} must be"):
            optimizer([torch.nn.Parameter(torch.ones(1))], **wrong)

    def test_class_rejects_hyperparameters_of_others(self):
        with pytest.raises(TypeError, match="Adam has no hyperparameter rho"):
            optimizers.Adam([torch.nn.Parameter(torch.ones(1))], rho=0.5)
