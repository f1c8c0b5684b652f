"""What UN costs in a training step on many GPUs: counts of the real models, times of an assumed cluster."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from un.command.errors import CONFIG_FOLDER
from un.norms.core.base import Norm
from un.training.assembly import build_model, build_norm_factory

VISION = {"imagenet_deit_small": "ViT-S", "imagenet_swin_tiny": "Swin-T"}
TRANSLATION = {"iwslt14_de_en": "Transformer IWSLT14", "wmt14_en_de_big": "Transformer big WMT14"}
NUM_WORDS = {"iwslt14_de_en": 10_152, "wmt14_en_de_big": 32_768}  # entries of the joint dictionaries
BACKWARD = 2  # floating-point operations of the backward by those of the forward: two products for each
FLOAT = 4  # bytes of a statistic or gradient


@dataclass(frozen=True)
class Workload:
    """A model with the batch of one GPU in its experiment.

    Attributes:
        title: for tables.
        batch: e.g. "128 images".
        channels: of each norm.
        values: how many pass through all norms in one forward.
        operations: floating-point operations of forward and backward.
        parameters: number of them.
        norm_bytes: of the norms' buffers.
        other_bytes: of the model's other buffers.
    """

    title: str
    batch: str
    channels: tuple[int, ...]
    values: int
    operations: float
    parameters: int
    norm_bytes: int
    other_bytes: int


@dataclass(frozen=True)
class Cluster:
    """Constants of a cluster that nobody here has measured: nodes with eight A100-40GB and eight 200 Gb/s adapters.

    Seconds, and bytes per second. `memory` and `peak` are from NVIDIA's white paper of the A100, `bus` from its data
    sheet of the DGX A100. The rest but `sustained` is what NCCL itself predicts times with (src/graph/tuning.cc at
    commit 01afd20a), for the protocol LL, which it takes for small messages.
    """

    gpus_per_node: int = 8
    memory: float = 1.555e12
    peak: float = 312e12  # operations per second in bfloat16
    sustained: float = 0.3  # share of the peak in training; a guess
    bus: float = 200e9  # all adapters of a node
    tree_start: float = 4.4e-6
    tree_inside: float = 0.52e-6  # a hop over NVLink
    tree_outside: float = 5.0e-6  # a hop over the network
    tree_share: float = 0.9 / 3.8 / 2  # of the bus: flags take room, and every byte goes up and down
    ring_start: float = 3.6e-6
    ring_inside: float = 0.47e-6
    ring_outside: float = 2.7e-6
    ring_share: float = 1 / 4
    spanning: float = 1.8  # how much slower a hop over NVLink is where several nodes take part

    def all_reduce(self, size: float, gpus: int) -> float:
        """Seconds of an all-reduce of a few kilobytes, along a tree."""
        if gpus == 1:
            return 0.0
        nodes, inside = self._share_out(gpus, self.tree_inside)
        hops = (gpus // nodes - 1) * inside + math.log2(nodes) * self.tree_outside
        return self.tree_start + 2 * hops + size / (self.bus * self.tree_share)

    def broadcast(self, size: float, gpus: int) -> float:
        """Seconds of a broadcast, which NCCL sends around a ring: the last GPU gets it after all others."""
        if gpus == 1:
            return 0.0
        nodes, inside = self._share_out(gpus, self.ring_inside)
        hops = (gpus - nodes) * inside + (nodes - 1) * self.ring_outside
        return self.ring_start + hops + size / (self.bus * self.ring_share)

    def reduce_gradients(self, size: float, gpus: int) -> float:
        """Seconds of an all-reduce of megabytes, which is all bandwidth; it overlaps with the backward."""
        return 2 * (gpus - 1) / gpus * size / self.bus

    def _share_out(self, gpus: int, inside: float) -> tuple[int, float]:
        """Number of nodes, and seconds of a hop within one."""
        nodes = math.ceil(gpus / self.gpus_per_node)
        return nodes, inside * (self.spanning if nodes > 1 else 1)


def list_messages(channels: Iterable[int]) -> list[int]:
    """Bytes of each all-reduce that synchronised UN waits for in a step.

    Forward: a sum of squares per channel, and the number of rows. Backward: two sums per channel, and the number.
    """
    return [FLOAT * count for width in channels for count in (width + 1, 2 * width + 1)]


def predict(workload: Workload, cluster: Cluster, gpus: int) -> dict[str, float]:
    """Seconds of a step's parts on each of so many GPUs.

    Returns:
        `compute` of the whole step; `sync`, the all-reduces of UN with norm.sync=true, and `broadcast`, of the norms'
        buffers by DDP (one call for floats, one for counters), both of which nothing overlaps; `gradients`.
    """
    messages = list_messages(workload.channels)
    return {
        "compute": workload.operations / (cluster.peak * cluster.sustained),
        "sync": sum(cluster.all_reduce(size, gpus) for size in messages),
        "broadcast": cluster.broadcast(workload.norm_bytes, gpus) + cluster.broadcast(0, gpus),
        "gradients": cluster.reduce_gradients(FLOAT * workload.parameters, gpus),
    }


def build_workloads() -> list[Workload]:
    """Counts the models of the experiments with UN, without memory for their weights."""
    return [*map(_count_vision, VISION), *map(_count_translation, TRANSLATION)]


def _count_vision(experiment: str) -> Workload:
    config = _compose(experiment)
    size, images = config.data.image_size, config.data.batch_size
    shape = (config.data.num_channels, size, size)
    arguments = {"num_classes": config.data.num_classes, "img_size": size, "in_chans": shape[0]}
    with torch.device("meta"):
        model = build_model(config, arguments, build_norm_factory(config.norm)).eval()
        values: list[int] = []
        for norm in _list_norms(model):
            norm.register_forward_pre_hook(lambda _, inputs: values.append(inputs[0].numel()))
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *shape))
    operations = images * counter.get_total_flops() * (1 + BACKWARD)
    return _describe(VISION[experiment], f"{images} images", model, images * sum(values), operations)


def _count_translation(experiment: str) -> Workload:
    """Every norm sees as many tokens as a batch may have; attention itself, a few percent, is left out."""
    from un.translation.fairseq_library import Dictionary

    config, words = _compose(experiment), Dictionary()
    for number in range(NUM_WORDS[experiment] - len(words)):
        words.add_symbol(f"word{number}")
    arguments = {"source_dictionary": words, "target_dictionary": words}
    with torch.device("meta"):
        model = build_model(config, arguments, build_norm_factory(config.norm))
    tokens = config.data.max_tokens
    values = tokens * sum(norm.num_features for norm in _list_norms(model))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    operations = 2 * parameters * tokens * (1 + BACKWARD)  # the shared embedding counts as the last projection
    return _describe(TRANSLATION[experiment], f"{tokens} tokens", model, values, operations)


def _describe(title: str, batch: str, model: nn.Module, values: int, operations: float) -> Workload:
    norms = _list_norms(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = [sum(b.numel() * b.element_size() for b in m.buffers()) for m in (*norms, model)]
    own = sum(sizes[:-1])
    channels = tuple(norm.num_features for norm in norms)
    return Workload(title, batch, channels, values, operations, parameters, own, sizes[-1] - own)


def _list_norms(model: nn.Module) -> list[Norm]:
    return [module for module in model.modules() if isinstance(module, Norm)]


def _compose(experiment: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", overrides=[f"experiment={experiment}", "norm=un"])
