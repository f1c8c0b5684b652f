"""The page of the recipes is up to date, and what it says is compared, not claimed."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from un.reports.recipes import Recipe, Value, read_recipe, render_recipe

ROOT = Path(__file__).parents[2]
OURS = {"digits_vit", "cifar10_vit_tiny", "cifar10_swin_tiny", "phrasebook_tiny", "multi30k_small", "tatoeba_small"}
OURS |= {"my_images", "my_text"}
FILES = sorted((ROOT / "docs/recipes").glob("*.yaml"))
CONFIG = OmegaConf.create(
    {"lr": 5e-4, "clip": None, "betas": [0.9, 0.98], "mixup": {"prob": 1.0, "mode": "batch", "cut": True}}
)


def render(**fields: Any) -> list[str]:
    """Returns the cells of a table with one row."""
    value = Value(**{"value": "rate", "source": "UN: main.py", **fields})
    text = render_recipe(Recipe("A recipe", ("small",), (value,)), {"small": CONFIG})
    return [cell.strip() for cell in text.splitlines()[-1].strip("|").split(" | ")]


@pytest.mark.usefixtures("find_scripts")
def test_the_page_is_what_scripts_recipes_writes() -> None:
    from recipes import PAGE, make_page

    assert PAGE.read_text() == make_page(), "run scripts/recipes.py"


def test_every_named_test_is_there_and_every_recipe_but_ours_has_a_table() -> None:
    recipes = [read_recipe(path) for path in FILES]
    named = {value.test for recipe in recipes for value in recipe.values if value.test is not None}
    for file, _, name in (test.partition("::") for test in named):
        assert f"def {name}(" in (ROOT / file).read_text(), name
    experiments = {name for recipe in recipes for name in recipe.experiments}
    assert {path.stem for path in (ROOT / "configs/experiment").glob("*.yaml")} - OURS == experiments


def test_a_value_of_a_config_is_compared() -> None:
    texts = {"lr": "0.0005", "clip": "off", "betas": "0.9, 0.98", "mixup": "prob 1, mode batch, cut true"}
    for key, text in texts.items():
        cells = render(key=key, published=OmegaConf.to_container(CONFIG)[key])
        assert cells == ["rate", text, f"`{key}={text}`", "UN: main.py", "equal"]


def test_another_value_needs_a_reason() -> None:
    assert render(key="lr", published=1e-3, reason="ours is smaller")[-1] == "**differs**: ours is smaller"
    with pytest.raises(ValueError, match=r"rate: `lr=0.0005` needs a reason \(published: 0.001\)"):
        render(key="lr", published=1e-3)
    with pytest.raises(ValueError, match="is the published value, but a reason for another one is given"):
        render(key="lr", published=5e-4, reason="ours is smaller")


def test_what_code_does_is_held_by_a_test_or_differs_for_a_reason() -> None:
    cells = render(published="by epoch", test="tests/a.py::test_rates")
    assert cells[1:] == ["by epoch", "by epoch", "UN: main.py", "equal ([test_rates](../tests/a.py))"]
    cells = render(published="once", ours="twice", reason="so")
    assert cells[1:] == ["once", "twice", "UN: main.py", "**differs**: so"]


def test_a_choice_is_compared_with_nothing() -> None:
    cells = render(key="lr", source="choice", reason="as elsewhere")
    assert cells[1:] == ["–", "`lr=0.0005`", "choice", "as elsewhere"]


def test_experiments_of_one_table_agree() -> None:
    value = Value("rate", "UN", 5e-4, "lr")
    configs = {"small": CONFIG, "large": OmegaConf.create({"lr": 1.0})}
    with pytest.raises(ValueError, match=r"lr differs between the experiments of a recipe: 0\.0005, 1"):
        render_recipe(Recipe("A recipe", ("small", "large"), (value,)), configs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("publisched", "a.yaml: there is no key values.0.publisched; did you mean 'published'"),
        ("published", "a.yaml: rate needs a key, a test, or ours and the reason"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    path, entry = tmp_path / "a.yaml", {"value": "rate", "source": "UN", name: 1}
    OmegaConf.save({"title": "A recipe", "experiments": ["small"], "values": [entry]}, path)
    with pytest.raises(ValueError, match=message):
        read_recipe(path)
