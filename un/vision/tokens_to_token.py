"""Tokens-to-token module: an image becomes tokens in three overlapping soft splits with a token layer between them.

Source: T2T-ViT (arXiv 2101.11986, section 3.1); Performer features from arXiv 2009.14794. Parameter names are those of
the official T2T-ViT code, so that its state dicts load as they are.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

NormLayer = Callable[..., nn.Module]

SOFT_SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding; paper, section 3.1
PERFORMER_DROPOUT = 0.1  # official code, after the projection and after the MLP
PERFORMER_FEATURE_RATIO = 0.5  # random features per channel, official code
PERFORMER_EPSILON = 1e-8  # keeps the division by the attention mass finite, official code


class TokenPerformer(nn.Module):
    """Token layer with linear attention over positive random features, (B, N, C) to (B, N, token_dim).

    The width changes, so the values take the place of the input in the first residual connection.
    """

    def __init__(self, dim: int, token_dim: int, norm_layer: NormLayer = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.kqv = nn.Linear(dim, 3 * token_dim)
        self.proj = nn.Linear(token_dim, token_dim)
        self.dropout = nn.Dropout(PERFORMER_DROPOUT)
        self.norm2 = norm_layer(token_dim)
        self.mlp = nn.Sequential(
            nn.Linear(token_dim, token_dim),
            nn.GELU(),
            nn.Linear(token_dim, token_dim),
            nn.Dropout(PERFORMER_DROPOUT),
        )
        num_features = int(token_dim * PERFORMER_FEATURE_RATIO)
        directions = nn.init.orthogonal_(torch.empty(num_features, token_dim))
        # Fixed, yet a parameter as in the official code: the published sizes count it.
        self.w = nn.Parameter(directions * math.sqrt(num_features), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        keys, queries, values = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        x = values + self.dropout(self.proj(self._attend(queries, keys, values)))
        return x + self.mlp(self.norm2(x))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attends in float32 or wider: the exponentials and their sum over tokens overflow in half precision."""
        dtype = torch.promote_types(values.dtype, torch.float32)
        device = values.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            query_features, key_features = self._features(queries.to(dtype)), self._features(keys.to(dtype))
            weighted_values = key_features.transpose(1, 2) @ values.to(dtype)
            attention_mass = query_features @ key_features.sum(dim=1).unsqueeze(-1)
            attended = query_features @ weighted_values / (attention_mass + PERFORMER_EPSILON)
        return attended.to(values.dtype)

    def _features(self, x: Tensor) -> Tensor:
        """Returns positive random features (B, N, m) with phi(q)·phi(k) = exp(q·k) in expectation."""
        w = self.w.detach().to(x.dtype)  # detached: unfreezing a whole model must not train the projection
        return torch.exp(x @ w.T - x.square().sum(dim=-1, keepdim=True) / 2) / math.sqrt(w.shape[0])


class TokenAttention(nn.Module):
    """One-head softmax attention, (B, N, C) to (B, N, token_dim); the values are the residual.

    The scale is C^-1/2 of the wider input, not of the head, as in the official code.
    """

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.qkv = nn.Linear(dim, 3 * token_dim, bias=False)
        self.proj = nn.Linear(token_dim, token_dim)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        return (values + self.proj(attended)).squeeze(1)


class TokenTransformer(nn.Module):
    """Token layer with softmax attention, (B, N, C) to (B, N, token_dim)."""

    def __init__(self, dim: int, token_dim: int, norm_layer: NormLayer = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = TokenAttention(dim, token_dim)
        self.norm2 = norm_layer(token_dim)
        self.mlp = Mlp(token_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


TOKEN_LAYERS: dict[str, type[TokenPerformer] | type[TokenTransformer]] = {
    "performer": TokenPerformer,
    "transformer": TokenTransformer,
}


class TokensToToken(nn.Module):
    """Image (B, in_chans, H, W) to tokens (B, num_patches, embed_dim); multiples of 16 pixels lose no border."""

    def __init__(
        self,
        img_size: tuple[int, int],
        in_chans: int,
        embed_dim: int,
        token_dim: int,
        tokens_type: str,
        norm_layer: NormLayer = nn.LayerNorm,
    ) -> None:
        super().__init__()
        if tokens_type not in TOKEN_LAYERS:
            raise ValueError(f"tokens_type must be one of {', '.join(TOKEN_LAYERS)}, got {tokens_type!r}")
        self.grids = measure_grids(img_size)
        token_layer = TOKEN_LAYERS[tokens_type]
        pixels, neighbours, _ = (kernel**2 for kernel, _, _ in SOFT_SPLITS)
        self.attention1 = token_layer(in_chans * pixels, token_dim, norm_layer)
        self.attention2 = token_layer(token_dim * neighbours, token_dim, norm_layer)
        self.project = nn.Linear(token_dim * neighbours, embed_dim)

    @property
    def num_patches(self) -> int:
        return math.prod(self.grids[-1])

    def forward(self, x: Tensor) -> Tensor:
        layers: Sequence[nn.Module] = (self.attention1, self.attention2)
        for layer, grid, split in zip(layers, self.grids, SOFT_SPLITS, strict=False):
            x = layer(split_softly(x, *split)).transpose(1, 2).unflatten(2, grid)
        return self.project(split_softly(x, *SOFT_SPLITS[-1]))


def split_softly(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Cuts maps (B, C, H, W) into overlapping patches (B, N, C * kernel²)."""
    return F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2)


def measure_grids(img_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the rows and columns of tokens after each soft split of an image of `img_size` pixels."""
    smallest = SOFT_SPLITS[0][0] - 2 * SOFT_SPLITS[0][2]
    if min(img_size) < smallest:
        raise ValueError(f"img_size must be at least {smallest} pixels in both directions, got {tuple(img_size)}")
    grids: list[tuple[int, int]] = []
    rows, columns = img_size
    for kernel, stride, padding in SOFT_SPLITS:
        rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in (rows, columns))
        grids.append((rows, columns))
    return grids
