"""Wrong command lines: no traceback and no hang, but one line on stderr and exit code 2, and no folder is spoilt."""

import contextlib
import gc
import os
import shutil
import signal
import types
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.bad_overrides import BROKEN, CONTRADICTIONS, SHORT, TASKS, VALUES, bad_lines, misspelt
from tests.integration.commands import Outcome, run, run_here

SECONDS = 120  # of a case, which takes one or two on an idle core


class HangError(BaseException):
    """No Exception, which programs turn into messages."""


@contextlib.contextmanager
def limit_time(seconds: int) -> Iterator[None]:
    """Raises HangError in the code that still runs then."""

    def stop(number: int, frame: types.FrameType | None) -> None:
        raise HangError(f"still running after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_limited(script: str, *arguments: str) -> Outcome:
    """Runs a script here; it works or ends with a line. An exception that leaves it is a fault of the program."""
    with limit_time(SECONDS), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        outcome = run_here(script, *arguments)
    gc.collect()  # locks of the folder, which end with the process
    if outcome.code:
        outcome.check_error()
    assert "Traceback" not in outcome.errors
    return outcome


def check_line(task: str, wrong: list[str]) -> None:
    """Runs a wrong line and, where it left something in the folder of the runs, the right one in the same folder."""
    with TemporaryDirectory() as runs:
        place = f"paths.runs={runs}"
        if run_limited("train.py", place, *TASKS[task], *wrong).code and any(Path(runs).iterdir()):
            right = run_limited("train.py", place, *TASKS[task])
            assert right.code == 0, right


@settings(max_examples=5, derandomize=True, deadline=None)
@given(bad_lines())
def test_bad_lines(line: tuple[str, list[str]]) -> None:
    check_line(*line)


@pytest.mark.slow  # 200 commands
@pytest.mark.timeout(7200)
@settings(max_examples=200, deadline=None)
@given(bad_lines())
def test_many_bad_lines(line: tuple[str, list[str]]) -> None:
    check_line(*line)


@pytest.mark.slow  # a process each, most of whose time is spent on imports
@pytest.mark.parametrize("wrong", [*CONTRADICTIONS[::8], *([text] for text in BROKEN[4::12])], ids=" ".join)
def test_bad_lines_as_a_user_types_them(wrong: list[str], tmp_path: Path) -> None:
    outcome = run("train.py", f"paths.runs={tmp_path}", *TASKS["vision"], *wrong)
    if outcome.code:
        outcome.check_error()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    runs = tmp_path_factory.mktemp("runs")
    outcome = run_here("train.py", f"paths.runs={runs}", *TASKS["vision"])
    assert outcome.code == 0, outcome
    return next(runs.rglob("result.json")).parent


KEYS_OF_FINISHED = {
    "eval.py": ["fold", "data.path", "data.num_workers", "trainer.accelerator", "average_checkpoints", "task.beam"],
    "scripts/fold.py": ["output", "data.path", "average_checkpoints", "trainer.enable_progress_bar"],
    "scripts/export.py": ["format", "fold", "quantize", "calibration", "output", "average_checkpoints"],
}


@st.composite
def bad_evaluations(draw: st.DrawFn) -> tuple[str, str]:
    """A program that opens a finished run, and an override."""
    script = draw(st.sampled_from(sorted(KEYS_OF_FINISHED)))
    key = draw(st.sampled_from(KEYS_OF_FINISHED[script]))
    kind = draw(st.sampled_from(["value", "value", "key", "unknown", "broken"]))
    if kind == "broken":
        return script, draw(st.sampled_from(BROKEN))
    value = draw(st.sampled_from(VALUES))
    name = {"value": key, "key": draw(misspelt(key)), "unknown": f"+{key}.nothing"}[kind]
    return script, f"{name}={value}"


def check_evaluation(script: str, wrong: str, finished: Path) -> None:
    """Runs a wrong line on a copy of the run, in a folder of its own; afterwards the run evaluates as before."""
    with TemporaryDirectory() as place, contextlib.chdir(place):
        folder = Path(shutil.copytree(finished, Path(place, "runs/digits_vit/norm=un/seed=0")))
        run_limited(script, f"run={folder}", wrong)
        right = run_limited("eval.py", f"run={folder}")
        assert "the same to the last bit" in right.output


@settings(max_examples=2, derandomize=True, deadline=None)
@given(wrong=bad_evaluations())
def test_bad_evaluations(wrong: tuple[str, str], finished: Path) -> None:
    check_evaluation(*wrong, finished)


@pytest.mark.slow  # 60 commands on a run
@pytest.mark.timeout(7200)
@settings(max_examples=60, deadline=None)
@given(wrong=bad_evaluations())
def test_many_bad_evaluations(wrong: tuple[str, str], finished: Path) -> None:
    check_evaluation(*wrong, finished)


@pytest.mark.parametrize(
    ("script", "arguments", "part"),
    [
        ("eval.py", ["run=/nowhere"], "/nowhere: no such folder"),
        ("eval.py", ["run="], "run"),
        ("eval.py", ["run=[]"], "run"),
        ("eval.py", ["rum=x"], "did you mean 'run'?"),
        ("scripts/fold.py", [], "run is missing"),
        ("scripts/fold.py", ["run=README.md"], "README.md: no such folder"),
        ("scripts/export.py", ["run=/nowhere", "format=onx"], "format=onx must be one of onnx, torch_export"),
        ("scripts/export.py", ["run=/nowhere", "calibration=-1"], "calibration=-1 must be a whole number"),
        ("scripts/export.py", ["--rum=x"], "unrecognized arguments: --rum=x"),
        ("scripts/reproduce.py", [], "name one table=<name>"),
        ("scripts/reproduce.py", ["table=un_windw", "--dry-run"], "did you mean 'un_window'?"),
        ("scripts/reproduce.py", ["table=../train", "--dry-run"], "table=../train is unknown"),
        ("scripts/reproduce.py", ["table=un_window", "--dry-run", "norm={"], "norm={ is unknown"),
        (
            "scripts/reproduce.py",
            ["table=un_window", "--dry-run", "experiment=nothing"],
            "experiment=nothing is unknown",
        ),
        ("scripts/reproduce.py", ["table=un_window", "--dryrun"], "unrecognized arguments: --dryrun"),
        ("scripts/reproduce.py", ["ablation=nothing", "--dry-run"], "ablation=nothing is unknown"),
        ("scripts/report.py", ["/nowhere"], "/nowhere"),
        ("scripts/report.py", ["--update", "/nowhere.md", "{folder}"], "/nowhere.md"),
        ("scripts/report.py", ["--output", "/proc/nowhere", "{folder}"], "/proc/nowhere"),
        ("scripts/report.py", ["--nothing"], "unrecognized arguments: --nothing"),
        ("scripts/analyse.py", ["run=/nowhere"], "run=/nowhere: no run folder there"),
        ("scripts/analyse.py", ["rum=/nowhere"], "'rum=/nowhere' is not an option"),
        ("scripts/analyse.py", ["run={folder}", "metrics=nothing"], "nothing"),
        ("scripts/analyse.py", ["run={folder}", "output=/proc/nowhere"], "/proc/nowhere"),
        ("scripts/benchmark.py", [], "required: what"),
        ("scripts/benchmark.py", ["nothing"], "invalid choice: 'nothing'"),
        ("scripts/benchmark.py", ["layers", "--rounds=0"], "--rounds: '0' must be a whole number of at least 1"),
        ("scripts/benchmark.py", ["layers", "--threads=x"], "--threads: 'x' must be a whole number"),
        ("scripts/benchmark.py", ["layers", "--output=/nowhere/x.json"], "/nowhere"),
        ("scripts/benchmark.py", ["processes", "--experiment=nothing"], "experiment=nothing is unknown"),
        ("scripts/benchmark.py", ["inference", "--models=nothing"], "invalid choice: 'nothing'"),
        ("scripts/benchmark.py", ["inference", "--folder=/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_bad_arguments(script: str, arguments: list[str], part: str, finished: Path) -> None:
    filled = [argument.replace("{folder}", str(finished)) for argument in arguments]
    run_limited(script, *filled).check_error(part)


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """A folder of things that look like data and weights."""
    for name in ("broken", "empty", "columns"):
        (tmp_path / name).mkdir()
    for split in ("train", "test"):
        (tmp_path / "broken" / f"{split}.parquet").write_bytes(b"PAR1" + os.urandom(100))
        (tmp_path / "columns" / f"{split}.csv").write_text("a,b\n1,2\n")
    (tmp_path / "file").write_bytes(os.urandom(100))
    return tmp_path


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ("data.path={}/broken", "broken"),
        ("data.path={}/empty", "empty"),
        ("data.path={}/columns", "columns"),
        ("data.path={}/file", "file"),
        ("init_weights={}/file", "file is cut short or not a checkpoint"),
        ("init_weights={}/empty", "no such checkpoint"),
        ("paths.runs={}/file", "Not a directory"),
    ],
)
def test_bad_files(wrong: str, part: str, spoilt: Path) -> None:
    line = [f"paths.runs={spoilt}/runs", "experiment=digits_vit", *SHORT, wrong.format(spoilt)]
    run_limited("train.py", *line).check_error(part)
