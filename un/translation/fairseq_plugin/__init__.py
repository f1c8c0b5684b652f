"""Norms of this project in fairseq's own commands: `--user-dir un/translation/fairseq_plugin`.

Every Transformer arch of fairseq has a twin with `transformer_un` in place of `transformer`, e.g.
`--arch transformer_un_iwslt_de_en`; `--norm` and the options after it choose the norm at every site. The package `un`
must be installed. Checkpoints are fairseq's.
"""

import argparse
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from un import norms
from un.surgery import replace_norms
from un.translation.fairseq_library import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_REGISTRY,
    TransformerModel,
    register_model,
    register_model_architecture,
)
from un.translation.transformer import Transformer

MODEL = "transformer_un"
# Without RBN: fairseq's criteria would not add its penalty to the loss.
NORMS: dict[str, type[nn.Module] | None] = {
    "un": norms.UnifiedNorm,
    "layernorm": None,
    "batchnorm": norms.BatchNorm,
    "ffn_bn": norms.FeedForwardBatchNorm,
    "powernorm": norms.PowerNorm,
    "mabn": norms.MovingAverageBatchNorm,
    "rmsnorm": norms.RMSNorm,
    "rep_batchnorm": norms.RepBatchNorm,
    "prepbn": norms.ProgressiveRepBatchNorm,
    "dyt": norms.DynamicTanh,
    "derf": norms.DynamicErf,
    "groupnorm": norms.GroupNorm,
    "scalenorm": norms.ScaleNorm,
}
NORM_OPTIONS = ("window", "warmup_steps", "filtration")  # --norm-<option>; those not given are the norm's defaults

# fairseq keeps its arguments in its checkpoints, where torch takes them for code.
torch.serialization.add_safe_globals([argparse.Namespace])


class NormTransformer(Transformer):
    """A Transformer of fairseq whose norms are chosen on the command line."""

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        super().add_args(parser)
        parser.add_argument("--norm", choices=list(NORMS), help="norm at every site (default: un)")
        parser.add_argument("--norm-window", type=int, help="M, of un and mabn")
        parser.add_argument("--norm-warmup-steps", type=int, help="W, of un, mabn and powernorm")
        parser.add_argument("--norm-filtration", action="store_true", help="outlier filtration, of un")
        parser.add_argument("--pad-mask", action="store_true", help="keep padding out of the norms' statistics")

    @classmethod
    def build_model(cls, args: argparse.Namespace, task: Any) -> Transformer:
        """Builds the model with the norms of the arguments; called by fairseq.

        Raises:
            ValueError: The norm does not have a given option.
        """
        given = {name: getattr(args, f"norm_{name}", None) for name in NORM_OPTIONS}
        # A flag that is not given is false, a number that is not given is None; 0 is a number.
        options = {name: value for name, value in given.items() if value is not None and value is not False}
        model = super().build_model(args, task)
        norm = NORMS[args.norm]
        known = inspect.signature(norm).parameters if norm is not None else {}
        for name in options:
            if name not in known:
                raise ValueError(f"--norm-{name.replace('_', '-')} is not an option of --norm {args.norm}")
        if norm is not None:
            replace_norms(model, partial(norm, **options))
        if getattr(args, "max_update", 0):
            norms.set_training_length(model, args.max_update, args.max_update * args.update_freq[0])
        model.use_pad_mask(args.pad_mask)
        return model


def _extend(arch: str) -> Callable[[argparse.Namespace], None]:
    """Returns the function that fills in what the user leaves open, for an arch of fairseq."""

    def fill(args: argparse.Namespace) -> None:
        args.norm = getattr(args, "norm", "un")
        args.pad_mask = getattr(args, "pad_mask", False)
        ARCH_CONFIG_REGISTRY[arch](args)

    return fill


register_model(MODEL)(NormTransformer)
for _arch, _model in list(ARCH_MODEL_REGISTRY.items()):
    _name = _arch.replace("transformer", MODEL, 1)
    if _model is TransformerModel and _name not in ARCH_MODEL_REGISTRY:
        register_model_architecture(MODEL, _name)(_extend(_arch))
