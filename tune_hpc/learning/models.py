"""The three models of the report: a line, softmax regression and the convolutional network of TensorFlow's tutorial.

Each is a pure function of its inputs and parameters: what is random (the dropout mask) is an input, so that a model
behaves the same alone, on several workers, and among stacked copies of itself.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

IMAGE_PIXELS = 28 * 28
NUM_CLASSES = 10


class Model(nn.Module):
    """What the training loop wants to know of a network.

    Attributes:
        traced: Parameters of one number whose every value is kept: metric name to attribute.
        num_hidden: Units that dropout applies to; 0 for none.
    """

    traced: Mapping[str, str] = {}
    num_hidden: int = 0


class Line(Model):
    """``W * x + b``, from the starting point of Exercise 1.

    Source: recovered from the report's Exercise 1 (it prints no data); W = 0.3, b = -0.3.
    """

    traced: Mapping[str, str] = {"W": "weight", "b": "bias"}

    def __init__(self) -> None:
        super().__init__()
        # In double precision, from which both precisions round: 0.3 by way of float32 is 0.30000001.
        self.weight = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([-0.3], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the line at ``x``, any shape."""
        return self.weight * x + self.bias


class Softmax(Model):
    """Softmax regression: one layer from 784 pixels to 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(IMAGE_PIXELS, NUM_CLASSES)

    def forward(self, images: torch.Tensor, dropout_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits (N, 10) for images (N, 1, 28, 28); there is nothing that could be dropped."""
        return self.output(images.flatten(1))


class CNN(Model):
    """Two 5x5 convolutions with 2x2 max pooling, a dense layer with dropout, and 10 classes.

    At width 1 it has 32 and 64 features, 1024 hidden units and 3,274,634 parameters.

    Source: report, Exercise 2.

    Args:
        width: Factor on the number of features and hidden units, rounded, at least 1 of each.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        first, second, self.num_hidden = (max(1, round(n * width)) for n in (32, 64, 1024))
        self.conv1 = nn.Conv2d(1, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.hidden = nn.Linear(7 * 7 * second, self.num_hidden)
        self.output = nn.Linear(self.num_hidden, NUM_CLASSES)

    def forward(self, images: torch.Tensor, dropout_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits.

        Args:
            images: (N, 1, 28, 28).
            dropout_mask: (N, num_hidden): what the hidden units are multiplied by; ``None``: nothing is dropped.

        Returns:
            (N, 10).
        """
        x = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.hidden(x.flatten(1)))
        return self.output(x if dropout_mask is None else x * dropout_mask)


def build_model(config: Mapping[str, Any]) -> Model:
    """Return the model that a completed configuration names, with its initial weights, on the CPU.

    Args:
        config: ``model``, ``width``, ``initial_weights``, ``precision`` and ``seed`` are read.
    """
    # PyTorch's own initialisation draws from the global generator: lend it a seed, then give it back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        model: Model = {"line": Line, "softmax": Softmax, "cnn": lambda: CNN(config["width"])}[config["model"]]()
        if config["initial_weights"] == "tutorial":
            _as_in_tutorial(model)
    # Channels last: on one CPU core the cnn's forward pass is 2.7 times faster so at width 1/4, about equal at width 1.
    return model.to(getattr(torch, config["precision"])).to(memory_format=torch.channels_last)


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
