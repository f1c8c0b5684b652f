"""T2T-ViT, registered with timm: importing this module makes `timm.create_model("t2t_vit_14")` work.

Source: arXiv 2101.11986; sizes from its table 2 and the official code, whose state dicts load as they are.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import calculate_drop_path_rates, get_norm_layer, global_pool_nlc
from timm.layers.helpers import to_2tuple
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._manipulate import MATCH_PREV_GROUP
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from un.vision.tokens_to_token import TokensToToken

INIT_STD = 0.02  # of every Linear weight and of the class token, official code
SINUSOID_BASE = 10000.0  # arXiv 1706.03762, section 3.5


class TokensToTokenViT(nn.Module):
    """Tokens-to-token module, class token, fixed sinusoid positions, pre-norm Transformer blocks, linear head.

    Arguments have timm's names and, but for `drop_rate`, its meaning.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,  # fixes the length of the position table
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",  # official; or "avg", "max", "avgmax", or "" for no pooling
        embed_dim: int = 384,  # C of the blocks
        depth: int = 14,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        # Factor on the attention logits; None is (embed_dim / num_heads)^-1/2. The weights published with T2T-ViT need
        # embed_dim^-1/2 (official code), those of the UN code need None.
        qk_scale: float | None = None,
        token_dim: int = 64,  # C inside the tokens-to-token module
        tokens_type: str = "performer",  # or "transformer"
        drop_rate: float = 0.0,  # after the positions and inside the blocks (official), not before the head
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,  # of the last block, rising linearly from 0
        norm_layer: Callable[..., nn.Module] | str | None = None,  # None is `nn.LayerNorm` with eps 1e-5
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        norm_layer = get_norm_layer(norm_layer) or nn.LayerNorm
        height, width = to_2tuple(img_size)
        self.image_shape = (in_chans, height, width)
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.grad_checkpointing = False

        self.tokens_to_token = TokensToToken((height, width), in_chans, embed_dim, token_dim, tokens_type, norm_layer)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        # Fixed, yet a parameter as in the official code: the published sizes count it.
        positions = make_sinusoid_table(self.tokens_to_token.num_patches + 1, embed_dim)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.pos_drop = nn.Dropout(drop_rate)
        block = partial(Block, embed_dim, num_heads, mlp_ratio, proj_drop=drop_rate, norm_layer=norm_layer)
        rates = cast(list[float], calculate_drop_path_rates(drop_path_rate, depth))
        self.blocks = nn.Sequential(*(block(attn_drop=attn_drop_rate, drop_path=rate) for rate in rates))
        if qk_scale is not None:
            for layer in self.blocks:
                attention: Any = layer.attn
                attention.scale = qk_scale
                attention.fused_attn = False  # timm's fused path knows only the default scale
        self.norm = norm_layer(embed_dim)
        self.head = self._make_head(num_classes)
        self.apply(init_linear)
        nn.init.trunc_normal_(self.cls_token, std=INIT_STD)

    def _make_head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to normalised tokens (B, 1 + num_patches, embed_dim), class token first.

        The final norm sees every token, not only the class token: its statistics depend on it.
        """
        if tuple(x.shape[1:]) != self.image_shape:
            sides = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images must have shape (B, {sides}), got {tuple(x.shape)}")
        x = self.tokens_to_token(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.pos_drop(x + self.pos_embed.detach())  # detached: unfreezing a whole model must not train the table
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing and self.training else self.blocks(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps the tokens of `forward_features` to logits, or to the pooled features (B, embed_dim) if `pre_logits`."""
        x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=self.num_prefix_tokens)
        return x if pre_logits else self.head(x)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head by a freshly initialised one; keeps the pooling if `global_pool` is None."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head = self._make_head(num_classes).to(self.cls_token)
        init_linear(self.head)

    def no_weight_decay(self) -> set[str]:
        """Names the parameters of more than one dimension that are not decayed."""
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Gives the patterns by which timm numbers the layers for layer-wise learning rates."""
        blocks = [(r"^blocks\.(\d+)", None), (r"^norm", MATCH_PREV_GROUP)]
        return {"stem": r"^cls_token|^tokens_to_token", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks in the backward pass; norms with running statistics then see every batch twice."""
        self.grad_checkpointing = enable


def init_linear(module: nn.Module) -> None:
    """Draws the weight of a Linear and clears its bias; leaves any other module alone."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def make_sinusoid_table(num_positions: int, dim: int) -> Tensor:
    """Returns positions (1, num_positions, dim): sine in even channels, cosine in odd ones (arXiv 1706.03762)."""
    channels = torch.arange(dim)
    pairs = torch.div(channels, 2, rounding_mode="floor")
    frequencies = torch.exp(pairs.double() * (-2 * math.log(SINUSOID_BASE) / dim))
    angles = torch.arange(num_positions).double().unsqueeze(1) * frequencies
    table = torch.where(channels % 2 == 0, angles.sin(), angles.cos())
    return table.to(torch.get_default_dtype()).unsqueeze(0)


SIZES = {  # width, depth, heads, MLP ratio, tokens
    "t2t_vit_7": (256, 7, 4, 2.0, "performer"),
    "t2t_vit_10": (256, 10, 4, 2.0, "performer"),
    "t2t_vit_12": (256, 12, 4, 2.0, "performer"),
    "t2t_vit_14": (384, 14, 6, 3.0, "performer"),
    "t2t_vit_19": (448, 19, 7, 3.0, "performer"),
    "t2t_vit_24": (512, 24, 8, 3.0, "performer"),
    "t2t_vit_t_14": (384, 14, 6, 3.0, "transformer"),
    "t2t_vit_t_19": (448, 19, 7, 3.0, "transformer"),
    "t2t_vit_t_24": (512, 24, 8, 3.0, "transformer"),
}
SIZE_ARGUMENTS = ("embed_dim", "depth", "num_heads", "mlp_ratio", "tokens_type")
CONFIG = {  # input and evaluation of the official code, in timm's terms; no published weights are hosted
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "pool_size": None,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "classifier": "head",
}
default_cfgs = generate_default_cfgs(dict.fromkeys(SIZES, CONFIG))


def register_size(name: str) -> None:
    """Lets timm create the model of this name; the arguments given win over those of its size."""
    size = dict(zip(SIZE_ARGUMENTS, SIZES[name], strict=True))

    def create(pretrained: bool = False, **arguments: Any) -> TokensToTokenViT:
        return build_model_with_cfg(TokensToTokenViT, name, pretrained, **{**size, **arguments})

    create.__name__ = name
    register_model(create)


for _name in SIZES:
    register_size(_name)
