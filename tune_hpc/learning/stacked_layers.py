"""Linear and convolution layers of a stack of models, whose parameters have a leading axis of members.

A stack of one model is as fast as an ordinary layer. An input that all members share, as in the first layer, is read
once: M small products become one wide product.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Maximum number of outputs for the product with samples along memory. With ten outputs it is twice as fast on one CPU
#: core; with more outputs and small batches it is slower.
FEW_OUTPUTS = 16


class StackedLinear(nn.Module):
    """M affine maps.

    Features precede samples, so that the next operation, such as a softmax over ten classes, runs along memory.

    Attributes:
        weight: (M, out, in).
        bias: (M, out).

    Args:
        num_inputs: Number of input features.
        num_outputs: Number of output features.
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        single = nn.Linear(num_inputs, num_outputs)
        self.weight = nn.Parameter(single.weight.detach()[None])
        self.bias = nn.Parameter(single.bias.detach()[None])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (M, out, N).

        Args:
            inputs: (M, in, N), or (1, in, N) if all members share them.
        """
        if inputs.shape[0] > 1:
            return torch.baddbmm(self.bias[:, :, None], self.weight, inputs)
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
        if self.bias.shape[1] <= FEW_OUTPUTS:
            wide = torch.addmm(bias[:, None], weight, inputs[0])
        else:
            wide = functional.linear(inputs[0].T, weight, bias).T
        return wide.unflatten(0, self.bias.shape)


class StackedConv2d(nn.Module):
    """M convolutions with outputs of the size of the images; the channels of the members are adjacent.

    Attributes:
        weight: (M, out, in, kernel, kernel).
        bias: (M, out).

    Args:
        num_inputs: Number of input channels.
        num_outputs: Number of output channels.
        kernel_size: Odd size of the kernel.
    """

    def __init__(self, num_inputs: int, num_outputs: int, kernel_size: int) -> None:
        super().__init__()
        single = nn.Conv2d(num_inputs, num_outputs, kernel_size)
        assert single.bias is not None
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(single.weight.detach()[None])
        self.bias = nn.Parameter(single.bias.detach()[None])

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, M * out, height, width).

        Args:
            images: (N, M * in, height, width), or (N, in, height, width) if all members share them.
        """
        num_groups = images.shape[1] // self.weight.shape[2]
        # On one CPU core the forward pass of the cnn is 2.7 times faster with channels last at width 1/4, and equally
        # fast at width 1.
        weight = self.weight.flatten(0, 1).clone(memory_format=torch.channels_last)
        return functional.conv2d(images, weight, self.bias.flatten(), padding=self.padding, groups=num_groups)
