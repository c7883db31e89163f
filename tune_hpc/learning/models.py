"""The three models of the report: a line, softmax regression and the convolutional network of TensorFlow's tutorial.

Every model is a stack: its parameters have a leading axis of members that train side by side, and one model alone is a
stack of one. Each is a pure function of its inputs and parameters: what is random (the dropout mask) is an input, so
that a model behaves the same alone, on several workers, and among others in its stack.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tune_hpc.learning.config import IMAGE_SIDE
from tune_hpc.learning.stacked_layers import StackedConv2d, StackedLinear

IMAGE_PIXELS = IMAGE_SIDE**2
NUM_CLASSES = 10

#: See ``Model.frozen``.
FrozenModel = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


class Model(nn.Module):
    """What the training loop wants to know of a network.

    Attributes:
        traced: Numbers of each member whose every value is kept: metric name to the column of the first parameter.
        num_hidden: Units that dropout applies to; 0 for none.
        num_activations: Numbers in its largest layer, for each member and sample.
        skips_zero_pixels: Whether its frozen form takes images without the pixels that are black in all of them.
    """

    recorded_parameters: Mapping[str, int] = {}
    num_hidden: int = 0
    num_activations: int = 1
    skips_zero_pixels: bool = False

    def frozen(self) -> FrozenModel:
        """Return the model as it is now, for many forward passes without dropout.

        Returns:
            A function of images (N, 1, 28, 28) and ``None``, giving logits (M, 10, N). Where ``skips_zero_pixels``, the
            images may have L pixels only, (N, L), with the places of these among the 784, (L,), beside them.
        """
        return lambda images, lit: self(images[None])


class Line(Model):
    """``W * x + b``, from the starting point of Exercise 1.

    Source: recovered from the report's Exercise 1 (it prints no data); W = 0.3, b = -0.3.
    """

    recorded_parameters: Mapping[str, int] = {"W": 0, "b": 1}

    def __init__(self) -> None:
        super().__init__()
        # In double precision, from which both precisions round: 0.3 by way of float32 is 0.30000001.
        self.coefficients = nn.Parameter(torch.tensor([[0.3, -0.3]], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the lines (M, N) at ``x`` (2, N): the abscissae, and ones beside them for the bias."""
        return self.coefficients @ x


class Softmax(Model):
    """Softmax regression: one layer from 784 pixels to 10 classes."""

    num_activations = NUM_CLASSES
    skips_zero_pixels = True

    def __init__(self) -> None:
        super().__init__()
        self.output = StackedLinear(IMAGE_PIXELS, NUM_CLASSES)

    def forward(self, images: torch.Tensor, dropout_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits.

        Args:
            images: (M or 1, N, 1, 28, 28).
            dropout_mask: Not looked at: there is nothing that could be dropped.

        Returns:
            (M, 10, N).
        """
        return self.output(images.flatten(2).transpose(1, 2))

    def frozen(self) -> FrozenModel:
        """See ``Model.frozen``: a black pixel adds nothing to a logit."""
        # Pixels first: choosing some of them then copies whole rows.
        weight = self.output.weight.flatten(0, 1).T.contiguous()
        bias = self.output.bias.flatten()[:, None]

        def logits(images: torch.Tensor, lit: torch.Tensor | None) -> torch.Tensor:
            chosen = weight if lit is None else weight.index_select(0, lit)
            return torch.addmm(bias, chosen.T, images.flatten(1).T).unflatten(0, self.output.bias.shape)

        return logits


class CNN(Model):
    """Two 5x5 convolutions with 2x2 max pooling, a dense layer with dropout, and 10 classes.

    At width 1 it has 32 and 64 features, 1024 hidden units and 3,274,634 parameters a member.

    Source: report, Exercise 2.

    Args:
        width: Factor on the number of features and hidden units, rounded, at least 1 of each.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        first, second, self.num_hidden = (max(1, round(n * width)) for n in (32, 64, 1024))
        self.num_activations = IMAGE_PIXELS * first
        self.conv1 = StackedConv2d(1, first, 5)
        self.conv2 = StackedConv2d(first, second, 5)
        self.hidden = StackedLinear(7 * 7 * second, self.num_hidden)
        self.output = StackedLinear(self.num_hidden, NUM_CLASSES)

    def forward(self, images: torch.Tensor, dropout_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits.

        Args:
            images: (M, N, 1, 28, 28), or (1, N, 1, 28, 28) that all members share.
            dropout_mask: (M, num_hidden, N): what the hidden units are multiplied by; ``None``: nothing is dropped.

        Returns:
            (M, 10, N).
        """
        x = images.transpose(0, 1).flatten(1, 2)
        # Pooled first, for a quarter of the work: the largest of rectified numbers is the largest one rectified.
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        x = x.unflatten(1, (len(self.conv2.weight), -1)).transpose(0, 1).flatten(2)
        x = functional.relu(self.hidden(x.transpose(1, 2)))
        return self.output(x if dropout_mask is None else x * dropout_mask)


def build_model(configs: Sequence[Mapping[str, Any]]) -> Model:
    """Return a stack with the initial weights of each configuration, on the CPU.

    Args:
        configs: ``model``, ``width`` and ``precision``, alike in all, and ``initial_weights`` and ``seed`` are read.
    """
    singles: dict[tuple[str, int], Model] = {}
    for config in configs:
        origin = config["initial_weights"], config["seed"]
        if origin not in singles:
            singles[origin] = _build_single(config)
    stack = next(iter(singles.values()))
    if len(configs) > 1:
        members = [dict(singles[config["initial_weights"], config["seed"]].named_parameters()) for config in configs]
        for path in members[0]:
            owner, _, name = path.rpartition(".")
            whole = nn.Parameter(torch.cat([member[path].detach() for member in members]))
            setattr(stack.get_submodule(owner), name, whole)
    return stack.to(parameter_type(configs[0]["precision"]))


def parameter_type(precision: str) -> torch.dtype:
    """Return the type of parameters; products may be made in a shorter one."""
    return torch.float64 if precision == "float64" else torch.float32


def _build_single(config: Mapping[str, Any]) -> Model:
    # PyTorch's own initialisation draws from the global generator: lend it a seed, then give it back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        model: Model = {"line": Line, "softmax": Softmax, "cnn": lambda: CNN(config["width"])}[config["model"]]()
        if config["initial_weights"] == "tutorial":
            _as_in_tutorial(model)
    return model


@torch.no_grad()
def _as_in_tutorial(model: Model) -> None:
    if isinstance(model, Softmax):
        for parameter in model.parameters():
            parameter.zero_()
    elif isinstance(model, CNN):
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(0.1)
            else:
                nn.init.trunc_normal_(parameter, std=0.1, a=-0.2, b=0.2)
