"""Models of the report: a line, softmax regression, and the convolutional network of TensorFlow's tutorial.

Every model is a stack: its parameters have a leading axis of M members, and a single model is a stack of one, as fast
as ordinary layers. A model is a pure function of its inputs, dropout mask and parameters. An input that all members
share is read once: M small products become one wide product.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tune_hpc.learning.config import IMAGE_SIDE

#: Maximum number of outputs for the product with samples along memory. With ten outputs it is twice as fast on one CPU
#: core; with more outputs and small batches it is slower.
FEW_OUTPUTS = 16


class _StackedLayer(nn.Module):
    """M layers of torch: ``weight`` (M, out, in, ...) and ``bias`` (M, out)."""

    def __init__(self, single: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        assert single.bias is not None
        self.weight = nn.Parameter(single.weight.detach()[None])
        self.bias = nn.Parameter(single.bias.detach()[None])


class StackedLinear(_StackedLayer):
    """M affine maps. Features precede samples, so that the next operation, such as a softmax, runs along memory."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(nn.Linear(num_inputs, num_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (M, out, N) of inputs (M, in, N), or (1, in, N) if all members share them."""
        if inputs.shape[0] > 1:
            return torch.baddbmm(self.bias[:, :, None], self.weight, inputs)
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
        if self.bias.shape[1] <= FEW_OUTPUTS:
            wide = torch.addmm(bias[:, None], weight, inputs[0])
        else:
            wide = functional.linear(inputs[0].T, weight, bias).T
        return wide.unflatten(0, self.bias.shape)


class StackedConv2d(_StackedLayer):
    """M convolutions with outputs of the size of the images; the channels of the members are adjacent."""

    def __init__(self, num_inputs: int, num_outputs: int, kernel_size: int) -> None:
        super().__init__(nn.Conv2d(num_inputs, num_outputs, kernel_size))
        self.padding = kernel_size // 2

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, M * out, height, width) of images (N, M * in, height, width), or shared (N, in, ...)."""
        num_groups = images.shape[1] // self.weight.shape[2]
        # On one CPU core the forward pass of the cnn is 2.7 times faster with channels last at width 1/4, and equally
        # fast at width 1.
        weight = self.weight.flatten(0, 1).clone(memory_format=torch.channels_last)
        return functional.conv2d(images, weight, self.bias.flatten(), padding=self.padding, groups=num_groups)


IMAGE_PIXELS = IMAGE_SIDE**2
NUM_CLASSES = 10

#: Result of ``Model.frozen``.
FrozenModel = Callable[[Tensor, Tensor | None], Tensor]


class Model(nn.Module):
    """Interface between a stack of models and the training loop.

    Attributes:
        recorded_parameters: Parameters in the history, by metric name: columns of the first parameter tensor.
        num_hidden: Number of units with dropout.
        num_activations: Numbers in the largest layer, for each member and sample.
        skips_zero_pixels: Whether the frozen model accepts images without their common black pixels.
    """

    recorded_parameters: Mapping[str, int] = {}
    num_hidden: int = 0
    num_activations: int = 1
    skips_zero_pixels: bool = False

    def frozen(self) -> FrozenModel:
        """Return a function of images (N, 1, 28, 28) and ``None`` to logits (M, 10, N), without dropout.

        With ``skips_zero_pixels`` its arguments may be L pixels of each image, (N, L), and their indices, (L,).
        """
        return lambda images, lit: self(images[None])


class Line(Model):
    """The line ``W * x + b``; W = 0.3 and b = -0.3 were reconstructed from the report's Exercise 1."""

    recorded_parameters: Mapping[str, int] = {"W": 0, "b": 1}

    def __init__(self) -> None:
        super().__init__()
        # Both precisions round from float64; a float32 of 0.3 would be 0.30000001 in float64.
        self.coefficients = nn.Parameter(torch.tensor([[0.3, -0.3]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Return the lines (M, N) at ``x`` (2, N): the abscissae, and ones for the bias."""
        return self.coefficients @ x


class Softmax(Model):
    """Softmax regression: one layer from 784 pixels to 10 classes."""

    num_activations = NUM_CLASSES
    skips_zero_pixels = True

    def __init__(self) -> None:
        super().__init__()
        self.output = StackedLinear(IMAGE_PIXELS, NUM_CLASSES)

    def forward(self, images: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """Return logits (M, 10, N) of images (M or 1, N, 1, 28, 28); there are no hidden units for the mask."""
        return self.output(images.flatten(2).transpose(1, 2))

    def frozen(self) -> FrozenModel:
        """Return the current model; black pixels do not contribute to its logits."""
        # With pixels as rows, the selection of pixels copies whole rows.
        weight = self.output.weight.flatten(0, 1).T.contiguous()
        bias = self.output.bias.flatten()[:, None]

        def logits(images: Tensor, lit: Tensor | None) -> Tensor:
            selected = weight if lit is None else weight.index_select(0, lit)
            return torch.addmm(bias, selected.T, images.flatten(1).T).unflatten(0, self.output.bias.shape)

        return logits


class CNN(Model):
    """Two 5x5 convolutions with 2x2 max pooling, a dense layer with dropout, and 10 classes (report, Exercise 2).

    Args:
        width: Factor on 32 and 64 features and 1024 hidden units, which are rounded and at least 1.
        depth: Number of 5x5 convolutions between the second one and its pooling. At full width each has twice the
            products of the second one, and 3 % of the parameters of the network.
    """

    def __init__(self, width: float = 1.0, depth: int = 0) -> None:
        super().__init__()
        first, second, self.num_hidden = (max(1, round(n * width)) for n in (32, 64, 1024))
        self.num_activations = IMAGE_PIXELS * first
        self.conv1 = StackedConv2d(1, first, 5)
        self.conv2 = StackedConv2d(first, second, 5)
        self.deeper = nn.ModuleList(StackedConv2d(second, second, 5) for _ in range(depth))
        self.hidden = StackedLinear(7 * 7 * second, self.num_hidden)
        self.output = StackedLinear(self.num_hidden, NUM_CLASSES)

    def forward(self, images: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """Return logits (M, 10, N) of images (M or 1, N, 1, 28, 28).

        Args:
            images: An axis of 1 if all members share them.
            dropout_mask: Factors of the hidden units, (M, num_hidden, N); ``None``: no dropout.
        """
        x = images.transpose(0, 1).flatten(1, 2)
        # Max pooling and ReLU commute; ReLU after pooling is a quarter of the work.
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = self.conv2(x)
        for convolution in self.deeper:
            x = convolution(functional.relu(x))
        x = functional.relu(functional.max_pool2d(x, 2))
        x = x.unflatten(1, (len(self.conv2.weight), -1)).transpose(0, 1).flatten(2)
        x = functional.relu(self.hidden(x.transpose(1, 2)))
        return self.output(x if dropout_mask is None else x * dropout_mask)


class SingleModel(nn.Module):
    """One trained model, with ordinary inputs and outputs.

    Args:
        config: Its completed configuration.
        weights: Its parameters by name, without an axis of members.
    """

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = dict(config)
        self.stack = build_model([config])
        self.stack.load_state_dict({name: tensor[None] for name, tensor in weights.items()})
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, 10) of images (N, 1, 28, 28) with pixels from 0 to 1, or heights (N,) of a line at (N,)."""
        if isinstance(self.stack, Line):
            return self.stack(torch.stack([inputs, torch.ones_like(inputs)]))[0]
        logits: Tensor = self.stack(inputs[None])[0]
        return logits.T


def build_model(configs: Sequence[Mapping[str, Any]]) -> Model:
    """Return a stack on the CPU of models that differ only in ``initial_weights`` and ``seed``."""
    singles: dict[tuple[str, int], Model] = {}
    for config in configs:
        origin = config["initial_weights"], config["seed"]
        if origin not in singles:
            singles[origin] = _build_single(config)
    stack = next(iter(singles.values()))
    if len(configs) > 1:
        members = [dict(singles[config["initial_weights"], config["seed"]].named_parameters()) for config in configs]
        for path in members[0]:
            module, _, name = path.rpartition(".")
            stacked = nn.Parameter(torch.cat([member[path].detach() for member in members]))
            setattr(stack.get_submodule(module), name, stacked)
    return stack.to(parameter_type(configs[0]["precision"]))


def parameter_type(precision: str) -> torch.dtype:
    """Return the type of the parameters of a precision."""
    return torch.float64 if precision == "float64" else torch.float32


def _build_single(config: Mapping[str, Any]) -> Model:
    # PyTorch's initialization uses the global generator, whose state is restored afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        model: Model = {"line": Line, "softmax": Softmax, "cnn": lambda: CNN(config["width"], config.get("depth", 0))}[
            config["model"]
        ]()
        if config["initial_weights"] == "tutorial":
            _initialize_as_tutorial(model)
    return model


@torch.no_grad()
def _initialize_as_tutorial(model: Model) -> None:
    if isinstance(model, Softmax):
        for parameter in model.parameters():
            parameter.zero_()
    elif isinstance(model, CNN):
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(0.1)
            else:
                nn.init.trunc_normal_(parameter, std=0.1, a=-0.2, b=0.2)
