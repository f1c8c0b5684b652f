"""What UN costs on many GPUs: counts of the models, and predictions for a cluster that is assumed, not measured.

`--update results/scaling/README.md` writes the tables into that file. Training steps of several processes are measured
by `python scripts/benchmark.py processes --output results/scaling/processes.json`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Row, compose_experiment, make_dictionary
from un.norms.core.base import Norm
from un.reports.blocks import replace_blocks
from un.reports.rendering import format_table
from un.training.assembly import build_model, build_norm_factory

MODELS = {"imagenet_deit_small": "ViT-S", "imagenet_swin_tiny": "Swin-T"}
MODELS |= {"iwslt14_de_en": "Transformer IWSLT14", "wmt14_en_de_big": "Transformer big WMT14"}
NUM_WORDS = {"iwslt14_de_en": 10_152, "wmt14_en_de_big": 32_768}  # entries of the joint dictionaries
PROCESSES = Path(__file__).parents[2] / "results/scaling/processes.json"
GPUS = (8, 16, 64, 256, 1024)
FLOAT = 4  # bytes of a statistic or gradient
# Bytes per value of x in float32, forward and backward. On a GPU the backward of LayerNorm reads both inputs twice, the
# second time for the gradients of weight and bias (layer_norm_kernel.cu of torch); a test counts UN's operators.
LAYER_NORM = FLOAT * (2 + 5)
TRAFFIC = {"UN, eager": FLOAT * (3 + 7), "UN, one kernel a pass": FLOAT * (3 + 5)}
# Nodes of eight A100-40GB with eight 200 Gb/s adapters; seconds, and bytes per second. MEMORY and PEAK are from the
# white paper of the A100, BUS from the data sheet of the DGX A100. NCCL itself predicts times with the other constants
# (src/graph/tuning.cc at commit 01afd20a, for the protocol LL, which it takes for small messages).
GPUS_PER_NODE, MEMORY, PEAK, BUS = 8, 1.555e12, 312e12, 200e9
SUSTAINED = 0.3  # share of the peak that training reaches; a guess
TREE_START, TREE_INSIDE, TREE_OUTSIDE = 4.4e-6, 0.52e-6, 5.0e-6  # hops over NVLink, over the network
TREE_SHARE = 0.9 / 3.8 / 2  # of the bus: flags take room, and every byte goes up and down
RING_START, RING_INSIDE, RING_OUTSIDE, RING_SHARE = 3.6e-6, 0.47e-6, 2.7e-6, 1 / 4
SPANNING = 1.8  # how much slower a hop over NVLink is where several nodes take part


class Workload(NamedTuple):
    """A model with the batch of one GPU."""

    title: str
    channels: list[int]  # of each norm
    values: int  # that pass through all norms in one forward
    step: float  # seconds on one GPU without norms
    parameters: int
    norm_bytes: int  # of the norms' buffers

    @property
    def messages(self) -> list[int]:
        """The bytes of each all-reduce of synchronised UN: C sums and a count forward, 2 C and a count backward."""
        return [FLOAT * count for width in self.channels for count in (width + 1, 2 * width + 1)]

    def show_share(self, seconds: float) -> str:
        return f"{1e3 * seconds:.2f} ms, {seconds / self.step:.1%}"


def measure(options: argparse.Namespace) -> list[Row]:
    """Counts the models of the experiments with UN, without memory for their weights."""
    return [count_model(experiment)._asdict() for experiment in MODELS]


def show(rows: list[Row], options: argparse.Namespace) -> None:
    text = render_tables([Workload(**row) for row in rows])
    if options.update:
        replace_blocks(options.update, lambda _: text)
    else:
        print(text)


def count_model(experiment: str) -> Workload:
    """Counts a model; in translation every norm sees as many tokens as a batch may have, and attention is left out."""
    config = compose_experiment(experiment, "norm=un")
    data = config.data
    if experiment in NUM_WORDS:
        words = make_dictionary(NUM_WORDS[experiment])
        known = {"source_dictionary": words, "target_dictionary": words}
    else:
        known = {"num_classes": data.num_classes, "img_size": data.image_size, "in_chans": data.num_channels}
    with torch.device("meta"):
        model = build_model(config, known, build_norm_factory(config.norm)).eval()
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    channels = [norm.num_features for norm in norms]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if experiment in NUM_WORDS:
        size, unit, values, operations = data.max_tokens, "tokens", sum(channels), 2 * parameters
    else:
        sizes: list[int] = []
        for norm in norms:
            norm.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel()))
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, data.num_channels, data.image_size, data.image_size, device="meta"))
        size, unit, values, operations = data.batch_size, "images", sum(sizes), counter.get_total_flops()
    step = 3 * size * operations / (PEAK * SUSTAINED)  # the backward takes two operations for each of the forward
    norm_bytes = sum(buffer.nbytes for norm in norms for buffer in norm.buffers())
    return Workload(f"{MODELS[experiment]}, {size} {unit}", channels, size * values, step, parameters, norm_bytes)


def predict(one: Workload, gpus: int) -> dict[str, float]:
    """Returns the seconds that several GPUs communicate in a step; only gradients overlap with anything.

    NCCL reduces small messages along a tree, and sends DDP's broadcasts of buffers (floats, counters) around a ring.
    """
    nodes, messages = math.ceil(gpus / GPUS_PER_NODE), one.messages
    slower = SPANNING if nodes > 1 else 1
    tree = TREE_START + 2 * ((gpus // nodes - 1) * TREE_INSIDE * slower + math.log2(nodes) * TREE_OUTSIDE)
    ring = RING_START + (gpus - nodes) * RING_INSIDE * slower + (nodes - 1) * RING_OUTSIDE
    return {
        "sync=true": len(messages) * tree + sum(messages) / (BUS * TREE_SHARE),
        "DDP's broadcast": 2 * ring + one.norm_bytes / (BUS * RING_SHARE),
        "gradients": 2 * (gpus - 1) / gpus * FLOAT * one.parameters / BUS,
    }


def render_tables(workloads: list[Workload]) -> str:
    """Returns all tables in Markdown, each with a heading."""
    predictions = [
        {"": f"{one.title}: {part}"} | {str(gpus): one.show_share(predict(one, gpus)[part]) for gpus in GPUS}
        for one in workloads
        for part in predict(one, 2)
    ]
    measured = json.loads(PROCESSES.read_text())["rows"]
    steps = [{key.replace("_", " "): row[key] for key in row if key != "ms_quartiles"} for row in measured]
    tables: dict[str, list[Row]] = {
        "What the models hold and send, and what more UN moves than LayerNorm": list(map(describe_model, workloads)),
        "Predicted: what norms send, by the number of GPUs": predictions,
        "Training steps of several processes on this machine": steps,
    }
    texts = {title: format_table(rows[0], [row.values() for row in rows]) for title, rows in tables.items()}
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in texts.items()) + "\n"


def describe_model(one: Workload) -> Row:
    more = {name: one.values * (size - LAYER_NORM) / MEMORY for name, size in TRAFFIC.items()}
    return {
        "model, batch of a GPU": one.title,
        "norms": len(one.channels),
        "state, MB": f"{one.norm_bytes / 1e6:.2f}",
        "messages with sync": len(one.messages),
        "these, MB": f"{sum(one.messages) / 1e6:.2f}",
        "gradients, MB": round(FLOAT * one.parameters / 1e6),
        "values normed, millions": round(one.values / 1e6),
        "predicted step without norms": f"{1e3 * one.step:.0f} ms",
        **{f"more for {name}": one.show_share(seconds) for name, seconds in more.items()},
    }
