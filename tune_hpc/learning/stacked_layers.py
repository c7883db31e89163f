"""Layers for a stack of models: every parameter has a leading axis of members, and one call computes all of them.

A stack of one is an ordinary layer at an ordinary layer's speed. Where all members see the same input, as the first
layer of a stack does, it is read once: M small products become one wide one.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Up to so many outputs a product with samples along memory is faster, by two at ten outputs on one CPU core; with more
#: it is slower where the batch is small.
FEW_OUTPUTS = 16


class StackedLinear(nn.Module):
    """M affine maps.

    Features come before samples, so that what follows (a softmax over ten classes, say) runs along memory.

    Attributes:
        weight: (M, out, in).
        bias: (M, out).

    Args:
        num_inputs: Features in.
        num_outputs: Features out.
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        single = nn.Linear(num_inputs, num_outputs)
        self.weight = nn.Parameter(single.weight.detach()[None])
        self.bias = nn.Parameter(single.bias.detach()[None])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (M, out, N).

        Args:
            inputs: (M, in, N), or (1, in, N) that all members share.
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
    """M convolutions that keep the size of their images; the members' channels lie side by side.

    Attributes:
        weight: (M, out, in, kernel, kernel).
        bias: (M, out).

    Args:
        num_inputs: Channels in.
        num_outputs: Channels out.
        kernel_size: Odd.
    """

    def __init__(self, num_inputs: int, num_outputs: int, kernel_size: int) -> None:
        super().__init__()
        single = nn.Conv2d(num_inputs, num_outputs, kernel_size)
        assert single.bias is not None
        self.padding = kernel_size // 2
        self.weight = nn.Parameter(single.weight.detach()[None])
        self.bias = nn.Parameter(single.bias.detach()[None])

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, M * out, height, width) for images (N, M * in, height, width), or (N, in, ...) that all share."""
        num_groups = images.shape[1] // self.weight.shape[2]
        # Channels last: on one CPU core the cnn's forward pass is 2.7 times faster so at width 1/4, equal at width 1.
        weight = self.weight.flatten(0, 1).clone(memory_format=torch.channels_last)
        return functional.conv2d(images, weight, self.bias.flatten(), padding=self.padding, groups=num_groups)
