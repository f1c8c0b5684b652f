"""From table files to runs and numbers."""

from pathlib import Path

import pytest

from tests.reports.runs import make_measurement, make_run
from un.command.errors import UserError
from un.reports.comparison import compare_settings
from un.reports.rendering import list_rows
from un.reports.runs import find_runs
from un.reports.specification import parse_table
from un.sweeps.launch import expand
from un.sweeps.run_names import list_runs
from un.sweeps.table_plans import describe_ablation, list_tables, plan_table, read_table
from un.sweeps.tables import compare_known, fill_table, find_on_disk, quote_published
from un.training.run_folder import read_overrides

CONFIGS = Path(__file__).parents[2] / "configs"
ABLATIONS = {path.stem for path in (CONFIGS / "ablation").glob("*.yaml")}
# Models beside which stands the abstract's claim, which names none.
ABSTRACT = ("ViT-S", "T2T-ViT-14", "IWSLT14 Transformer, encoder", "IWSLT14 Transformer, beam search")
# Figures seen in the official readmes and abstracts; (row, column) -> value.
PUBLISHED = {
    "iwslt14": {
        **{("LayerNorm", 0): 35.3, ("BatchNorm", 0): 31.1, ("UN", 0): 35.4, ("PowerNorm", 0): 35.87},
        ("PowerNorm without group scaling", 0): 35.0,
    },
    "rivals_gpt2": {("LayerNorm", 0): 2.94, ("RMSNorm", 0): 2.95, ("Dynamic Tanh", 0): 2.97, ("Dynamic erf", 0): 2.94},
    "rivals_fakeln": {
        **dict(zip([("GPT-2 small", i) for i in range(3)], (3.1006, 3.0126, 3.0797), strict=True)),
        **dict(zip([("GPT-2 medium", i) for i in range(3)], (2.8145, 2.7390, 2.7642), strict=True)),
        **dict(zip([("GPT-2 large", i) for i in range(3)], (2.6623, 2.6240, 2.6384), strict=True)),
        **dict(zip([("GPT-2 XL", i) for i in range(3)], (2.5567, 2.4799, 2.5052), strict=True)),
    },
    "rivals_tapernorm": {
        **dict(zip([("RMSNorm, batch 1", i) for i in range(3)], (40.7, 79.3, 163.2), strict=True)),
        **dict(zip([("TaperNorm folded, batch 1", i) for i in range(3)], (48.7, 96.8, 195.5), strict=True)),
        **dict(zip([("RMSNorm, batch 4", i) for i in range(3)], (149.3, 290.5, 546.3), strict=True)),
        **dict(zip([("TaperNorm folded, batch 4", i) for i in range(3)], (180.4, 344.9, 615.9), strict=True)),
        ("TaperNorm folded, last-token logits, up to", 3): 1.22,
        ("TaperNorm explicit, with KV cache", 3): 1.14,
        ("TaperNorm folded, with KV cache", 3): 1.18,
    },
    "rivals_imagenet": {
        **{("LayerNorm", 0): 79.9, ("BatchNorm", 0): 77.3, ("InstanceNorm", 0): 77.7, ("GroupNorm", 0): 78.3},
        **{("Switchable Normalization", 0): 80.1, ("ScaleNorm", 0): 80.0, ("PowerNorm", 0): 79.8},
        **{("Dynamic Token Normalization", 0): 80.6, ("LayerNorm", 1): 82.3, ("Dynamic Tanh", 1): 82.5},
        **{("Dynamic erf", 1): 82.8, ("RMSNorm", 1): 82.4, ("GroupNorm", 1): 82.5, ("LayerNorm", 2): 83.1},
        **{("Dynamic Tanh", 2): 83.6, ("Dynamic erf", 2): 83.8, ("RMSNorm", 2): 83.0, ("GroupNorm", 2): 83.1},
        **{("Fixup", 3): 77.2, ("SkipInit", 3): 74.1, ("σReparam", 3): 82.5, ("Dynamic Tanh", 3): 82.8},
        **{("LayerNorm", 4): 71.89, ("BatchNorm", 4): 68.70, ("BN + FFN-BN", 4): 69.04},
    },
    "imagenet_t2t_vit_14": {("LayerNorm", 0): 81.5, ("BatchNorm", 0): 79.8, ("UN", 0): 80.9},
    "cifar_transfer": {
        **{("LayerNorm", 0): 98.3, ("BatchNorm", 0): 96.6, ("UN", 0): 98.3},
        **{("LayerNorm", 1): 88.4, ("BatchNorm", 1): 88.2, ("UN", 1): 88.9},
    },
    "efficiency": {
        **{("Swin-T", column): 31.2 for column in (0, 1)},
        **{(label, column): 31.0 for label in ABSTRACT for column in (0, 1)},
        **{(label, column): 18.0 for label in ABSTRACT for column in (3, 4)},
    },
}


@pytest.mark.parametrize("name", list_tables())
def test_published_figures_are_those_and_no_others(name: str) -> None:
    rows = read_table(name).rows
    figures = {(row.label, i): figure.value for row in rows for i, figure in enumerate(row.published) if figure}
    assert figures == PUBLISHED.get(name, {})


def test_every_ablation_has_a_table() -> None:
    asked = {row.arguments for name in list_tables() for row in read_table(name).rows}
    assert {(f"ablation={name}",) for name in ABLATIONS} <= asked


@pytest.mark.parametrize("name", ["norms", "iwslt14", "cifar_transfer", "un_window", "un_official_vs_paper"])
def test_runs_of_a_table_are_those_that_the_command_would_start(name: str, tmp_path: Path) -> None:
    table = read_table(name)
    plan = plan_table(table, [f"paths.runs={tmp_path}"])
    last = [cell[-1] for cell in plan.rows[-1].runs if cell]
    assert len(last) == len(table.columns)
    for run in last:
        (planned,) = expand(run.arguments)
        assert planned.folder == run.folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=digits_vit", "ablation=un_window", "seed=range(2)", "norm.window=[4,8],2"],
        ["norm=un,layernorm", "optimizer.lr=1e-3,0.01", "paths.runs=/some/where"],
        ["norm=un", 'init_weights="${paths.runs}/x/norm=un/best.ckpt"', "experiment=cifar10_transfer", "debug=fast"],
        ["experiment=imagenet_t2t_vit_14", "data.path='a b=c'", "trainer=ddp", "trainer.precision=16-mixed"],
        ["data=image_folder", "data.path='a b=c',/x/a,'~/Ä [1]'", "trainer.devices=2"],
    ],
    ids=" ".join,
)
def test_lists_what_the_sweep_would_run(arguments: list[str]) -> None:
    listed = list_runs(arguments)
    assert len(listed) > 0
    assert [run.folder for run in listed] == [run.folder for run in expand(arguments)]


def test_rows_of_an_ablation_are_labelled_by_what_differs() -> None:
    plan = plan_table(describe_ablation("un_window"), ["seed=0,1"])
    labels = [row.label for row in plan.rows]
    assert len(set(labels)) == len(labels)
    assert all(label.startswith("window: ") for label in labels)
    assert all(len(cell) == 2 for row in plan.rows for cell in row.runs)
    labels = [row.label for row in plan_table(describe_ablation("un_filtration")).rows]
    layer, own = "a layer is filtered by: each channel for itself", "one threshold for: each channel"
    assert f"filtration: on; {layer}; {own}" in labels
    assert plan_table(describe_ablation("un_compensation")).rows[0].label == "UN as configured"


def test_quoted_tables_have_figures_and_no_runs() -> None:
    quoted = {comparison.name: comparison for comparison in quote_published()}
    assert {"rivals_imagenet", "rivals_gpt2", "rivals_fakeln", "rivals_tapernorm"} <= quoted.keys()
    assert not {"iwslt14", "norms", "efficiency"} & quoted.keys()
    for comparison in quoted.values():
        assert all(cell.published or not cell.planned for cell in comparison.cells)
    by_column = [row.cells[3].published for row in quoted["rivals_imagenet"].rows if row.label == "Dynamic Tanh"]
    assert [(one.value, one.source) for one in by_column if one] == [(82.8, "arXiv 2503.10622 (Dynamic Tanh)")]
    with pytest.raises(UserError, match=r"table=rivals_gpt2 quotes published figures and starts no run: got norm=un"):
        plan_table(read_table("rivals_gpt2"), ["norm=un"])


def test_another_experiment_takes_the_place_of_all_columns() -> None:
    plan = plan_table(read_table("cifar_transfer"), ["experiment=digits_vit", "seed=0"])
    assert [column.label for column in plan.table.columns] == ["digits_vit"]
    assert {run.key[0] for run in plan.runs} == {"digits_vit"}
    assert not any(figure for row in plan.rows for figure in row.published)


def test_fills_from_disk(tmp_path: Path) -> None:
    table = parse_table("t", {"title": "T", "rows": [{"arguments": ["norm=layernorm,un"]}], "runs": ["seed=range(2)"]})
    for seed in (0, 1):
        make_run(tmp_path, "norm=layernorm", seed, 50.0)
        make_run(tmp_path, "norm=un", seed, 52.0 if seed else None)
    comparison = fill_table(plan_table(table, [f"paths.runs={tmp_path}"]), find_on_disk)
    rows = list_rows(comparison).set_index("row")
    assert (rows.loc["LayerNorm", "mean"], rows.loc["LayerNorm", "n"]) == (50.0, 2)
    assert (rows.loc["UN", "to_layernorm"], rows.loc["UN", "diverged"], rows.loc["UN", "n"]) == (2.0, 1, 1)


def test_known_runs_fill_their_tables_wherever_they_lie(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "far", name, seed) for name in ("norm=layernorm", "norm=un") for seed in (0, 1)]
    tables = {comparison.name: comparison for comparison in compare_known(runs)}
    assert "norms" in tables
    assert "cifar10_small" not in tables
    assert tables["norms"].columns == ("digits",)
    cells = {row.label: row.cells[0] for row in tables["norms"].rows}
    assert {name: len(cell.runs) for name, cell in cells.items()} == {"LayerNorm": 2, "UN": 2}
    assert tables["norms"].left_out == 13
    assert tables["norms"].command == "python scripts/reproduce.py table=norms"
    assert "un_compensation" not in tables  # UN as configured is its only variant with runs
    assert compare_known(runs[:2]) == []  # LayerNorm alone answers no question


def test_a_table_of_what_another_shows_is_left_out(tmp_path: Path) -> None:
    """UN stands in every ablation; it is told once, where the most norms are compared."""
    settings = ("norm=layernorm", "norm=un", "norm=un,norm.window=8")
    runs = [make_run(tmp_path, setting, experiment="phrasebook_tiny") for setting in settings]
    assert [comparison.name for comparison in compare_known(runs[:2])] == ["norms"]
    tables = compare_known(runs)
    assert [comparison.name for comparison in tables] == ["norms", "un_window"]
    assert compare_settings(runs, tables) == []


def test_measurements_fill_their_table_beside_runs(tmp_path: Path) -> None:
    measurement = make_measurement(tmp_path, "vit_small", batch=8)
    runs = [make_run(tmp_path, name) for name in ("norm=layernorm", "norm=un")]
    assert [comparison.name for comparison in compare_known(runs, [measurement])][-1] == "efficiency"
    assert "efficiency" not in [comparison.name for comparison in compare_known(runs)]
    (efficiency,) = compare_known([], [measurement])
    filled = [row.label for row in efficiency.rows if any(cell.ours.n for cell in row.cells)]
    assert filled == ["ViT-S, eager, batch 8, a CPU (2 threads)"]
    assert len(efficiency.rows) == len(ABSTRACT) + 1


@pytest.mark.parametrize(
    "arguments",
    [["debug=fast", "seed=0,1", "optimizer.lr=0.1"], ["data.path=/cifar", "paths.runs=/far"]],
    ids=" ".join,
)
def test_runs_start_from_the_run_of_their_row(arguments: list[str]) -> None:
    """Whatever changes its name; seeds and the place of the data are not those of the run they start from."""
    kept = [argument for argument in arguments if not argument.startswith(("seed=", "data.path="))]
    origins = {row.label: row.runs[0] for row in plan_table(read_table("imagenet_t2t_vit_14"), kept).rows}
    plan = plan_table(read_table("cifar_transfer"), arguments)
    assert len(plan.starts) == len(plan.rows) == 3
    for row in plan.rows:
        ((origin,), cells) = origins[row.label], [run for cell in row.runs for run in cell]
        assert {run.start.folder for run in cells if run.start} == {origin.folder}
        for run in cells:
            weights = read_overrides(run.arguments)["init_weights"]
            assert weights == f"{origin.folder}/checkpoints/best.ckpt"
    assert cells[0].folder == expand(cells[0].arguments)[0].folder


def test_weights_of_ones_own_take_the_place_of_other_runs() -> None:
    plan = plan_table(read_table("cifar_transfer"), ["init_weights=/mine=1/best.ckpt", "seed=0"])
    assert plan.starts == []
    assert {read_overrides(run.arguments)["init_weights"] for run in plan.runs} == {"/mine=1/best.ckpt"}
    assert plan_table(read_table("cifar_transfer"), ["experiment=digits_vit"]).starts == []


def test_a_row_without_a_run_to_start_from() -> None:
    content = {"title": "T", "needs": ["imagenet_t2t_vit_14"], "rows": [{"label": "none", "arguments": ["norm=un"]}]}
    with pytest.raises(UserError, match="table t, row none: starts from one run of imagenet_t2t_vit_14, got 0"):
        plan_table(parse_table("t", content))


def test_runs_that_start_from_others_are_known_too(tmp_path: Path) -> None:
    plan = plan_table(read_table("cifar_transfer"), [f"paths.runs={tmp_path}", "seed=0"])
    for run in plan.runs:
        experiment, setting, _ = run.key
        make_run(tmp_path, setting, 0, experiment=experiment)
    runs, problems = find_runs([tmp_path])
    (comparison,) = compare_known(runs)
    assert (len(runs), problems) == (6, [])
    assert all(len(cell.runs) == 1 for cell in comparison.cells)


def test_a_cell_never_mixes_settings() -> None:
    with pytest.raises(UserError, match=r"row LayerNorm: a cell can sweep seeds only, got .*lr=0.1.*lr=0.2"):
        plan_table(read_table("cifar10_small"), ["optimizer.lr=0.1,0.2"])
    labels = [row.label for row in plan_table(describe_ablation("un_centering"), ["optimizer.lr=0.1,0.2"]).rows]
    assert len(set(labels)) == 6


def test_unknown_table() -> None:
    with pytest.raises(UserError, match="table=iwslt15 is unknown; did you mean 'iwslt14'"):
        read_table("iwslt15")


def test_a_published_figure_is_something_to_show() -> None:
    content = {"title": "Rivals", "source": "a paper", "rows": [{"label": "RBN", "published": 1.5}, {"label": "none"}]}
    comparison = fill_table(plan_table(parse_table("rivals", content)), find_on_disk)
    assert [row.label for row in comparison.rows] == ["RBN"]
