from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from un.command.errors import CONFIG_FOLDER, UserError
from un.training.config_keys import FROM_EXECUTION, read_norm
from un.training.data_identity import name_data
from un.training.run_folder import MAX_NAME_LENGTH, RunFolder, name_run


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "norm=un"),
        (["norm=un", "seed=4", "experiment=e", "force=true", "debug=fast"], "norm=un,debug=fast"),
        (
            ["paths.runs=/x", "data.path=/y", "data.num_workers=3", "logger=[csv,wandb]", "logger.wandb.group=a"],
            "norm=un",
        ),
        (["trainer.enable_progress_bar=false", "hydra/launcher=joblib", "+hydra.verbose=true"], "norm=un"),
        (["trainer=ddp", "trainer.devices=2", "trainer.num_nodes=3", "trainer.precision=16-mixed"], "norm=un"),
        (
            ["+trainer={devices: 2, max_steps: 5}", "trainer.max_epochs=3"],
            "norm=un,trainer.max_epochs=3,trainer.max_steps=5",
        ),
        (["callbacks=activation_stats", "callbacks.activation_stats.every_n_steps=5"], "norm=un"),
        (["callbacks.seeding.seed=5"], "norm=un,callbacks.seeding.seed=5"),
        (["optimizer.lr=1e-3", "model.depth=2"], "norm=un,model.depth=2,optimizer.lr=0.001"),
        (["norm.window=[4,1]", "model.name='a/b c'"], "norm=un,model.name=a_b_c,norm.window=4,1"),
        (["+task.extra=1", "~scheduler"], "norm=un,+task.extra=1,~scheduler"),
        (["init_weights='/x/norm=un/best.ckpt'"], "norm=un,init_weights=x_norm=un_best.ckpt"),
        (["+norm={window:2,filtration:False}"], "norm=un,norm.filtration=False,norm.window=2"),
        (["norm.window=8", "+norm={window:[2,1]}"], "norm=un,norm.window=2,1"),
        (["ablation=un_window", "+norm={}"], "norm=un"),
        (["data.path_suffix=a"], "norm=un,data.path_suffix=a"),
    ],
)
def test_name(overrides: list[str], name: str) -> None:
    assert name_run("e", "un", overrides, 4) == f"e/{name}/seed=4"


@pytest.mark.parametrize(
    ("experiment", "norm", "overrides", "name"),
    [
        ("digits_vit", "un", ["norm.momentum=0.9", "norm.window=4", "norm.sync=false"], "norm=un"),
        ("digits_vit", "un", ["norm.momentum=0.99", "norm.sync=true"], "norm=un,norm.momentum=0.99,norm.sync=True"),
        ("digits_vit", "un", ["+norm={window:4,eps:1e-5}"], "norm=un"),
        ("digits_vit", "un", ["norm.filtration=true", "norm.warmup_steps=100"], "norm=un"),  # of the experiment
        ("iwslt14_de_en", "un", ["norm.filtration=true"], "norm=un,norm.filtration=True"),
        ("wmt14_en_de_big", "un", ["norm.warmup_steps=4000"], "norm=un"),  # of the experiment that it builds on
        ("digits_vit", "un", ["norm_defaults.filtration=false", "norm.filtration=true"], None),
        ("digits_vit", "un_paper", ["norm.compensation=none", "norm.window=4"], "norm=un_paper"),
        ("digits_vit", "un_paper", ["norm.compensation=full"], "norm=un_paper,norm.compensation=full"),
        ("digits_vit", "un", ["norm.count=calls"], "norm=un,norm.count=calls"),  # which accumulation would change
        ("digits_vit", "mine", ["norm.window=4"], "norm=mine,norm.window=4"),
        ("digits_vit", "un", ["norm.window=true"], "norm=un,norm.window=True"),
    ],
)
def test_an_option_of_the_norm_with_its_own_value_changes_nothing(experiment, norm, overrides, name) -> None:
    name = name or "norm=un,norm.filtration=True,norm_defaults.filtration=False"
    assert name_run(experiment, norm, overrides, 0) == f"{experiment}/{name}/seed=0"


def test_the_options_read_from_files_are_those_that_hydra_composes() -> None:
    for norm in ("un", "un_paper", "prepbn", "powernorm_ungrouped"):
        for experiment in ("digits_vit", "wmt14_en_de_big"):
            with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
                config = compose("train", [f"experiment={experiment}", f"norm={norm}"])
            expected = {f"norm.{k}": v for k, v in OmegaConf.to_container(config.norm, resolve=True).items()}
            expected = {k: v for k, v in expected.items() if not k.startswith("norm._") and k not in FROM_EXECUTION}
            assert read_norm(norm, experiment) == expected


@pytest.mark.parametrize("letter", ["x", "照"])
def test_long_names_are_shortened_and_stay_different(letter: str) -> None:
    names = [name_run("e", "un", [f"model.name='{letter * 300}{number}'"], 0) for number in range(2)]
    assert names[0] != names[1]
    assert all(len(part.encode()) <= MAX_NAME_LENGTH for name in names for part in name.split("/"))


@pytest.mark.parametrize(
    ("experiment", "is_named"),
    [("imagenet_t2t_vit_14", True), ("digits_vit", False)],
)
def test_precision_is_part_of_the_name_where_the_recipe_says_it(experiment: str, is_named: bool) -> None:
    name = name_run(experiment, "un", ["trainer.precision=bf16-true"], 0)
    assert name == f"{experiment}/norm=un{',trainer.precision=bf16-true' if is_named else ''}/seed=0"


def test_data_of_the_users_own_are_part_of_the_name(tmp_path: Path) -> None:
    own = name_data("image_folder", str(tmp_path))
    path = f"data.path={tmp_path}"
    assert name_run("e", "un", ["data=image_folder", path], 0) == f"e/norm=un,data=image_folder,data.path={own}/seed=0"
    assert name_run("e", "un", [f"+{path}"], 0, "parallel_text") == f"e/norm=un,data.path={own}/seed=0"
    assert name_run("e", "un", [f"+data={{path:{tmp_path},limit:5}}"], 0, "digits") == (
        f"e/norm=un,data.limit=5,data.path={own}/seed=0"
    )
    for choice in ("cifar10", "iwslt14_de_en"):
        assert name_run("e", "un", [path], 0, choice) == "e/norm=un/seed=0"
    assert name_run("e", "un", [path, "data.path=sklearn-digits"], 0, "digits") == "e/norm=un/seed=0"


def test_config_of_another_run(tmp_path: Path) -> None:
    config = {"seed": 0, "optimizer": {"lr": 0.1}, "data": {"path": "/a"}, "trainer": {"accelerator": "gpu"}}
    folder = RunFolder(tmp_path)
    folder.write_config(config)
    folder.checkpoints.mkdir()
    folder.last.touch()
    folder.write_config({**config, "data": {"path": "/b"}, "trainer": {"accelerator": "cpu"}, "force": True})
    assert folder.read_config() == config
    with pytest.raises(UserError, match=r"optimizer.lr was 0.1, is 0.2; surgery.x was None, is 1\).*force=true"):
        folder.write_config({**config, "optimizer": {"lr": 0.2}, "surgery": {"x": 1}})
    with pytest.raises(UserError, match=r"data.path was '/a', is None"):
        folder.write_config({**config, "data": {"path": None}})


def test_data_of_another_run(tmp_path: Path) -> None:
    folder, pictures = RunFolder(tmp_path / "run"), tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"1234")
    folder.checkpoints.mkdir(parents=True)
    folder.write_fingerprint("/nowhere")  # nothing to protect yet
    folder.write_fingerprint(str(pictures))
    folder.last.touch()
    folder.write_fingerprint(str(pictures))
    (pictures / "b.png").write_bytes(b"12")
    with pytest.raises(
        UserError, match=r"holds a run of other data.*\(1 files, 4 bytes.*now .*\(2 files, 6 bytes"
    ) as error:
        folder.write_fingerprint(str(pictures))
    assert "\n" not in str(error.value)
    folder.fingerprint.unlink()  # as of a run of an early version
    folder.write_fingerprint(str(pictures))
    assert not folder.fingerprint.exists()


def test_what_failed_at_once_was_never_interrupted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.status == "missing"
    folder.log.touch()
    folder.write_config({"seed": 0})
    folder.write_fingerprint(None)
    assert folder.status == "interrupted"  # or still running
    folder.forget_start()
    assert folder.status == "failed"
    for trained in (folder.metrics, folder.last):
        folder.write_config({"seed": 0})
        folder.checkpoints.mkdir(exist_ok=True)
        trained.touch()
        folder.forget_start()
        assert folder.status == "interrupted"
        trained.unlink()


def test_what_a_finished_run_did_not_record(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    before = {"logger": {}, "callbacks": {"watch_norms": {"every_n_steps": 50}, "checkpoints": {"every_n_steps": 9}}}
    assert folder.list_unrecorded(before) == []  # nothing is known
    folder.write_config(before)
    assert folder.list_unrecorded(before) == []
    asked = {
        "logger": {"wandb": {"project": "p", "group": None}},
        "callbacks": {
            "watch_norms": {"every_n_steps": 10},
            "activation_stats": {"every_n_steps": 10, "include": ["*"]},
            "checkpoints": {"every_n_steps": 5},
            "progress_bar": None,
        },
    }
    assert folder.list_unrecorded(asked) == ["callbacks.activation_stats", "logger.wandb"]
    assert folder.list_unrecorded({"logger": None, "callbacks": {"watch_norms": None}}) == []
