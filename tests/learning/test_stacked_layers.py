"""Stacked layers, compared with torch."""

import pytest
import torch
from torch.nn import functional

from tune_hpc.learning.models import FEW_OUTPUTS, StackedConv2d, StackedLinear

NUM_MEMBERS = 3


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def random(*shape):
    return (torch.rand(*shape, dtype=torch.float64) - 0.5).requires_grad_()


def filled(layer):
    """Return the layer with random float64 parameters for three members."""
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, torch.nn.Parameter(random(NUM_MEMBERS, *parameter.shape[1:])))
    return layer


def assert_same_function(outputs, expected, arguments):
    """Compare the values and the gradients of each argument."""
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-12)
    weighting = random(*expected.shape)
    actual, by_torch = (torch.autograd.grad((one * weighting).sum(), arguments) for one in (outputs, expected))
    torch.testing.assert_close(actual, by_torch, rtol=0, atol=1e-12)


class TestStackedLinear:
    @pytest.mark.parametrize("num_outputs", [1, 10, FEW_OUTPUTS, FEW_OUTPUTS + 1, 40])
    @pytest.mark.parametrize("num_streams", [1, NUM_MEMBERS], ids=["shared_inputs", "separate_inputs"])
    def test_members_match_torch_layers(self, num_streams, num_outputs):
        layer, inputs = filled(StackedLinear(20, num_outputs)), random(num_streams, 20, 6)
        expected = [
            functional.linear(inputs[member % num_streams].T, layer.weight[member], layer.bias[member]).T
            for member in range(NUM_MEMBERS)
        ]
        assert_same_function(layer(inputs), torch.stack(expected), [inputs, *layer.parameters()])


class TestStackedConv2d:
    @pytest.mark.parametrize("kernel_size", [1, 3, 5])
    @pytest.mark.parametrize("num_inputs", [1, 2])
    @pytest.mark.parametrize("num_streams", [1, NUM_MEMBERS], ids=["shared_images", "separate_images"])
    def test_members_match_torch_layers(self, num_streams, num_inputs, kernel_size):
        layer, images = filled(StackedConv2d(num_inputs, 4, kernel_size)), random(5, num_streams * num_inputs, 8, 9)
        member_images = images.split(num_inputs, dim=1)
        expected = [
            functional.conv2d(
                member_images[member % num_streams], layer.weight[member], layer.bias[member], padding=kernel_size // 2
            )
            for member in range(NUM_MEMBERS)
        ]
        assert_same_function(layer(images), torch.cat(expected, dim=1), [images, *layer.parameters()])
