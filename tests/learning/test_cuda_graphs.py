"""Captured steps, on a CPU with a fake capture that calls the step again."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.learning.fused_configs import FUSED_CONFIGS
from tests.learning.training_runs import needs_cuda, same_bits
from tune_hpc.learning.config import complete
from tune_hpc.learning.cuda_graphs import NUM_EAGER_STEPS
from tune_hpc.learning.training import Communicator, Training

CPU = torch.device("cpu")
#: Calls of ``run``, some shorter and some longer than a window of 8 steps.
CALLS = ((0, 2), (2, 9), (9, 10), (10, 30))
every_model = pytest.mark.parametrize("name", FUSED_CONFIGS)


class FakeCapture:
    """A capture whose replay calls the step; it counts eager steps and replays."""

    def __init__(self):
        self.num_eager = self.num_replays = 0
        self.generators = None

    @contextmanager
    def eager_stream(self):
        self.num_eager += 1
        yield

    def capture(self, step, generators):
        assert self.generators is None
        self.generators = generators

        def replay():
            self.num_replays += 1
            step()

        return replay


def start(members, images, device=CPU, **kwargs):
    configs = [complete(member) for member in members]
    return Training(configs, None if configs[0]["model"] == "line" else images, device, **kwargs)


def walk(stack, calls=CALLS):
    """Return the curves of several calls, and the evaluations after each."""
    curves, evaluations = [], []
    for first, last in calls:
        curves.append(stack.run(first, last))
        evaluations.append(stack.evaluate())
    return np.concatenate(curves, axis=2), evaluations


@pytest.fixture
def _small_windows(monkeypatch):
    monkeypatch.setattr(Training, "WINDOW", 8)


class TestCapturedSteps:
    @pytest.mark.usefixtures("_small_windows")
    @pytest.mark.parametrize(
        ("name", "precision"), [*itertools.product(("line", "softmax"), ("float32", "float64")), ("cnn", "float32")]
    )
    def test_captured_steps_equal_eager_steps_to_the_bit(self, images, name, precision):
        # A single member with an optimizer, here Adadelta, is rounded differently; see below.
        members = [
            member | {"precision": precision}
            for member in FUSED_CONFIGS[name]
            if (name, member["optimizer"]) != ("cnn", "adadelta")
        ]
        eager, captured = start(members, images), start(members, images, graph_capture=FakeCapture())
        (curves, evaluations), (captured_curves, captured_evaluations) = walk(eager), walk(captured)
        assert np.array_equal(captured_curves, curves)
        assert captured_evaluations == evaluations
        assert same_bits(captured.model.parameters(), eager.model.parameters())

    @pytest.mark.parametrize("optimizer", ["gradient_descent", "adadelta", "proximal_gradient_descent"])
    def test_single_member_with_a_rate_tensor_is_rounded_twice(self, images, optimizer):
        # The product of a step and a number is subtracted in one operation; that with a tensor in two.
        members = [member | {"precision": "float64"} for member in FUSED_CONFIGS["softmax"]]
        (member,) = (member for member in members[:10] if member["optimizer"] == optimizer)
        eager, captured = (walk(start([member], images, graph_capture=capture))[0] for capture in (None, FakeCapture()))
        # Observed: up to 8e-16.
        np.testing.assert_allclose(captured, eager, rtol=1e-13)

    @pytest.mark.parametrize(
        "calls", [CALLS, ((0, 1), (1, 2), (2, 3), (3, 4), (4, 30)), ((0, 30),)], ids=["calls", "singly", "at_once"]
    )
    @pytest.mark.parametrize("window", [1, 2, 8, 1024])
    def test_first_steps_are_eager_and_others_replay_one_capture(self, images, monkeypatch, window, calls):
        members = FUSED_CONFIGS["softmax"][:4]
        expected, _ = walk(start(members, images, graph_capture=FakeCapture()), [(0, 30)])
        monkeypatch.setattr(Training, "WINDOW", window)
        capture = FakeCapture()
        curves, _ = walk(start(members, images, graph_capture=capture), calls)
        assert (capture.num_eager, capture.num_replays) == (NUM_EAGER_STEPS, 30 - NUM_EAGER_STEPS)
        assert np.array_equal(curves, expected)

    def test_few_steps_are_not_captured(self, images):
        capture = FakeCapture()
        start(FUSED_CONFIGS["cnn"], images, graph_capture=capture).run(0, NUM_EAGER_STEPS)
        assert (capture.num_eager, capture.generators) == (NUM_EAGER_STEPS, None)

    @every_model
    def test_capture_gets_the_generators_of_the_task(self, images, name):
        capture = FakeCapture()
        stack = start(FUSED_CONFIGS[name], images, graph_capture=capture)
        stack.run(0, NUM_EAGER_STEPS + 1)
        assert capture.generators is stack.task.generators
        # A generator for each of the three seeds.
        assert len(capture.generators) == (3 if name == "cnn" else 0)

    @pytest.mark.slow
    @pytest.mark.usefixtures("_small_windows")
    @every_model
    def test_state_is_restored_before_and_after_the_capture(self, images, name):
        members = FUSED_CONFIGS[name]
        whole = start(members, images, graph_capture=FakeCapture())
        expected, _ = walk(whole)
        for middle in (2, 17):
            first, second = (start(members, images, graph_capture=FakeCapture()) for _ in range(2))
            begin = first.run(0, middle)
            second.load_state_dict(first.state_dict())
            # A training with a capture loads the state, too.
            first.run(middle, 22)
            first.load_state_dict(second.state_dict())
            for resumed in (first, second):
                assert np.array_equal(np.concatenate([begin, resumed.run(middle, 30)], axis=2), expected)
                assert same_bits(resumed.model.parameters(), whole.model.parameters())

    def test_next_call_does_not_change_returned_curves(self, images):
        stack = start(FUSED_CONFIGS["line"], images, graph_capture=FakeCapture())
        returned = stack.run(0, 10)
        copy = returned.copy()
        stack.run(10, 20)
        assert np.array_equal(returned, copy)


@needs_cuda
class TestCuda:
    device = torch.device("cuda")

    def members(self, name, precision="float64"):
        # A fifth of the rates of the cnn: at the full rates it amplifies rounding.
        factor = 0.2 if name == "cnn" else 1.0
        return [
            member | {"precision": precision, "learning_rate": factor * member["learning_rate"]}
            for member in FUSED_CONFIGS[name]
        ]

    @every_model
    def test_replayed_steps_match_eager_steps(self, images, name):
        eager = start(self.members(name), images, self.device, communicator=Communicator(allow_cuda_graphs=False))
        captured = start(self.members(name), images, self.device)
        (curves, evaluations), (captured_curves, captured_evaluations) = walk(eager), walk(captured)
        # CUDA's fused kernels take rates on the device in float32. On a CPU such rates changed curves by up to 7e-7.
        np.testing.assert_allclose(captured_curves, curves, rtol=1e-5, atol=1e-7)
        for actual, expected in zip(captured_evaluations, evaluations, strict=True):
            for metric in actual:
                np.testing.assert_allclose(actual[metric], expected[metric], rtol=1e-5)
        for parameter, expected in zip(captured.model.parameters(), eager.model.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-7)

    @every_model
    def test_fused_member_learns_the_same_as_alone(self, images, name):
        members = self.members(name)
        together = start(members, images, self.device)
        curves, evaluations = walk(together)
        for number, member in enumerate(members):
            single_curves, single_evaluations = walk(start([member], images, self.device))
            np.testing.assert_allclose(curves[:, [number]], single_curves, rtol=1e-6, atol=1e-12)
            for fused, single in zip(evaluations, single_evaluations, strict=True):
                for metric, (value,) in single.items():
                    assert fused[metric][number] == pytest.approx(value, rel=1e-6)

    def test_float32_agrees_with_the_cpu(self, images):
        members = self.members("softmax", precision="float32")
        curves, expected = (walk(start(members, images, device))[0] for device in (self.device, CPU))
        np.testing.assert_allclose(curves, expected, rtol=1e-3, atol=1e-5)
