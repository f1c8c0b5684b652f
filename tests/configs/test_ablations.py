"""Every ablation lists its runs, every variant builds a norm of its own, and adding one takes a file."""

import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.configs.test_experiments import compose_config
from un.sweeps.launch import expand
from un.sweeps.run_names import list_runs

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "ablation").glob("*.yaml"))
NUM_VARIANTS = {
    "final_statistics": 4,
    "norms": 15,
    "un_smoothing": 16,
    "un_filtration": 8,
    "un_window": 8,
    "un_warmup": 10,
    "un_padding": 4,
    "un_compensation": 5,
    "un_centering": 3,
    "un_official_vs_paper": 10,
    "padding": 6,
    "retrofit": 12,
}
OTHER_QUESTIONS = ("padding", "retrofit")  # whose variants differ in more than the norm


@cache
def list_first_seeds(name):
    """The variants; every one has three seeds."""
    runs = list_runs([f"ablation={name}"])
    variants = [run for run in runs if run.folder.name == "seed=0"]
    expected = {variant.folder.with_name(f"seed={seed}") for variant in variants for seed in range(3)}
    assert {run.folder for run in runs} == expected
    return variants


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_is_another_norm_or_has_other_statistics(name):
    runs = list_first_seeds(name)
    assert len(runs) == NUM_VARIANTS[name]
    norms = []
    for run in runs:
        whole = compose_config(*run.arguments)
        config = whole.norm
        norms.append((OmegaConf.to_container(config, resolve=True), whole.final_statistics))
        if config._target_ is not None:
            instantiate(config, _convert_="all")(24, device="meta")  # no option is unknown or out of range
    assert name in OTHER_QUESTIONS or all(norm not in norms[:index] for index, norm in enumerate(norms))


def test_all_switches_of_the_paper_together_are_the_preset_of_the_paper():
    """Left out are one that does not act on a window of 4, and the preset's warm-up, which the paper does not have."""
    last = compose_config(*list_first_seeds("un_official_vs_paper")[-1].arguments).norm
    assert {**last, "single_window": "smoothed"} == compose_config("norm=un_paper", "norm.warmup_steps=0").norm


def test_the_other_variants_change_one_difference_each():
    official, paper = compose_config("norm=un").norm, compose_config("norm=un_paper", "norm.warmup_steps=0").norm
    different = {key for key in paper if paper[key] != official[key]}
    changed = []
    for run in list_first_seeds("un_official_vs_paper")[1:-1]:
        norm = compose_config(*run.arguments).norm
        changed.append({key for key in norm if norm[key] != official[key]})
        assert all(norm[key] == paper[key] for key in changed[-1])
    assert set.union(*changed) == different - {"single_window"}
    assert sum(map(len, changed)) == len(set.union(*changed))


def test_padding_shares_the_runs_without_it():
    runs = list_runs(["experiment=multi30k_small", "ablation=padding", "seed=0"])
    names = [run.folder.parent.name for run in runs]
    swept = ("batchnorm", "un", "un_recommended")
    assert names == [f"norm={norm}{mask}" for norm in swept for mask in ("", ",surgery.pad_mask=False")]
    assert [compose_config(*run.arguments).surgery.pad_mask for run in runs] == [True, False] * 3
    with pytest.raises(ValueError, match="images have no padding"):
        expand(["ablation=padding"])


def test_padding_where_there_is_none():
    with pytest.raises(ValueError, match=r"makes no sense for un\.vision\..*: images have no padding.*translation"):
        expand(["ablation=un_padding"])


def test_options_where_the_model_is_left_alone():
    with pytest.raises(ValueError, match=r"norm=layernorm .* no options: got norm\.filtration"):
        expand(["ablation=un_filtration", "norm=layernorm"])


def test_the_command_line_wins():
    runs = expand(["ablation=norms", "norm=un", "seed=5"])
    assert [str(run.folder) for run in runs] == ["runs/digits_vit/norm=un/seed=5"]


def test_adding_one_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies the file which the README names and changes the lines it shows."""
    page = (REPOSITORY / "README.md").read_text().split("## Add an ablation")[1].split("\n## ")[0]
    source, target = re.search(r"cp (configs/ablation/\S+) (configs/ablation/\S+)", page).groups()
    written = re.search(r"```yaml\n(.*?)```", page, re.DOTALL).group(1).splitlines()
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    old = (REPOSITORY / source).read_text().splitlines()
    assert sum(line not in old for line in written) == 3, "copy, change three lines"
    (tmp_path / target).write_text("\n".join(written))
    monkeypatch.setattr("un.sweeps.launch.CONFIG_FOLDER", configs)
    command = re.search(r"\n    python train\.py -m (.*ablation=\S+)", page).group(1).split()
    names = [run.folder.parent.name for run in expand(command) if run.folder.name == "seed=0"]
    assert names == ["norm=un,norm.momentum=0.5", "norm=un", "norm=un,norm.momentum=0.99"]  # 0.9 is the default
