"""The commands of README and docs compose as they stand there, and those for any machine run, shrunk."""

import importlib.util
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.docs.commands import ROOT, Command, read_commands
from tests.integration.commands import find_run, run_here
from un.command.checks import check_config
from un.command.errors import CONFIG_FOLDER
from un.command.overrides import SHRINK, add_experiment, check_one_run, quote_override
from un.sweeps.results import plan_results, read_contents
from un.sweeps.run_names import list_runs
from un.sweeps.table_plans import describe_ablation, plan_table, read_table

COMMANDS = read_commands()
# What a page has just told the reader to write, and in its place something that is there.
WRITTEN = {"ablation=un_momentum": "ablation=un_centering", "norm=my_norm": "norm=un"}
PLUGINS = ("hydra/launcher=submitit", "hydra.launcher.", "hparams_search=")
PARSERS = ("scripts/prepare_iwslt14.py", "scripts/prepare_wmt14.py", "scripts/benchmark.py")
COMPOSED = {
    "eval.py": "eval",
    "scripts/fold.py": "fold",
    "scripts/export.py": "export",
    "scripts/predict.py": "predict",
    "scripts/retrofit.py": "retrofit",
}


def list_overrides(command: Command) -> list[str]:
    """The arguments as the programs hand them to Hydra, without options and what needs a plugin."""
    words = [WRITTEN.get(word, word).replace("$SLURM_NNODES", "4") for word in command.arguments]
    kept = [word for word in words if not word.startswith(("-", *PLUGINS))]
    return [quote_override(word, "-m" in words) for word in kept]


def check_composes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = list_overrides(command)
    if command.script == "train.py":
        if "-m" in command.arguments:  # one run of each sweep; expand() composes all of them in other tests
            overrides = [*list_runs(overrides)[-1].arguments]
        else:
            check_one_run(overrides, command.script)
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("train", add_experiment(overrides))
        check_config(config)
        OmegaConf.resolve(config)
    elif command.script in COMPOSED:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            compose(COMPOSED[command.script], overrides)
    elif command.script == "scripts/reproduce.py" and "results" in overrides:
        assert plan_results(read_contents(), [word for word in overrides if word != "results"], Path("kept")).runs
    elif command.script == "scripts/reproduce.py":
        (kind, name), *_ = (word.split("=") for word in overrides if word.startswith(("table=", "ablation=")))
        table = read_table(name) if kind == "table" else describe_ablation(name)
        others = [word for word in overrides if not word.startswith(("table=", "ablation=", "shift."))]
        assert table.models or plan_table(table, others).runs
    elif command.script in PARSERS and "--help" not in command.arguments:
        monkeypatch.setattr(sys, "argv", [command.script, *command.arguments])
        monkeypatch.syspath_prepend(str(ROOT / "scripts"))
        runpy.run_path(str(ROOT / command.script))["parse_options"]()
    else:
        assert importlib.util.spec_from_file_location("program", ROOT / command.script)
        assert (ROOT / command.script).is_file()


def test_there_are_commands_on_every_page_that_shows_some() -> None:
    assert {"README.md", "docs/data.md", "docs/runs.md", "docs/scaling.md", "docs/sweeps.md"} <= {
        command.page for command in COMMANDS
    }
    assert len(COMMANDS) > 50


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_of_the_documentation_composes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    check_composes(command, monkeypatch)


@pytest.mark.slow  # some dozens of trainings, of seconds each
@pytest.mark.parametrize("page", sorted({command.page for command in COMMANDS if not command.needs_more}))
def test_the_commands_of_a_page_run_shrunk(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, in an empty folder; `<folder>` is the run of the embedded default."""
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SHRINK, "1")
    assert run_here("train.py").code == 0
    folder = find_run(tmp_path / "runs")
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "tests/docs/seven.png", tmp_path / "photos")
    for command in COMMANDS:
        if command.page != page or command.needs_more:
            continue
        words = [WRITTEN.get(word, word) for word in command.arguments]
        words = [word.replace("<folder>", str(folder)).replace("norm=un/", "norm=un,debug=fast/") for word in words]
        outcome = run_here(command.script, *words)
        assert outcome.code == 0, (str(command), outcome)
