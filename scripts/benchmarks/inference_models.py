"""The models and arms of the inference benchmark, without training: speed does not depend on what weights hold."""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import make_dictionary
from un.folding import fold_norms
from un.norms import UnifiedNorm
from un.norms.core.base import Norm
from un.reports.measurements import ELEMENTARY, FOLDED, IDENTITY, LAYER_NORM
from un.surgery import replace_norms
from un.tasks import GraphPart

VISION = {"swin_tiny": "swin_tiny_patch4_window7_224", "vit_small": "vit_small_patch16_224", "t2t_vit_14": "t2t_vit_14"}
UNFOLDED = "un"
ARMS = (LAYER_NORM, ELEMENTARY, UNFOLDED, FOLDED, IDENTITY)
NUM_WORDS = 10152  # about the joint dictionary of IWSLT14 German-English
FOLD_EXAMPLES, FOLD_LENGTH = 2, 8  # of the inputs that folding traces
BEAM = 5
TRANSFORMER = "transformer"
BUILD_THREADS = 2  # of each process that builds
_ahead: dict[str, Future[Path]] = {}


class ElementaryLayerNorm(nn.Module):
    """LayerNorm in the operations of its formula, as where no fused kernel exists.

    Args:
        num_features: channels, the last axis.
        eps: added to the variance.
        **options: device and dtype.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, **options: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features, **options))
        self.bias = nn.Parameter(torch.zeros(num_features, **options))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (..., C)."""
        centered = x - x.mean(dim=-1, keepdim=True)
        variance = centered.pow(2).mean(dim=-1, keepdim=True)
        return centered / torch.sqrt(variance + self.eps) * self.weight + self.bias


@dataclass(frozen=True)
class Workload:
    """A model in all arms with the inputs of one batch size.

    Attributes:
        models: arm -> model.
        inputs: name -> tensor, in the order of the model's arguments.
        dynamic: see `GraphPart`; null where no graph can be exported.
        run: calls a model on the inputs.
        finish: arm -> what the arms agree on. Not always what `run` returns: a folded encoder's last norm is in the
            decoder.
        items: what is counted, and how many of them one call handles.
    """

    models: Mapping[str, nn.Module]
    inputs: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]] | None
    run: Callable[[Any], Any]
    finish: Callable[[str], Any]
    items: tuple[str, int]

    def cut_graph(self, arm: str) -> GraphPart:
        """Returns what the exporter takes."""
        assert self.dynamic is not None
        with torch.inference_mode():
            output = self.run(self.models[arm])
        count = len(output) if isinstance(output, tuple) else 1
        return GraphPart(self.models[arm], self.inputs, self.dynamic, ("output", "mask")[:count])


def build_workload(name: str, batch: int, dtype: str, options: argparse.Namespace) -> Workload:
    """Places one model in all arms, of equal weights and in evaluation mode, on the device.

    int8 models are float32 here.
    """
    kind = torch.float32 if dtype == "int8" else getattr(torch, dtype)
    place = {"device": torch.device(options.device), "dtype": kind}
    models = {arm: copy.deepcopy(model).to(**place) for arm, model in _build_once(_find_build(name)).items()}
    if name not in VISION:
        return _translate(name, models, batch, options, place["device"])
    inputs = {"images": torch.randn(batch, 3, 224, 224).to(**place)}

    def classify(model: Any) -> Tensor:
        return model(*inputs.values())

    axes = {"images": {0: "batch"}}
    return Workload(models, inputs, axes, classify, lambda arm: classify(models[arm]), ("images", batch))


@contextlib.contextmanager
def building_ahead(names: Iterable[str]) -> Iterator[None]:
    """Builds models in other processes meanwhile, for folding takes longer than many measurements on a GPU."""
    builds = dict.fromkeys(map(_find_build, names))
    with tempfile.TemporaryDirectory() as folder:
        pool = ProcessPoolExecutor(len(builds), get_context("spawn"))
        _ahead.update({build: pool.submit(_save, build, Path(folder) / f"{build}.pt") for build in builds})
        try:
            yield
        finally:
            _ahead.clear()
            pool.shutdown(cancel_futures=True)


def _find_build(name: str) -> str:
    """Returns what a model is part of: encoder and search are of one Transformer."""
    return name if name in VISION else TRANSFORMER


def _save(build: str, path: Path) -> Path:
    torch.set_num_threads(BUILD_THREADS)
    torch.save(_build(build), path)
    return path


@cache
def _build_once(build: str) -> Mapping[str, Any]:
    """Returns a model in all arms in float32 on the CPU."""
    if build in _ahead:
        models: Mapping[str, Any] = torch.load(_ahead[build].result(), weights_only=False)
        return models
    return _build(build)


def _build(build: str) -> Mapping[str, Any]:
    if build in VISION:
        from un.vision.models import create_model

        return build_arms(partial(create_model, VISION[build]), (torch.randn(FOLD_EXAMPLES, 3, 224, 224),))
    from un.translation.transformer import build_transformer

    words = make_dictionary(NUM_WORDS)
    form: dict[str, Any] = {
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "share_all_embeddings": True,
    }
    source = torch.randint(words.nspecial, len(words), (FOLD_EXAMPLES, FOLD_LENGTH))
    lengths = torch.full((FOLD_EXAMPLES,), FOLD_LENGTH)
    inputs = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": source}
    return build_arms(partial(build_transformer, words, words, **form), inputs)


def build_arms(build: Callable[[], nn.Module], fold_inputs: tuple[Any, ...] | dict[str, Any]) -> dict[str, nn.Module]:
    """Builds a model in all arms."""
    models: dict[str, nn.Module] = {}
    factories = {LAYER_NORM: None, ELEMENTARY: ElementaryLayerNorm, UNFOLDED: UnifiedNorm, IDENTITY: nn.Identity}
    for arm, factory in factories.items():
        torch.manual_seed(0)
        models[arm] = build().eval()
        if factory is not None:
            replace_norms(models[arm], factory)
    draw_statistics(models[UNFOLDED])
    models[FOLDED], _ = fold_norms(models[UNFOLDED], fold_inputs, on_unfoldable="raise")
    return {arm: models[arm] for arm in ARMS}


def draw_statistics(model: nn.Module) -> None:
    """Gives norms weights, biases and running statistics as after training, so that a wrong fold shows."""
    for norm in model.modules():
        if isinstance(norm, Norm):
            nn.init.normal_(norm.get_parameter("weight"), 1.0, 0.1)
            nn.init.normal_(norm.get_parameter("bias"), 0.0, 0.1)
            nn.init.uniform_(norm.get_buffer("running_var"), 0.5, 1.5)


def _translate(
    name: str, models: Mapping[str, Any], batch: int, options: argparse.Namespace, device: torch.device
) -> Workload:
    from un.translation.encoder_graph import EncoderGraph
    from un.translation.generation import BeamSearch

    words = models[LAYER_NORM].encoder.dictionary
    source = torch.randint(words.nspecial, len(words), (batch, options.length), device=device)
    source[:, -1] = words.eos()
    lengths = torch.full((batch,), options.length, device=device)
    inputs = {"source_tokens": source}
    if name == "iwslt_encoder":
        encoders = {arm: EncoderGraph(model).eval() for arm, model in models.items()}
        axes = {"source_tokens": {0: "batch", 1: "length"}}

        def predict(arm: str) -> Tensor:
            return models[arm](source, lengths, source)[0]

        items = ("tokens", source.numel())
        return Workload(encoders, inputs, axes, lambda model: model(source), predict, items)
    # Untrained models end at any length, and each arm at another: all search for as many steps here.
    search = BeamSearch(beam=BEAM, min_len=options.steps, max_len_b=options.steps)
    sample = {"id": torch.arange(batch, device=device), "net_input": {"src_tokens": source, "src_lengths": lengths}}
    translate = partial(search.translate, batch=sample)
    items = ("tokens", batch * options.steps)
    return Workload(models, inputs, None, translate, lambda arm: translate(models[arm]), items)
