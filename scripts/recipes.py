"""Writes docs/recipes.md from docs/recipes/*.yaml and what the experiments compose: `python scripts/recipes.py`."""

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.command.errors import CONFIG_FOLDER
from un.reports.recipes import read_recipe, render_recipe

PAGE = Path(__file__).parents[1] / "docs/recipes.md"
RECIPES = PAGE.with_suffix("")
HEAD = """# The recipes, value by value

Published values beside those that an experiment composes with `norm=un`. `python scripts/recipes.py` writes this page
from the files in [recipes/](recipes); a test fails where page, configs and named tests disagree. "Choice" means that
no source gives a value. [switches.md](switches.md) says where `norm=un` itself differs from the paper.

Sources: UN is the official code (hikvision-research/Unified-Normalization), T2T is yitu-opensource/T2T-ViT with timm
0.3.4, DeiT is facebookresearch/deit with timm 0.3.2, Swin is microsoft/Swin-Transformer, and FS is
facebookresearch/fairseq (1.0, as included in the official code, and its documentation). The file or program follows
the name.
"""


def make_page() -> str:
    """Composes every recipe's experiments and returns the page."""
    recipes = [read_recipe(path) for path in sorted(RECIPES.glob("*.yaml"))]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        sections = [
            render_recipe(
                recipe, {name: compose("train", [f"experiment={name}", "norm=un"]) for name in recipe.experiments}
            )
            for recipe in recipes
        ]
    return "\n".join([HEAD, *sections])


if __name__ == "__main__":
    PAGE.write_text(make_page())
    print(PAGE)
