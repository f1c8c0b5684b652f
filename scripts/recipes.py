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

What is published beside what an experiment composes with `norm=un`; written by `python scripts/recipes.py` from the
files in [recipes/](recipes), and a test fails where this page, a config or a named test no longer agrees. "Choice": no
source says anything. What `norm=un` itself computes, and where that departs from the paper, is in
[switches.md](switches.md).

Sources: UN is hikvision-research/Unified-Normalization, T2T yitu-opensource/T2T-ViT with timm 0.3.4, DeiT
facebookresearch/deit with timm 0.3.2, Swin microsoft/Swin-Transformer, FS facebookresearch/fairseq (1.0, as the UN code
carries it, and its documentation). A file or program behind the name says where.
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
