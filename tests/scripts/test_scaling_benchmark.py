"""The scaling benchmark: counts agree with what the norms do, predictions with formulas done by hand."""

import argparse
from pathlib import Path
from unittest import mock

import pytest
import torch

from un.norms import UnifiedNorm

pytestmark = pytest.mark.usefixtures("find_scripts")
MACHINE = {
    "bandwidth": 1e10,
    "traffic": {"float32": {name: {"forward": 8.0, "backward": 12.0, "saved": 4.0} for name in ("LayerNorm", "UN")}},
    "norms": {"LayerNorm": 0.001, "UN": 0.002},
    "processes": [],
    **{"rounds": 3, "cores": 2, "load": 1.0, "hardware": {"cpu": "a CPU"}},
}


def test_messages_are_those_that_a_norm_sends() -> None:
    from benchmarks.scaling_model import list_messages

    norm, sent = UnifiedNorm(6, sync=True), []
    distributed = mock.Mock(**{"is_initialized.return_value": True, "get_world_size.return_value": 2})
    distributed.all_reduce = lambda packed: sent.append(packed.numel() * packed.element_size())
    with mock.patch("un.norms.core.moments.dist", distributed):
        norm(torch.randn(5, 6, requires_grad=True)).sum().backward()
    assert sent == list_messages([6])


def test_traffic_counts_passes_and_neither_views_nor_statistics() -> None:
    from benchmarks.scaling_machine import TrafficCounter

    x, y, small = torch.ones(10, 4), torch.ones(10, 4), torch.ones(4)
    for call, passes in (
        (lambda: x + y, 3),
        (lambda: x * x, 2),
        (lambda: x.view(4, 10).t(), 0),
        (lambda: x.add_(y), 3),
        (lambda: torch.empty(10, 4), 0),
        (lambda: x * small, 2),
        (lambda: x.sum(0), 1),
    ):
        with TrafficCounter(threshold=x.numel()) as counter:
            call()
        assert counter.bytes == passes * 4 * x.numel()


def test_traffic_of_norms() -> None:
    from benchmarks.scaling_machine import NORMS, SHAPE, count_traffic

    rows = 4 * 2 / SHAPE[-1]  # LayerNorm saves two numbers a row
    layer_norm = {"forward": 8, "backward": 12, "saved": pytest.approx(4 + rows)}
    assert count_traffic(NORMS["LayerNorm"], torch.float32) == layer_norm
    un = count_traffic(NORMS["UN"], torch.float32)
    assert (un["forward"], un["saved"]) == (12, 4)  # reduce and apply; x


def test_models_are_counted() -> None:
    from benchmarks.scaling_model import _count_vision

    vit = _count_vision("imagenet_deit_small")
    assert vit.channels == (384,) * 25
    assert vit.values == 128 * 197 * 384 * 25
    assert vit.norm_bytes == 25 * ((2 + 4 + 4) * 384 * 4 + 3 * 8)
    assert vit.parameters == 22_050_664
    # published: 4.6 billion multiply-additions for an image (DeiT)
    assert vit.operations == pytest.approx(128 * 3 * 2 * 4.6e9, rel=0.01)


def test_translation_models_are_counted() -> None:
    from benchmarks.scaling_model import _count_translation

    transformer = _count_translation("iwslt14_de_en")
    assert transformer.channels == (512,) * 32
    assert transformer.values == 4096 * 512 * 32
    assert transformer.operations == 6 * 4096 * transformer.parameters
    assert transformer.other_bytes > 0  # fairseq's sinusoids


def test_predictions_by_hand() -> None:
    from benchmarks.scaling_model import Cluster

    cluster = Cluster(bus=1e12, tree_share=0.1, ring_share=0.1)
    assert cluster.all_reduce(1000, 1) == cluster.broadcast(1000, 1) == cluster.reduce_gradients(1000, 1) == 0
    assert cluster.all_reduce(1000, 8) == pytest.approx(4.4e-6 + 2 * 7 * 0.52e-6 + 1e-8)
    assert cluster.all_reduce(0, 32) == pytest.approx(4.4e-6 + 2 * (7 * 0.52e-6 * 1.8 + 2 * 5e-6))
    assert cluster.broadcast(1000, 16) == pytest.approx(3.6e-6 + 14 * 0.47e-6 * 1.8 + 2.7e-6 + 1e-8)
    assert cluster.reduce_gradients(1e12, 4) == pytest.approx(1.5)


def test_line_through_times() -> None:
    from benchmarks.scaling_machine import fit_line

    found = fit_line({4: 0.001, 4096: 0.001, 1_000_000: 0.003})
    assert found == {"latency": 0.001, "bandwidth": pytest.approx(5e8)}


def test_tables_replace_the_block_of_a_file(tmp_path: Path) -> None:
    from benchmarks import scaling
    from benchmarks.scaling_model import Workload

    options = argparse.Namespace(folder=tmp_path, table=True, update=tmp_path / "x.md", rounds=1)
    with pytest.raises(ValueError, match="measure without --table first"):
        scaling.measure(options)
    scaling.write_json(MACHINE, tmp_path / scaling.MACHINE)
    steps = {"rows": [{"processes": 4, "norm": "un", "ms": 12.34567, "ms_quartiles": [1, 2, 3], "norm_bytes": 100}]}
    scaling.write_json(steps, tmp_path / scaling.PROCESSES)
    options.update.write_text("before\n<!-- results -->\n<!-- end of results -->\nafter\n")
    workload = Workload("a model", "8 images", (4, 4), 1000, 1e12, 10**6, 336, 0)
    with mock.patch.object(scaling, "build_workloads", return_value=[workload]):
        scaling.show(scaling.measure(options), options)
    text = options.update.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "| a model, 8 images | 2 | 0 | 0.00 | 4 | 0.00 | 4 |" in text
    assert "| processes | norm | ms | norm bytes |" in text
    assert "| 4 | un | 12.35 | 100 |" in text
    assert "| a model: sync=true | – | 0.05 ms, 0.4% |" in text


@pytest.mark.slow  # starts two processes, each of which imports torch
def test_processes_measure_together() -> None:
    from benchmarks.scaling_machine import SIZES, measure_processes

    found = measure_processes(2, rounds=2)
    assert found["processes"] == 2
    assert list(found["all_reduce_seconds"]) == [str(size) for size in SIZES]
    assert min(found["latency"], found["bandwidth"], found["norms"]["UN, synchronised"]) > 0
