"""Cross-entropy of translations. Shapes: B batch, T length, C width, R target tokens without padding, V types."""

import torch
import torch.nn.functional as F
from torch import Tensor

from un.translation.batches import Batch
from un.translation.transformer import Transformer


def compute_logits(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns logits (R, V), at least in float32, and targets (R,); padding never reaches the output projection.

    Args:
        model: Gives features (B, T, C).
        batch: Comes from `LanguagePairDataset.collater`.
    """
    target = batch["target"].flatten()
    # Looked up before the forward: on a GPU this waits for the device, which the encoder does then anyway.
    places = target.ne(model.decoder.padding_idx).nonzero().squeeze(-1)
    if model.training:
        features, _ = model(**batch["net_input"], features_only=True)
    else:  # by parts, since a folded model as a whole promises its logits alone; its projection takes its features
        features, _ = model.extract_features(**batch["net_input"])
    logits = model.decoder.output_layer(features.flatten(0, 1)[places])
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), target[places]  # no sums in half precision


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Returns the cross-entropy in nats, summed over the target tokens.

    Args:
        logits: (R, V).
        targets: (R,).
        label_smoothing: As fairseq counts it: the share of the V - 1 types other than the target, spread evenly over
            all V, so that the target keeps 1 - label_smoothing. torch counts the share that is taken from the target.
    """
    num_types = logits.shape[-1]
    share = label_smoothing * num_types / (num_types - 1)
    return F.cross_entropy(logits, targets, label_smoothing=share, reduction="sum")


def sum_cross_entropy(model: Transformer, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Returns the `cross_entropy` of a model on a batch."""
    return cross_entropy(*compute_logits(model, batch), label_smoothing)


def measure_cross_entropy(model: Transformer, batch: Batch) -> Tensor:
    """Returns the cross-entropy (B,) of each translation of a batch in nats, the mean over its target tokens."""
    losses = F.cross_entropy(*compute_logits(model, batch), reduction="none")
    lengths = batch["target"].ne(model.decoder.padding_idx).sum(dim=1)
    return torch.stack([sentence.mean() for sentence in losses.split(lengths.tolist())])
