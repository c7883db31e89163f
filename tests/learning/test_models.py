import pytest
import torch

from tune_hpc.learning.config import complete
from tune_hpc.learning.models import CNN, Line, Softmax, build_model

NUM_PARAMETERS = {("line", 1.0): 2, ("softmax", 1.0): 7850, ("cnn", 1.0): 3_274_634}
#: conv1, conv2, hidden, output of the cnn: weights and biases.
CNN_SHAPES = {
    1.0: [(32, 1, 5, 5), (32,), (64, 32, 5, 5), (64,), (1024, 3136), (1024,), (10, 1024), (10,)],
    0.5: [(16, 1, 5, 5), (16,), (32, 16, 5, 5), (32,), (512, 1568), (512,), (10, 512), (10,)],
    1e-9: [(1, 1, 5, 5), (1,), (1, 1, 5, 5), (1,), (1, 49), (1,), (10, 1), (10,)],
}


def build(model, **config):
    return build_model(complete({"model": model, **config}))


def values(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class TestSizes:
    @pytest.mark.parametrize(("model", "width"), NUM_PARAMETERS)
    def test_the_numbers_of_parameters_are_the_known_ones(self, model, width):
        assert values(build(model, width=width)).numel() == NUM_PARAMETERS[model, width]

    @pytest.mark.parametrize("width", CNN_SHAPES)
    def test_width_scales_features_and_hidden_units_but_leaves_at_least_one(self, width):
        model = build("cnn", width=width)
        assert [tuple(parameter.shape) for parameter in model.parameters()] == CNN_SHAPES[width]
        assert model.num_hidden == CNN_SHAPES[width][5][0]

    def test_images_become_ten_logits(self):
        images = torch.rand(3, 1, 28, 28)
        assert build("softmax")(images).shape == build("cnn", width=0.1)(images).shape == (3, 10)

    @pytest.mark.parametrize("model", ["line", "softmax", "cnn"])
    def test_float64_goes_all_the_way(self, model):
        network = build(model, precision="float64", width=0.1)
        points = torch.ones(2, 1, 28, 28, dtype=torch.float64)
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
        assert network(points).dtype == torch.float64


class TestInitialWeights:
    @pytest.mark.parametrize("precision", ["float32", "float64"])
    def test_the_line_starts_at_0_3_and_minus_0_3_to_the_last_bit(self, precision):
        line = build("line", precision=precision)
        assert line.traced == {"W": "weight", "b": "bias"}
        assert torch.equal(values(line), torch.tensor([0.3, -0.3], dtype=getattr(torch, precision)))
        assert line(torch.tensor([0.0, 1.0, 2.0])).tolist() == pytest.approx([-0.3, 0.0, 0.3], abs=1e-7)

    def test_the_tutorial_s_softmax_starts_at_zero(self):
        assert not values(build("softmax")).any()

    def test_the_tutorial_s_cnn_starts_from_a_normal_cut_at_two_deviations(self):
        for name, parameter in build("cnn").named_parameters():
            if name.endswith("bias"):
                assert (parameter == 0.1).all()
            else:
                assert parameter.abs().max() <= 0.2
                # A normal of deviation 0.1, cut there, keeps 0.8796 of its deviation.
                assert parameter.std().item() == pytest.approx(0.08796, rel=0.05 if parameter.numel() > 1000 else 0.15)
                assert parameter.mean().item() == pytest.approx(0, abs=0.01)

    @pytest.mark.parametrize(("model", "kind"), [("softmax", Softmax), ("cnn", lambda: CNN(0.2))])
    def test_pytorch_s_own_are_those_of_its_layers(self, model, kind):
        torch.manual_seed(5)
        expected = values(kind())
        actual = values(build(model, initial_weights="pytorch", seed=5, width=0.2))
        assert torch.equal(actual, expected)
        assert not torch.equal(actual, values(build(model, seed=5, width=0.2)))

    @pytest.mark.parametrize("model", ["softmax", "cnn"])
    @pytest.mark.parametrize("initial_weights", ["tutorial", "pytorch"])
    def test_the_seed_determines_them(self, model, initial_weights):
        first, again, other = (
            values(build(model, seed=seed, width=0.1, initial_weights=initial_weights)) for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert torch.equal(first, other) == (model == "softmax" and initial_weights == "tutorial")

    def test_the_precision_changes_no_more_than_the_rounding(self):
        single, double = (values(build("cnn", width=0.1, precision=name)) for name in ("float32", "float64"))
        assert torch.equal(single.double(), double)

    @pytest.mark.parametrize("initial_weights", ["tutorial", "pytorch"])
    def test_the_global_generator_is_left_as_it_was(self, initial_weights):
        torch.manual_seed(11)
        before = torch.get_rng_state()
        build("cnn", width=0.1, seed=3, initial_weights=initial_weights)
        assert torch.equal(torch.get_rng_state(), before)


class TestDropout:
    @pytest.fixture
    def cnn(self):
        return build("cnn", width=0.1, precision="float64")

    @pytest.fixture
    def pictures(self):
        return torch.rand(4, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def test_a_mask_of_ones_is_no_mask(self, cnn, pictures):
        assert torch.equal(cnn(pictures, torch.ones(4, cnn.num_hidden, dtype=torch.float64)), cnn(pictures))

    def test_a_mask_of_zeros_leaves_the_output_s_bias(self, cnn, pictures):
        logits = cnn(pictures, torch.zeros(4, cnn.num_hidden, dtype=torch.float64))
        assert torch.equal(logits, cnn.output.bias.expand(4, 10))

    def test_a_mask_multiplies_each_hidden_unit(self, cnn, pictures):
        mask = torch.zeros(4, cnn.num_hidden, dtype=torch.float64)
        mask[:, 7] = 2.0
        with torch.no_grad():
            logits = cnn(pictures, mask)
            cnn.output.weight[:, :7] = cnn.output.weight[:, 8:] = 0
            expected = 2 * (cnn(pictures) - cnn.output.bias) + cnn.output.bias
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-13)

    def test_the_same_input_gives_the_same_output_in_training_and_evaluation(self, cnn, pictures):
        assert torch.equal(cnn.train()(pictures), cnn.eval()(pictures))

    def test_models_without_hidden_units_have_nothing_to_drop(self):
        assert (Line().num_hidden, Softmax().num_hidden) == (0, 0)
        pictures, softmax = torch.rand(4, 1, 28, 28), build("softmax", initial_weights="pytorch")
        assert torch.equal(softmax(pictures, torch.zeros(4, 10)), softmax(pictures))
