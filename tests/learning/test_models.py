"""Models: sizes, initial weights, stacks and dropout."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tune_hpc.learning.config import complete
from tune_hpc.learning.models import Line, Softmax, build_model, parameter_type

NUM_PARAMETERS = {("line", 1.0): 2, ("softmax", 1.0): 7850, ("cnn", 1.0): 3_274_634}
#: conv1, conv2, hidden, output of the cnn: weights and biases of each member.
CNN_SHAPES = {
    1.0: [(32, 1, 5, 5), (32,), (64, 32, 5, 5), (64,), (1024, 3136), (1024,), (10, 1024), (10,)],
    0.5: [(16, 1, 5, 5), (16,), (32, 16, 5, 5), (32,), (512, 1568), (512,), (10, 512), (10,)],
    1e-9: [(1, 1, 5, 5), (1,), (1, 1, 5, 5), (1,), (1, 49), (1,), (10, 1), (10,)],
}
#: torch's layers of the models at width 0.2.
TORCH_LAYERS = {
    "softmax": lambda: [nn.Linear(784, 10)],
    "cnn": lambda: [nn.Conv2d(1, 6, 5), nn.Conv2d(6, 13, 5), nn.Linear(13 * 49, 205), nn.Linear(205, 10)],
}


def stack(model, members, **config):
    """Return a stack of models with one configuration, apart from the keys in ``members``."""
    return build_model([complete({"model": model, **config, **member}) for member in members])


def build(model, **config):
    return stack(model, [config])


def values(parameters):
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


class TestSizes:
    @pytest.mark.parametrize(("model", "width"), NUM_PARAMETERS)
    def test_number_of_parameters(self, model, width):
        assert values(build(model, width=width).parameters()).numel() == NUM_PARAMETERS[model, width]

    @pytest.mark.parametrize("num_members", [1, 3])
    @pytest.mark.parametrize("width", CNN_SHAPES)
    def test_width_scales_features_and_hidden_units_down_to_one(self, width, num_members):
        model = stack("cnn", [{}] * num_members, width=width)
        assert [tuple(parameter.shape) for parameter in model.parameters()] == [
            (num_members, *shape) for shape in CNN_SHAPES[width]
        ]
        assert model.num_hidden == CNN_SHAPES[width][5][0]
        assert model.num_activations == 784 * CNN_SHAPES[width][0][0]

    def test_depth_adds_convolutions_before_the_second_pooling(self):
        model = build("cnn", depth=2, width=0.1, initial_weights="pytorch", precision="float64")
        torch_layers = nn.Sequential(
            *(nn.Conv2d(1, 3, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, 6, 5, padding=2), nn.ReLU()),
            *(nn.Conv2d(6, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(6 * 49, 102), nn.ReLU(), nn.Linear(102, 10)),
        ).double()
        for single, stacked in zip(torch_layers.parameters(), model.parameters(), strict=True):
            single.data = stacked.data[0]
        images = torch.rand(1, 4, 1, 28, 28, dtype=torch.float64)
        assert model(images)[0].T.flatten().tolist() == pytest.approx(torch_layers(images[0]).flatten().tolist())

    def test_added_convolutions_have_more_products_than_parameters(self):
        plain, deep = build("cnn"), build("cnn", depth=4)
        assert values(deep.parameters()).numel() / values(plain.parameters()).numel() == pytest.approx(1.125, abs=0.001)
        num_flop = []
        for model in (plain, deep):
            with FlopCounterMode(display=False) as counter:
                model(torch.zeros(1, 1, 1, 28, 28))
            num_flop.append(counter.get_total_flops())
        assert num_flop[1] / num_flop[0] == pytest.approx(6.79, abs=0.01)

    @pytest.mark.parametrize("model", ["softmax", "cnn"])
    @pytest.mark.parametrize("num_members", [1, 2])
    def test_each_member_has_ten_logits_for_each_image(self, model, num_members):
        model = stack(model, [{}] * num_members, width=0.1)
        for num_streams in {1, num_members}:
            assert model(torch.rand(num_streams, 3, 1, 28, 28)).shape == (num_members, 10, 3)

    def test_each_line_has_one_value_for_each_point(self):
        assert stack("line", [{}] * 3)(torch.rand(2, 5)).shape == (3, 5)

    @pytest.mark.parametrize("model", ["line", "softmax", "cnn"])
    def test_float64_applies_to_parameters_and_outputs(self, model):
        network = build(model, precision="float64", width=0.1)
        inputs = torch.ones((2, 4) if model == "line" else (1, 2, 1, 28, 28), dtype=torch.float64)
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
        assert network(inputs).dtype == torch.float64

    def test_parameters_are_float32_except_in_float64(self):
        precisions = ["float32", "float64", "tf32", "bfloat16"]
        types = [torch.float32, torch.float64, torch.float32, torch.float32]
        assert [parameter_type(precision) for precision in precisions] == types
        for precision, expected in zip(precisions, types, strict=True):
            assert {parameter.dtype for parameter in build("softmax", precision=precision).parameters()} == {expected}


class TestInitialWeights:
    @pytest.mark.parametrize("precision", ["float32", "float64"])
    def test_line_starts_exactly_at_0_3_and_minus_0_3(self, precision):
        line = build("line", precision=precision)
        assert line.recorded_parameters == {"W": 0, "b": 1}
        dtype = getattr(torch, precision)
        assert torch.equal(line.coefficients, torch.tensor([[0.3, -0.3]], dtype=dtype))
        x = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]], dtype=dtype)
        assert line(x)[0].tolist() == pytest.approx([-0.3, 0.0, 0.3], abs=1e-7)

    def test_tutorial_weights_of_softmax_are_zero(self):
        assert not values(build("softmax").parameters()).any()

    def test_tutorial_weights_of_the_cnn_are_truncated_normal(self):
        for name, parameter in build("cnn").named_parameters():
            if name.endswith("bias"):
                assert (parameter == 0.1).all()
            else:
                assert parameter.abs().max() <= 0.2
                # The truncation reduces the deviation of 0.1 by a factor of 0.8796.
                assert parameter.std().item() == pytest.approx(0.08796, rel=0.05 if parameter.numel() > 1000 else 0.15)
                assert parameter.mean().item() == pytest.approx(0, abs=0.01)

    @pytest.mark.parametrize("model", TORCH_LAYERS)
    def test_pytorch_weights_are_those_of_torch_layers(self, model):
        torch.manual_seed(5)
        layers = TORCH_LAYERS[model]()
        expected = values(parameter for layer in layers for parameter in layer.parameters())
        actual = values(build(model, initial_weights="pytorch", seed=5, width=0.2).parameters())
        assert torch.equal(actual, expected)
        assert not torch.equal(actual, values(build(model, seed=5, width=0.2).parameters()))

    @pytest.mark.parametrize("model", ["softmax", "cnn"])
    @pytest.mark.parametrize("initial_weights", ["tutorial", "pytorch"])
    def test_seed_determines_the_initial_weights(self, model, initial_weights):
        first, again, other = (
            values(build(model, seed=seed, width=0.1, initial_weights=initial_weights).parameters())
            for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert torch.equal(first, other) == (model == "softmax" and initial_weights == "tutorial")

    @pytest.mark.parametrize("model", ["line", "softmax", "cnn"])
    def test_each_member_has_the_same_initial_weights_as_alone(self, model):
        members = [
            {"initial_weights": initial_weights, "seed": seed}
            for initial_weights, seed in itertools.product(("pytorch", "tutorial"), (4, 1, 4))
        ]
        whole = stack(model, members, width=0.1)
        for number, member in enumerate(members):
            alone = build(model, width=0.1, **member)
            assert [name for name, _ in whole.named_parameters()] == [name for name, _ in alone.named_parameters()]
            member_parameters = (parameter[number] for parameter in whole.parameters())
            assert torch.equal(values(member_parameters), values(alone.parameters()))

    def test_initial_weights_of_both_precisions_agree(self):
        single, double = (
            values(build("cnn", width=0.1, precision=name).parameters()) for name in ("float32", "float64")
        )
        assert torch.equal(single.double(), double)

    @pytest.mark.parametrize("initial_weights", ["tutorial", "pytorch"])
    def test_global_generator_is_restored(self, initial_weights):
        torch.manual_seed(11)
        before = torch.get_rng_state()
        build("cnn", width=0.1, seed=3, initial_weights=initial_weights)
        assert torch.equal(torch.get_rng_state(), before)


class TestMembers:
    @pytest.mark.parametrize("model", ["softmax", "cnn"])
    @pytest.mark.parametrize("num_streams", [1, 3], ids=["shared_images", "separate_images"])
    def test_each_member_computes_the_same_as_alone(self, model, num_streams):
        members = [{"seed": seed} for seed in (3, 1, 2)]
        config = {"width": 0.1, "precision": "float64", "initial_weights": "pytorch"}
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(num_streams, 4, 1, 28, 28, dtype=torch.float64, generator=generator)
        logits = stack(model, members, **config)(images)
        for number, member in enumerate(members):
            member_images = images[[number if num_streams > 1 else 0]]
            expected = build(model, **config, **member)(member_images)
            torch.testing.assert_close(logits[[number]], expected, rtol=0, atol=1e-14)

    def test_lines_of_a_stack_are_independent(self):
        lines = stack("line", [{}] * 3, precision="float64")
        with torch.no_grad():
            lines.coefficients.copy_(torch.tensor([[1, 2], [0, 1], [-1, 0.5]]))
        x = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
        assert lines(x).tolist() == [[2, 3, 4], [1, 1, 1], [0.5, -0.5, -1.5]]


class TestDropout:
    @pytest.fixture
    def cnn(self):
        return build("cnn", width=0.1, precision="float64")

    @pytest.fixture
    def pictures(self):
        return torch.rand(1, 4, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def test_mask_of_ones_has_no_effect(self, cnn, pictures):
        assert torch.equal(cnn(pictures, torch.ones(1, cnn.num_hidden, 4, dtype=torch.float64)), cnn(pictures))

    def test_mask_of_zeros_leaves_the_output_bias(self, cnn, pictures):
        logits = cnn(pictures, torch.zeros(1, cnn.num_hidden, 4, dtype=torch.float64))
        assert torch.equal(logits, cnn.output.bias[:, :, None].expand(1, 10, 4))

    def test_mask_multiplies_each_hidden_unit(self, cnn, pictures):
        mask = torch.zeros(1, cnn.num_hidden, 4, dtype=torch.float64)
        mask[:, 7] = 2.0
        with torch.no_grad():
            logits = cnn(pictures, mask)
            cnn.output.weight[:, :, :7] = cnn.output.weight[:, :, 8:] = 0
            bias = cnn.output.bias[:, :, None]
            expected = 2 * (cnn(pictures) - bias) + bias
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-13)

    def test_mask_of_one_member_does_not_affect_others(self, pictures):
        cnns = stack("cnn", [{}] * 3, width=0.1, precision="float64")
        mask = torch.ones(3, cnns.num_hidden, 4, dtype=torch.float64)
        mask[1] = 0
        logits, unmasked = cnns(pictures, mask), cnns(pictures)
        assert torch.equal(logits[1], cnns.output.bias[1, :, None].expand(10, 4))
        assert torch.equal(logits[[0, 2]], unmasked[[0, 2]])

    def test_output_is_the_same_in_training_and_evaluation_mode(self, cnn, pictures):
        assert torch.equal(cnn.train()(pictures), cnn.eval()(pictures))

    def test_models_without_hidden_units_ignore_the_mask(self):
        assert (Line().num_hidden, Softmax().num_hidden) == (0, 0)
        pictures, softmax = torch.rand(1, 4, 1, 28, 28), build("softmax", initial_weights="pytorch")
        assert torch.equal(softmax(pictures, torch.zeros(1, 10, 4)), softmax(pictures))
