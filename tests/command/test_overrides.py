"""What the shell hands over is what Hydra reads."""

import os
from itertools import product
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from un.command.overrides import PATHS, add_experiment, quote_override

TEXTS = ["/a b", " a ", "[a]", "photos (1)", "{a: 1}", "runs/e/norm=un,a=1/seed=0", "=", "a:b", "a|b", "it's", 'a "b']
TEXTS += ["~a", "a&b", "$HOME", "#1", "a*b?", "`a`", "Käse 中文 🙂", "a\tb", "a\nb", "a\\b", "a\\", "a\\,b", 'a\\"b']
TEXTS += ["2024", "007", "1_000", "1e5", "-1", "true", "None", "nan", "choice(a,b)", "range(1,3)", "glob(*)"]


def read(argument: str) -> object:
    return OverridesParser.create().parse_override(argument).value()


def test_paths_are_read_as_typed() -> None:
    for key, text in product((*PATHS, "+data.path"), TEXTS):
        quoted = quote_override(f"{key}={text}")
        assert read(quoted) == text
        assert quote_override(quoted) == quoted


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_path_is_read_as_typed(text: str) -> None:
    value = read(quote_override(f"data.path={text}"))
    if text.lower() == "null":
        assert value is None
    elif text[0] == text[-1] in ("'", '"') and len(text) > 1:  # the user may quote what a program reads
        assert value in (text, text[1:-1].replace(f"\\{text[0]}", text[0]))
    elif "${" not in text and not text.startswith("~/") and text != "~":
        assert value == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("'a,b'", "a,b"), ('"a"', "a"), ("null", None), ("${paths.runs}/x", "${paths.runs}/x"), ("", "")],
)
def test_what_a_user_of_hydra_means(text: str, value: object) -> None:
    assert quote_override(f"init_weights={text}") == f"init_weights={text}"
    assert read(f"init_weights={text}") == value


def test_home() -> None:
    assert read(quote_override("data.path=~/a b")) == f"{Path.home()}/a b"
    assert read(quote_override("run=~")) == str(Path.home())
    assert read(quote_override("logger.wandb.notes=~/a")) == "~/a"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, text) for text in ("a b", "my run (2)", "it's", "a=b", "ü&%", "~a", "a\\b", "a\\=b", "[1", "{", "a]")),
        ("2024", 2024),
        ("1e-3", 0.001),
        ("[1,2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("true", True),
        ("'2024'", "2024"),
    ],
)
def test_other_values_mean_what_they_mean_to_hydra_if_anything(text: str, value: object) -> None:
    quoted = quote_override(f"+logger.wandb.notes={text}")
    assert read(quoted) == value
    assert quote_override(quoted) == quoted


@pytest.mark.parametrize("argument", ["norm", "~data.path", "=a b", "a b=c d", "norm=un,layernorm"])
def test_other_arguments_stay(argument: str) -> None:
    assert quote_override(argument) == argument


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("data.path=a,b", ["a", "b"]),
        ("data.path=/a b,[c],k=v", ["/a b", "[c]", "k=v"]),
        ("data.path='a,b', it's", ["a,b", "it's"]),
        ("data.path=2024,007,null", ["2024", "007", None]),
        ("data.path=choice(a,b)", ["a", "b"]),
        ("data.path=~/a,b", [str(Path.home() / "a"), "b"]),
        ("logger.wandb.notes=a (1),b=2", ["a (1)", "b=2"]),
        ("norm.window=[1,2],[3,4]", [[1, 2], [3, 4]]),
        ("norm=un,layernorm", ["un", "layernorm"]),
        ("seed=range(3)", [0, 1, 2]),
        ("optimizer.lr=1e-3", None),
        ("paths.runs=a,b", None),
        ("run=e/norm=un,norm.window=8/seed=0", None),
    ],
)
def test_commas_of_a_sweep(argument: str, values: list[object] | None) -> None:
    quoted = quote_override(argument, is_sweep=True)
    override = OverridesParser.create().parse_override(quoted)
    assert override.is_sweep_override() == (values is not None)
    if values is not None:
        strings = [f"data.path={value}" for value in override.sweep_string_iterator()]
        assert [read(string) for string in strings] == values
    assert quote_override(quoted, is_sweep=True) == quoted


def test_a_path_that_is_there_is_one_value_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("a,b")
    assert read(quote_override("init_weights=a,b", is_sweep=True)) == "a,b"


@pytest.mark.parametrize(
    ("overrides", "added"),
    [
        (["data=parallel_text", "norm=un"], ["experiment=my_text"]),
        (["data=multi30k"], ["experiment=multi30k_small"]),
        (["data=parallel_text", "experiment=multi30k_small"], []),
        (["data=parallel_text", "task=translation"], []),
        (["data=image_folder"], []),
        (["data=nothing"], []),
        (["data={"], []),
        ([], []),
    ],
)
def test_text_without_an_experiment_gets_one(overrides: list[str], added: list[str]) -> None:
    assert add_experiment(overrides) == [*overrides, *added]
