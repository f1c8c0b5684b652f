"""The translation experiments say what their recipes say, build and run. The numbers are the published recipes'."""

import pytest
from omegaconf import OmegaConf

from tests.configs.test_experiments import compose_config, run
from un.training.assembly import build

TRANSLATION = ["phrasebook_tiny", "multi30k_small", "iwslt14_de_en", "wmt14_en_de", "wmt14_en_de_big"]
NUM_NORMS = {"phrasebook_tiny": 12, "multi30k_small": 12}  # 32 in the others
SCORES = {"test/loss", "test/ppl", "test/bleu", "test/sacrebleu", "test/chrf"}
SHRUNK = [
    "debug=fast",
    "data.limit=8",
    "data.batch_size=4",
    "trainer.max_steps=2",
    "trainer.accelerator=cpu",
    "callbacks.checkpoints=null",
]
# A narrow model of the recipe's depth, for the ordinary tests.
NARROW = [
    "+model.encoder_embed_dim=16",
    "+model.encoder_ffn_embed_dim=16",
    "+model.encoder_attention_heads=2",
]

COMMON = {
    "optimizer.opt": "adamw",
    "optimizer.betas": [0.9, 0.98],
    "optimizer.eps": 1e-8,
    "optimizer.filter_bias_and_bn": False,
    "model.share_all_embeddings": True,
    "task.label_smoothing": 0.1,
    "norm.window": 4,
    "norm.filtration": False,
    "trainer.accumulate_grad_batches": 1,
}
RECIPES = {
    "multi30k_small": COMMON
    | {
        "data.bpe_merges": 6000,
        "data.lowercase": True,
        "data.max_tokens": 2048,
        "model.encoder_embed_dim": 128,
        "model.encoder_ffn_embed_dim": 512,
        "model.encoder_attention_heads": 4,
        "model.encoder_layers": 2,
        "model.encoder_normalize_before": True,
        "model.dropout": 0.1,
        "optimizer.lr": 3e-3,
        "optimizer.weight_decay": 0.0,
        "scheduler.warmup_steps": 400,
        "trainer.max_epochs": 7,
        "trainer.gradient_clip_val": 1.0,
        "norm.warmup_steps": 300,
        "surgery.pad_mask": True,
        "task.beam": 5,
    },
    "iwslt14_de_en": COMMON
    | {
        "model.arch": "transformer_iwslt_de_en",
        "model.encoder_normalize_before": True,
        "model.decoder_normalize_before": True,
        "model.dropout": 0.3,
        "model.attention_dropout": 0.1,
        "model.activation_dropout": 0.1,
        "data.max_tokens": 4096,
        "data.batch_size": None,
        "optimizer.lr": 7e-4,
        "optimizer.weight_decay": 1e-4,
        "scheduler.warmup_steps": 6000,
        "scheduler.warmup_lr": 1e-7,
        "trainer.max_steps": 100000,
        "trainer.max_epochs": -1,
        "trainer.gradient_clip_val": None,
        "trainer.precision": "32-true",
        "norm.warmup_steps": 4000,
        "surgery.pad_mask": False,
        "average_checkpoints": 10,
        "task.beam": 5,
        "task.length_penalty": 1.0,
        "task.max_len_a": 0.0,
        "task.max_len_b": 200,
        "task.val_bleu": {"max_len_a": 1.2, "max_len_b": 10},
    },
    "wmt14_en_de": COMMON
    | {
        "trainer.precision": "32-true",
        "model.arch": "transformer_wmt_en_de",
        "model.encoder_normalize_before": True,
        "model.dropout": 0.1,
        "data.max_tokens": 3584,
        "optimizer.lr": 7e-4,
        "optimizer.weight_decay": 0.0,
        "scheduler.warmup_steps": 4000,
        "trainer.max_steps": 100000,
        "trainer.gradient_clip_val": None,
        "average_checkpoints": 10,
        "task.beam": 4,
        "task.length_penalty": 0.6,
    },
    "wmt14_en_de_big": COMMON
    | {
        "model.arch": "transformer_vaswani_wmt_en_de_big",
        "model.dropout": 0.3,
        "model.attention_dropout": 0.0,
        "data.max_tokens": 3584,
        "optimizer.lr": 5e-4,
        "scheduler.warmup_steps": 4000,
        "task.beam": 4,
        "task.length_penalty": 0.6,
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_says_what_the_recipe_says(name):
    config = compose_config(f"experiment={name}", "norm=un")
    for key, value in RECIPES[name].items():
        assert OmegaConf.select(config, key, throw_on_missing=True) == value, key


@pytest.mark.parametrize("name", TRANSLATION)
def test_runs_shrunk(name, tmp_path):
    narrow = [option.removeprefix("+") if "small" in name or "tiny" in name else option for option in NARROW]
    config = compose_config(f"experiment={name}", *SHRUNK, *narrow)
    assert config.data.path is None
    assert run(config, tmp_path).keys() >= SCORES


def test_decay_takes_in_every_parameter():
    config = compose_config("experiment=iwslt14_de_en", *SHRUNK, *NARROW)
    _, module = build(config)
    groups = module.make_optimizer(module.model).param_groups
    assert {group["weight_decay"] for group in groups} == {1e-4}
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(
        p.numel() for p in module.model.parameters()
    )


@pytest.mark.slow  # full-size models, minutes and gigabytes on a CPU; the batch alone is smaller
@pytest.mark.parametrize("name", TRANSLATION)
def test_runs_one_step_at_full_size(name, tmp_path):
    config = compose_config(f"experiment={name}", *SHRUNK, "trainer.max_steps=1")
    _, module = build(config)
    count = sum("UnifiedNorm" in type(part).__name__ for part in module.model.modules())
    assert count == NUM_NORMS.get(name, 32)
    assert run(config, tmp_path).keys() >= SCORES
