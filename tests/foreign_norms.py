"""Norms as other projects write them: other layouts, other scales, other names, or no norms at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShiftedScaleNorm(nn.LayerNorm):
    """Scales by weight + 1, so that weight decay pulls the scale to 1."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class ExponentialScaleNorm(nn.LayerNorm):
    """Scales by exp(weight) and adds twice the bias."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.exp(), 2 * self.bias, self.eps)


class HalvedNorm(nn.LayerNorm):
    """Halves what a LayerNorm gives."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class RootMeanSquareNorm(nn.Module):
    """As in many language models: no `normalized_shape`, statistics in float32, `offset` + weight as the scale."""

    def __init__(self, width: int, offset: float = 0.0) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.ones(width) - offset), offset

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.float()
        rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-6)
        return ((self.offset + self.weight.float()) * rows).to(hidden.dtype)


class DeviationNorm(nn.Module):
    """Divides by the unbiased standard deviation, and calls its parameters otherwise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.offset


class MapNorm(nn.Module):
    """A LayerNorm over axis 1 of maps without `normalized_shape`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, maps: Tensor) -> Tensor:
        variance, mean = torch.var_mean(maps, dim=1, correction=0, keepdim=True)
        normalized = (maps - mean) * torch.rsqrt(variance + 1e-6)
        return normalized * self.weight[:, None, None] + self.bias[:, None, None]


class SequenceNorm(nn.LayerNorm):
    """A LayerNorm over sequences (B, C, T), as in models of speech; it takes no other input."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, time = x.shape
        return super().forward(x.transpose(1, 2)).transpose(1, 2).reshape(batch, channels, time)


class SwappedNorm(nn.LayerNorm):
    """A LayerNorm over the last axis but one, whatever their number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(-2, -1)).transpose(-2, -1)


class UndecidedNorm(nn.LayerNorm):
    """Over axis 1 of maps, over the last of everything else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1) if x.dim() == 4 else super().forward(x)


class AdaptiveNorm(nn.LayerNorm):
    """Takes scale and shift from a condition."""

    def __init__(self, width: int) -> None:
        super().__init__(width, elementwise_affine=False)
        self.modulation = nn.Linear(4, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition).chunk(2, -1)
        return super().forward(x) * (1 + scale) + shift


class ConditionalNorm(nn.Module):
    """An adaptive norm that is no LayerNorm by class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(4, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.modulation(condition)


class MatrixNorm(nn.Module):
    """Multiplies by a matrix after normalising."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) @ self.weight


class LeakyNorm(nn.LayerNorm):
    """Adds a part of its input, none at first."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.leak = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.leak * x


class TanhNorm(nn.Module):
    """Dynamic Tanh as its authors publish it."""

    def __init__(self, width: int, channels_last: bool = True) -> None:
        super().__init__()
        self.normalized_shape, self.channels_last = width, channels_last
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.alpha * x)
        if self.channels_last:
            return y * self.weight + self.bias
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class LengthNorm(nn.Module):
    """Divides by the length and multiplies by one number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.normalize(x, dim=-1)


class HeadedNorm(nn.LayerNorm):
    """Applies a linear layer to its result."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.head = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(super().forward(x))
