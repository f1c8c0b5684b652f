"""The translation experiments build and run; tests/reports/test_recipes.py compares their values."""

from pathlib import Path

import pytest

from tests.configs.test_experiments import compose_config, run
from un.training.assembly import build

SMALL = ["phrasebook_tiny", "multi30k_small", "tatoeba_small", "my_text"]
TRANSLATION = [*SMALL, "iwslt14_de_en", "wmt14_en_de", "wmt14_en_de_big"]
NUM_NORMS = dict.fromkeys(SMALL, 12)  # 32 in the others
SCORES = {"test/loss", "test/ppl", "test/bleu", "test/sacrebleu", "test/chrf"}
SHRUNK = ["debug=fast", "data.limit=8", "data.batch_size=4", "trainer.accelerator=cpu", "callbacks.checkpoints=null"]
# A narrow and shallow model, for the ordinary tests.
NARROW = ["encoder_embed_dim=16", "encoder_ffn_embed_dim=16", "encoder_attention_heads=2", "encoder_layers=1"]


@pytest.mark.parametrize("name", TRANSLATION)
def test_runs_shrunk(name: str, tmp_path: Path) -> None:
    narrow = [f"++model.{option}" for option in (*NARROW, "decoder_layers=1")]
    config = compose_config(f"experiment={name}", *SHRUNK, *narrow, "trainer.max_steps=2")
    assert config.data.path is None
    assert run(config, tmp_path) >= SCORES


def test_decay_takes_in_every_parameter() -> None:
    config = compose_config("experiment=iwslt14_de_en", *SHRUNK, *(f"++model.{option}" for option in NARROW))
    _, module = build(config)
    groups = module.make_optimizer(module.model).param_groups
    assert {group["weight_decay"] for group in groups} == {1e-4}
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(
        p.numel() for p in module.model.parameters()
    )


@pytest.mark.slow  # full-size models, minutes and gigabytes on a CPU; the batch alone is smaller
@pytest.mark.parametrize("name", TRANSLATION)
def test_runs_one_step_at_full_size(name: str, tmp_path: Path) -> None:
    config = compose_config(f"experiment={name}", *SHRUNK, "trainer.max_steps=1")
    _, module = build(config)
    count = sum("UnifiedNorm" in type(part).__name__ for part in module.model.modules())
    assert count == NUM_NORMS.get(name, 32)
    assert run(config, tmp_path) >= SCORES
