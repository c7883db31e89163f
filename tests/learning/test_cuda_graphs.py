"""Steps that are recorded once and replayed, on a CPU with a recorder that calls the step again."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.learning.fused_configs import FUSED_CONFIGS
from tests.learning.training_runs import same_bits
from tune_hpc.learning.communicator import Communicator
from tune_hpc.learning.config import complete
from tune_hpc.learning.cuda_graphs import NUM_EAGER_STEPS
from tune_hpc.learning.training import Training

CPU = torch.device("cpu")
#: In several calls, and with windows of 8 steps some of them shorter and some longer than that.
CALLS = ((0, 2), (2, 9), (9, 10), (10, 30))
every_bundle = pytest.mark.parametrize("name", FUSED_CONFIGS)


class FakeRecorder:
    """Records nothing: a replay is another call. Counts what it is asked for."""

    def __init__(self):
        self.num_eager = self.num_replays = 0
        self.generators = None

    @contextmanager
    def eager_stream(self):
        self.num_eager += 1
        yield

    def record(self, step, generators):
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
    """All curves of some calls, and the evaluations after each."""
    curves, evaluations = [], []
    for first, last in calls:
        curves.append(stack.run(first, last))
        evaluations.append(stack.evaluate())
    return np.concatenate(curves, axis=2), evaluations


@pytest.fixture
def _small_windows(monkeypatch):
    monkeypatch.setattr(Training, "WINDOW", 8)


class TestRecordedSteps:
    @pytest.mark.usefixtures("_small_windows")
    @pytest.mark.parametrize(
        ("name", "precision"), [*itertools.product(("line", "softmax"), ("float32", "float64")), ("cnn", "float32")]
    )
    def test_they_are_the_eager_ones_to_the_last_bit(self, images, name, precision):
        # Not so a member whose optimizer, Adadelta, is no other's: see below.
        members = [
            member | {"precision": precision}
            for member in FUSED_CONFIGS[name]
            if (name, member["optimizer"]) != ("cnn", "adadelta")
        ]
        eager, recorded = start(members, images), start(members, images, recorder=FakeRecorder())
        (curves, evaluations), (recorded_curves, recorded_evaluations) = walk(eager), walk(recorded)
        assert np.array_equal(recorded_curves, curves)
        assert recorded_evaluations == evaluations
        assert same_bits(recorded.model.parameters(), eager.model.parameters())

    @pytest.mark.parametrize("optimizer", ["gradient_descent", "adadelta", "proximal_gradient_descent"])
    def test_where_one_is_alone_a_step_down_is_rounded_twice_instead_of_once(self, images, optimizer):
        # A step times a number is subtracted in one go; times a tensor, which a recording needs, in two.
        members = [member | {"precision": "float64"} for member in FUSED_CONFIGS["softmax"]]
        (member,) = (member for member in members[:10] if member["optimizer"] == optimizer)
        eager, recorded = (walk(start([member], images, recorder=recorder))[0] for recorder in (None, FakeRecorder()))
        # Seen: up to 8e-16.
        np.testing.assert_allclose(recorded, eager, rtol=1e-13)

    @pytest.mark.parametrize(
        "calls", [CALLS, ((0, 1), (1, 2), (2, 3), (3, 4), (4, 30)), ((0, 30),)], ids=["calls", "singly", "at_once"]
    )
    @pytest.mark.parametrize("window", [1, 2, 8, 1024])
    def test_the_first_are_eager_and_all_others_are_replays_of_one_recording(self, images, monkeypatch, window, calls):
        members = FUSED_CONFIGS["softmax"][:4]
        expected, _ = walk(start(members, images, recorder=FakeRecorder()), [(0, 30)])
        monkeypatch.setattr(Training, "WINDOW", window)
        recorder = FakeRecorder()
        curves, _ = walk(start(members, images, recorder=recorder), calls)
        assert (recorder.num_eager, recorder.num_replays) == (NUM_EAGER_STEPS, 30 - NUM_EAGER_STEPS)
        assert np.array_equal(curves, expected)

    def test_nothing_is_recorded_for_a_few_steps(self, images):
        recorder = FakeRecorder()
        start(FUSED_CONFIGS["cnn"], images, recorder=recorder).run(0, NUM_EAGER_STEPS)
        assert (recorder.num_eager, recorder.generators) == (NUM_EAGER_STEPS, None)

    @every_bundle
    def test_what_a_step_draws_from_is_handed_over(self, images, name):
        recorder = FakeRecorder()
        stack = start(FUSED_CONFIGS[name], images, recorder=recorder)
        stack.run(0, NUM_EAGER_STEPS + 1)
        assert recorder.generators is stack.task.generators
        # A generator for each of the three seeds.
        assert len(recorder.generators) == (3 if name == "cnn" else 0)

    @pytest.mark.usefixtures("_small_windows")
    @every_bundle
    def test_they_go_on_from_a_state_before_and_after_the_recording(self, images, name):
        members = FUSED_CONFIGS[name]
        whole = start(members, images, recorder=FakeRecorder())
        expected, _ = walk(whole)
        for middle in (2, 17):
            first, second = (start(members, images, recorder=FakeRecorder()) for _ in range(2))
            begin = first.run(0, middle)
            second.load_state_dict(first.state_dict())
            # Loaded into one that has recorded already, too.
            first.run(middle, 22)
            first.load_state_dict(second.state_dict())
            for one in (first, second):
                assert np.array_equal(np.concatenate([begin, one.run(middle, 30)], axis=2), expected)
                assert same_bits(one.model.parameters(), whole.model.parameters())

    def test_a_curve_already_returned_does_not_change_with_the_next_call(self, images):
        stack = start(FUSED_CONFIGS["line"], images, recorder=FakeRecorder())
        before = stack.run(0, 10)
        kept = before.copy()
        stack.run(10, 20)
        assert np.array_equal(before, kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestCuda:
    device = torch.device("cuda")

    def members(self, name, precision="float64"):
        # The cnn at a fifth of its rates: at the full ones it learns so fast that it makes much of a rounding.
        factor = 0.2 if name == "cnn" else 1.0
        return [
            member | {"precision": precision, "learning_rate": factor * member["learning_rate"]}
            for member in FUSED_CONFIGS[name]
        ]

    @every_bundle
    def test_replays_are_eager_steps(self, images, name):
        eager = start(self.members(name), images, self.device, communicator=Communicator(allow_cuda_graphs=False))
        recorded = start(self.members(name), images, self.device)
        (curves, evaluations), (recorded_curves, recorded_evaluations) = walk(eager), walk(recorded)
        # CUDA's fused kernels take a rate that is on the device in single precision. On a CPU, rates so rounded changed
        # curves by up to 7e-7.
        np.testing.assert_allclose(recorded_curves, curves, rtol=1e-5, atol=1e-7)
        for one, other in zip(recorded_evaluations, evaluations, strict=True):
            for metric in one:
                np.testing.assert_allclose(one[metric], other[metric], rtol=1e-5)
        for one, other in zip(recorded.model.parameters(), eager.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)

    @every_bundle
    def test_a_member_of_a_bundle_learns_what_it_does_alone(self, images, name):
        members = self.members(name)
        together = start(members, images, self.device)
        curves, evaluations = walk(together)
        for number, member in enumerate(members):
            alone, own_evaluations = walk(start([member], images, self.device))
            np.testing.assert_allclose(curves[:, [number]], alone, rtol=1e-6, atol=1e-12)
            for one, own in zip(evaluations, own_evaluations, strict=True):
                for metric, (value,) in own.items():
                    assert one[metric][number] == pytest.approx(value, rel=1e-6)

    @pytest.mark.parametrize("precision", ["float32", "float64", "tf32", "bfloat16"])
    def test_products_are_shorter_where_the_configuration_says_so_and_nowhere_else(self, images, precision):
        stack = start(self.members("cnn", precision=precision), images, self.device)
        seen = []
        stack.model.register_forward_pre_hook(
            lambda *_: seen.append(
                (
                    torch.backends.cuda.matmul.fp32_precision,
                    torch.backends.cudnn.conv.fp32_precision,
                    torch.is_autocast_enabled("cuda"),
                )
            )
        )
        curves, _ = walk(stack)
        flag = "tf32" if precision == "tf32" else "ieee"
        assert set(seen) == {(flag, flag, precision == "bfloat16")}
        assert np.isfinite(curves).all()

    def test_single_precision_is_what_it_is_on_a_cpu(self, images):
        members = self.members("softmax", precision="float32")
        curves, expected = (walk(start(members, images, device))[0] for device in (self.device, CPU))
        np.testing.assert_allclose(curves, expected, rtol=1e-3, atol=1e-5)
