import argparse
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.translation.tiny import draw_sentences, make_dictionary
from un.norms import UnifiedNorm
from un.translation.fairseq_library import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from un.translation.fairseq_plugin import NORMS, NormTransformer

PLUGIN = Path(__file__).parents[2] / "un" / "translation" / "fairseq_plugin"
SIZES = " ".join(
    f"--{side}-{name} {value}"
    for side in ("encoder", "decoder")
    for name, value in {"layers": 1, "embed-dim": 16, "ffn-embed-dim": 16, "attention-heads": 2}.items()
)
PREPROCESS = """-s de -t en --trainpref train --validpref valid --testpref test --destdir bin --joined-dictionary
    --workers 1"""
TRAIN = f"""bin --user-dir {PLUGIN} --arch transformer_un_iwslt_de_en {SIZES} --share-all-embeddings
    --encoder-normalize-before --decoder-normalize-before --norm-window 2 --norm-warmup-steps 3 --norm-filtration
    --pad-mask --optimizer adam --lr 1e-3 --criterion label_smoothed_cross_entropy --label-smoothing 0.1
    --max-tokens 64 --required-batch-size-multiple 1 --num-workers 0 --cpu --save-dir checkpoints
    --no-progress-bar --log-format simple"""
GENERATE = f"""bin --user-dir {PLUGIN} --path checkpoints/checkpoint_last.pt --beam 2 --max-len-b 10 --cpu
    --required-batch-size-multiple 1 --num-workers 0 --no-progress-bar"""
COMMANDS = [
    ("preprocess", PREPROCESS),
    ("train", f"{TRAIN} --max-epoch 2"),
    ("train", f"{TRAIN} --max-epoch 3"),
    ("generate", GENERATE),
]
# One process, so that fairseq is imported once; and not this one, which has taken its configs out of Hydra's store.
IN_TURN = """
import sys
from fairseq_cli import generate, preprocess, train
tools = {"preprocess": preprocess, "train": train, "generate": generate}
for line in sys.stdin.read().splitlines():
    tool, *sys.argv[1:] = line.split()
    tools[tool].cli_main()
"""


def build(arch="transformer_un_iwslt_de_en", **options):
    sizes = {"encoder_embed_dim": 16, "decoder_embed_dim": 16, "encoder_layers": 1, "decoder_layers": 1}
    arguments = Namespace(**sizes, **options)
    ARCH_CONFIG_REGISTRY[arch](arguments)
    dictionary = make_dictionary()
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return ARCH_MODEL_REGISTRY[arch].build_model(arguments, task)


def list_norms(model):
    return [module for name, module in model.named_modules() if name.endswith("layer_norm")]


def test_every_arch_comes_with_un():
    model = build(norm_window=2, norm_warmup_steps=7, norm_filtration=True, pad_mask=True)
    assert isinstance(model, NormTransformer)
    assert len(list_norms(model)) == 5
    for norm in list_norms(model):
        assert isinstance(norm, UnifiedNorm)
        assert (norm.window, norm.warmup_steps, norm.filtration) == ((2, 2), 7, True)
    assert model.encoder.masks_norms
    assert not build("transformer_un_wmt_en_de").encoder.masks_norms
    assert {"transformer_un", "transformer_un_vaswani_wmt_en_de_big"} <= ARCH_MODEL_REGISTRY.keys()


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_of_the_project_can_be_chosen(name):
    kind = nn.LayerNorm if name == "layernorm" else NORMS[name]
    assert {type(norm) for norm in list_norms(build(norm=name, norm_filtration=False))} == {kind}


def test_options_that_the_norm_lacks_or_refuses_are_refused():
    with pytest.raises(ValueError, match=r"--norm-window is not an option of --norm batchnorm"):
        build(norm="batchnorm", norm_window=2)
    with pytest.raises(ValueError, match="window"):
        build(norm_window=0)


@pytest.mark.parametrize(("arguments", "expected"), [(["--norm-warmup-steps", "0"], 0), ([], 4000)])
def test_a_warm_up_of_no_steps_is_one(arguments, expected):
    parser = argparse.ArgumentParser()
    NormTransformer.add_args(parser)
    given = vars(parser.parse_args(arguments))
    model = build(norm="un", **{name: value for name, value in given.items() if name.startswith("norm_")})
    assert {norm.warmup_steps for norm in list_norms(model)} == {expected}


@pytest.fixture
def corpus(tmp_path):
    """Three splits of a text and itself in other words."""
    for split, number in {"train": 12, "valid": 4, "test": 3}.items():
        for language, letter in {"de": "d", "en": "e"}.items():
            lines = [" ".join(f"{letter}{word}" for word in words) for words in draw_sentences(number, longest=5)]
            (tmp_path / f"{split}.{language}").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_trains_resumes_and_generates(corpus):
    """Two epochs, a third one after resuming, and three translations."""
    lines = "\n".join(" ".join(f"{tool} {arguments}".split()) for tool, arguments in COMMANDS)
    command = [sys.executable, "-c", IN_TURN]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=corpus, timeout=500, check=False)
    log = done.stderr
    assert done.returncode == 0, log[-2000:]
    assert "warmup_steps=3" in log
    starts = [log.index(f"begin training epoch {epoch}") for epoch in (1, 2, 3)]
    assert starts[1] < log.index("Loaded checkpoint") < starts[2]
    assert [log.count(f"begin training epoch {epoch}") for epoch in (1, 2, 3)] == [1, 1, 1]
    state = torch.load(corpus / "checkpoints" / "checkpoint_last.pt", weights_only=False)["model"]
    (num_calls,) = {int(value) for name, value in state.items() if name.endswith(".iters")}
    early = torch.load(corpus / "checkpoints" / "checkpoint2.pt", weights_only=False)["model"]
    assert num_calls * 2 == 3 * int(early["encoder.layer_norm.iters"])
    translations = done.stdout.splitlines()
    assert sum(line.startswith("H-") for line in translations) == 3
    assert any(line.startswith("Generate test with beam=2: BLEU4") for line in translations)
