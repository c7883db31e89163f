"""Optimizers of a stack, compared with separate ones."""

import numpy as np
import pytest
import torch

from tune_hpc.learning.config import OPTIMIZER_DEFAULTS, complete
from tune_hpc.learning.optimizers import build_optimizer
from tune_hpc.learning.optimizers.elementwise import ElementwiseOptimizer
from tune_hpc.learning.optimizers.stacked import OptimizerStack, learning_rates, stack_order

SHAPES = [(2, 3), (4,)]
EPOCHS = np.array([0, 0, 1, 1, 2, 5, 5])
STEPS = np.arange(7)


def configs_of(members):
    completed = [complete(member) for member in members]
    return [completed[number] for number in stack_order(completed)]


def random(num_members):
    """Return random stacked tensors of each shape."""
    return [torch.rand(num_members, *shape, dtype=torch.float64) - 0.5 for shape in SHAPES]


def walk_together(configs, initial, gradients, rates_on_device):
    parameters = [torch.nn.Parameter(one.clone()) for one in initial]
    optimizers = OptimizerStack(configs, parameters, rates_on_device)
    for step_rates, step_gradients in zip(
        zip(*optimizers.rates(STEPS, EPOCHS, 7), strict=True), gradients, strict=True
    ):
        for parameter, gradient in zip(parameters, step_gradients, strict=True):
            parameter.grad = gradient
        optimizers.step(step_rates)
    return [parameter.detach() for parameter in parameters]


def walk_alone(config, member, initial, gradients):
    parameters = [torch.nn.Parameter(one[member].clone()) for one in initial]
    hyperparameters = {name: config[name] for name in OPTIMIZER_DEFAULTS[config["optimizer"]]}
    optimizer = build_optimizer(config["optimizer"], parameters, config["learning_rate"], **hyperparameters)
    for rate, step_gradients in zip(learning_rates(config, STEPS, EPOCHS, 7), gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(parameters, step_gradients, strict=True):
            parameter.grad = gradient[member].clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


class TestOptimizerStack:
    @pytest.mark.parametrize("rates_on_device", [False, True], ids=["rates_on_host", "rates_on_device"])
    @pytest.mark.parametrize("piece", [4, 7, 131_072], ids=lambda piece: f"piece_{piece}")
    @pytest.mark.parametrize(
        "members",
        [
            [{"optimizer": name, "learning_rate": 0.03 * rate, "decay_rate": 0.9} for rate in (1, 1, 1)]
            + [{"optimizer": other, "learning_rate": 0.07 * rate, "decay_rate": 1 - 0.1 * rate} for rate in (1, 2)]
            for name, other in zip(OPTIMIZER_DEFAULTS, reversed(OPTIMIZER_DEFAULTS), strict=True)
        ],
        ids=OPTIMIZER_DEFAULTS,
    )
    def test_each_member_is_updated_like_by_a_separate_optimizer(self, monkeypatch, members, piece, rates_on_device):
        monkeypatch.setattr(ElementwiseOptimizer, "PIECE", piece)
        torch.manual_seed(0)
        configs = configs_of(members)
        initial, gradients = random(5), [random(5) for _ in EPOCHS]
        together = walk_together(configs, initial, gradients, rates_on_device)
        for member, config in enumerate(configs):
            alone = walk_alone(config, member, initial, gradients)
            torch.testing.assert_close([one[member] for one in together], alone, rtol=0, atol=1e-14)

    def test_gradient_with_another_memory_layout_gives_the_same_update(self):
        torch.manual_seed(0)
        configs = configs_of([{"optimizer": "adam"}, {"optimizer": "momentum"}])
        initial, gradients = random(2), [random(2) for _ in EPOCHS]
        turned = [[one.mT.contiguous().mT if one.ndim == 3 else one for one in own] for own in gradients]
        for expected, actual in zip(
            *(walk_together(configs, initial, own, False) for own in (gradients, turned)), strict=True
        ):
            assert torch.equal(actual, expected)

    def test_adam_rates_include_the_bias_corrections(self):
        configs = configs_of([{"optimizer": "adam", "learning_rate": 0.1, "decay_rate": 0.5}])
        (rates,) = OptimizerStack(configs, random(1)).rates(np.array([10, 11]), np.array([0, 1]), 20)
        expected = [0.1 * 0.5**epoch * (1 - 0.999**n) ** 0.5 / (1 - 0.9**n) for epoch, n in ((0, 11), (1, 12))]
        assert rates == pytest.approx(expected, rel=1e-14)


class TestStackOrder:
    def test_members_with_one_optimizer_are_adjacent_in_stable_order(self):
        names = ["adam", "ftrl", "adam", "momentum", "ftrl", "adam"]
        assert stack_order([complete({"optimizer": name}) for name in names]) == [0, 2, 5, 1, 4, 3]

    def test_hyperparameters_split_slices_but_rates_and_seeds_do_not(self):
        members = [
            {},
            {"beta1": 0.5},
            {"learning_rate": 0.5, "decay_rate": 0.9, "seed": 3},
            {"beta1": 0.5, "dropout": 0.5},
            {"epsilon": 1e-8},
        ]
        assert stack_order([complete({"optimizer": "adam", **member}) for member in members]) == [0, 2, 4, 1, 3]


def test_state_without_momentum_is_restored_with_momentum():
    start = {"optimizer": "momentum", "model": "line", "learning_rate": 0.1}
    parameters = [torch.nn.Parameter(one) for one in random(1)]
    saved = OptimizerStack(configs_of([start | {"momentum": 0.0}]), parameters, False).state_dict()
    restored = OptimizerStack(configs_of([start | {"momentum": 0.9}]), parameters, False)
    restored.load_state_dict(saved)
    (slots,) = restored.state_dict()["slots"]
    assert [float(slot.abs().max()) for slot in slots["momentum_buffer"]] == [0.0, 0.0]
