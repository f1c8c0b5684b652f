"""Comparisons as Markdown, LaTeX and CSV. No number is written that no run or source gave: unknown cells are empty."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from un.reports.comparison import Cell, Comparison
from un.reports.statistics import Difference

MARK = "†"
MARK_NOTE = f"{MARK} our setting, not the paper's"
SHOWN_DEPARTURES = 3
COMMIT_LENGTH = 12  # characters
PACKAGES = ("torch", "lightning", "timm", "fairseq-fixed")  # whose versions results.csv has
DIFFERENCE_NOTE = (
    "Δ LayerNorm: mean difference over paired seeds with its 95 % confidence interval (Student's t); one seed has none."
)
FIELDS = ("published", "ours", "runs", "Δ published", "Δ LayerNorm", "verdict", "minutes")
LEFT_TO_CSV = ("minutes",)  # fields that a table of several columns has no room for
LEFT_ASIDE = ("minutes", "Δ LayerNorm", "verdict")  # nor a column of other tests of the same runs
LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {"\\": r"\textbackslash{}"}
LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {MARK: r"$^\dagger$", "Δ": r"$\Delta$", "±": r"$\pm$", "−": "$-$"}  # which its fonts lack


def describe_cell(cell: Cell, comparison: Comparison) -> dict[str, str]:
    """Returns the texts of a cell by field, some of them empty."""
    digits = comparison.digits
    source = f" [{comparison.sources.index(cell.published.source) + 1}]" if cell.published else ""
    return {
        "published": f"{cell.published.value:g}{source}" if cell.published else "",
        "ours": _describe_ours(cell, comparison),
        "runs": describe_count(cell),
        "Δ published": "" if cell.to_published is None else format_signed(cell.to_published, digits),
        "Δ LayerNorm": describe_difference(cell.to_layernorm, digits),
        "verdict": cell.verdict,
        "minutes": "" if cell.minutes is None else f"{cell.minutes:.1f}",
    }


def describe_count(cell: Cell) -> str:
    """Returns e.g. "5", "3 of 5", or "5 (2 diverged)": runs that ended, of those asked for."""
    if not cell.planned and not cell.runs:
        return ""
    count = f"{len(cell.runs)} of {cell.planned}" if cell.missing else str(len(cell.runs))
    return f"{count} ({cell.diverged} diverged)" if cell.diverged else count


def describe_difference(difference: Difference | None, digits: int) -> str:
    """Returns e.g. "+0.40 [−0.10, +0.90]"; without an interval for a single pair."""
    if difference is None:
        return ""
    mean = format_signed(difference.mean, digits)
    if difference.low is None or difference.high is None:
        return mean
    return f"{mean} [{format_signed(difference.low, digits)}, {format_signed(difference.high, digits)}]"


def format_signed(value: float, digits: int) -> str:
    """Returns the number with its sign; a rounded zero has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def list_notes(comparison: Comparison, explain: bool = True) -> list[str]:
    """Returns the notes below a table: setting, marks, differences and sources.

    Args:
        comparison: the table.
        explain: whether to say what differences and verdicts are, which a page of tables says once.
    """
    notes = [comparison.setting] if comparison.setting else []
    if comparison.shows_marks and any(cell.is_marked for cell in comparison.cells):
        notes.append(_explain_mark(comparison))
    if explain and any(cell.to_layernorm for cell in comparison.cells):
        notes.append(DIFFERENCE_NOTE)
    if explain and any(cell.verdict for cell in comparison.cells):
        notes.append(explain_verdicts(comparison.margin))
    if comparison.left_out:
        count, total = comparison.left_out, comparison.left_out + len(comparison.rows)
        notes.append(f"Left out: {count} of {total} rows, which have no runs; `{comparison.command}` makes them.")
    return notes + [f"[{number}] {source}." for number, source in enumerate(comparison.sources, 1)]


def explain_verdicts(margin: float) -> str:
    """Returns what the words of `un.reports.statistics.judge` mean."""
    return (
        f"Verdict: level, the interval lies within ±{margin:g}; else ahead or behind, it excludes zero; else not "
        "decided. Diverges: at least one seed did."
    )


def list_fields(comparison: Comparison, column: int) -> list[str]:
    """Returns the fields of a column that are not empty, and that there is room for."""
    texts = [describe_cell(row.cells[column], comparison) for row in comparison.rows]
    cells = [row.cells[column] for row in comparison.rows]
    hidden = [*LEFT_TO_CSV] if len(comparison.columns) > 1 else []
    if any(cell.is_aside for cell in cells):
        hidden = [*LEFT_ASIDE, *([] if any(cell.missing for cell in cells) else ["runs"])]
    return [field for field in FIELDS if field not in hidden and any(text[field] for text in texts)]


def tabulate(comparison: Comparison) -> pd.DataFrame:
    """Returns the texts with columns (label, field), empty columns left out."""
    columns: dict[tuple[str, str], list[str]] = {}
    labels = [row.label for row in comparison.rows]
    for index, column in enumerate(comparison.columns):
        texts = [describe_cell(row.cells[index], comparison) for row in comparison.rows]
        name = f"{column} {comparison.metrics[index]}".strip()
        columns |= {(name, field): [text[field] for text in texts] for field in list_fields(comparison, index)}
    frame = pd.DataFrame(columns, index=pd.Index(labels))
    frame.columns = pd.MultiIndex.from_tuples(list(columns), names=[None, None])
    return frame


def render_markdown(comparison: Comparison, level: int = 2, explain: bool = True) -> str:
    """Returns heading, table and notes, see `list_notes`."""
    notes = ["  \n".join(note.replace("|", "\\|") for note in list_notes(comparison, explain))]
    heading = f"{'#' * level} {comparison.title}"
    if not comparison.rows:
        return "\n\n".join([heading, *notes]) + "\n"
    frame = tabulate(comparison)
    several = len(comparison.columns) > 1
    header = ["", *(f"{key[0]}: {key[1]}" if several else key[1] for key in frame.columns)]
    if not several and comparison.metrics[0]:
        header = [f"{comparison.columns[0]} {comparison.metrics[0]}".strip(), *header[1:]]
    table = format_table(header, frame.reset_index().to_numpy().tolist())
    return "\n\n".join([heading, table, *filter(None, notes)]) + "\n"


def format_table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Returns a table in Markdown; floats have four digits."""
    names = list(header)
    lines: list[Iterable[object]] = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(_format_cell(value) for value in line)} |" for line in lines)


def _format_cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def render_latex(comparison: Comparison) -> str:
    """Returns a table environment for the package booktabs, with the notes below the rows; nothing without rows."""
    if not comparison.rows:
        return ""
    frame = tabulate(comparison).map(_escape).rename(index=_escape, columns=_escape)
    if len(comparison.columns) == 1:
        frame.columns = frame.columns.get_level_values(1)
    text = frame.style.to_latex(
        hrules=True,
        caption=_escape(comparison.title),
        label=f"tab:{comparison.name}",
        position="ht",
        position_float="centering",
        column_format="l" * (1 + len(frame.columns)),
        multicol_align="c",
    )
    notes = _escape(" ".join(list_notes(comparison)))
    end = "\\end{table}"
    return text.replace(end, f"\\par\\smallskip\\footnotesize {notes}\n{end}") if notes else text


def list_rows(comparison: Comparison) -> pd.DataFrame:
    """Returns the numbers unrounded: one row per cell."""
    rows = []
    for row in comparison.rows:
        for column, metric, cell in zip(comparison.columns, comparison.metrics, row.cells, strict=True):
            difference = cell.to_layernorm
            values = [(run.result.seed, run.get(cell.metric, cell.shift)) for run in cell.runs]
            rows.append(
                {
                    "table": comparison.name,
                    "column": column,
                    "row": row.label,
                    "norm": row.norm,
                    "metric": metric,
                    "shift": cell.shift,
                    "published": cell.published.value if cell.published else None,
                    "source": cell.published.source if cell.published else None,
                    "paper_setting": cell.follows_paper,
                    "mean": cell.ours.mean,
                    "std": cell.ours.std,
                    "n": cell.ours.n,
                    "runs": len(cell.runs),
                    "planned": max(cell.planned, len(cell.runs)),
                    "diverged": cell.diverged,
                    "to_published": cell.to_published,
                    "to_layernorm": difference.mean if difference else None,
                    "to_layernorm_low": difference.low if difference else None,
                    "to_layernorm_high": difference.high if difference else None,
                    "to_layernorm_n": difference.n if difference else None,
                    "minutes": cell.minutes,
                    "verdict": cell.verdict,
                    "setting": row.setting,
                    **_describe_origin(cell),
                    "values": " ".join(f"{seed}:{'' if value is None else repr(value)}" for seed, value in values),
                }
            )
    return pd.DataFrame(rows)


def _describe_origin(cell: Cell) -> dict[str, str]:
    """Returns commits, versions and hardware of a cell's runs, each once."""
    results = [run.result for run in cell.runs]
    commits = [f"{result.git.get('commit') or ''}"[:COMMIT_LENGTH] for result in results]
    listed = [[f"{name}={found}" for name in PACKAGES if (found := result.packages.get(name))] for result in results]
    versions = [" ".join(names) for names in listed]
    places = [", ".join(result.hardware.get("gpu") or [str(result.hardware.get("cpu", ""))]) for result in results]
    origin = {"commit": commits, "versions": versions, "hardware": places}
    return {name: "; ".join(filter(None, dict.fromkeys(values))) for name, values in origin.items()}


def render_csv(comparisons: Iterable[Comparison]) -> str:
    """Returns the numbers of tables, unrounded, one line per cell; `values` holds `seed:value`, empty if diverged."""
    frames = [list_rows(comparison) for comparison in comparisons]
    return pd.concat(frames).to_csv(index=False) if frames else ""


def _describe_ours(cell: Cell, comparison: Comparison) -> str:
    if cell.ours.mean is None:
        return "diverged" if cell.diverged and cell.diverged == len(cell.runs) else ""
    mean = f"{cell.ours.mean:.{comparison.digits}f}".replace("-", "−")
    spread = "" if cell.ours.std is None else f" ± {cell.ours.std:.{comparison.digits}f}"
    exploded = f" (explodes in {cell.exploded} of {len(cell.runs)})" if cell.exploded else ""
    return f"{mean}{spread}{f' {MARK}' if comparison.shows_marks and cell.is_marked else ''}{exploded}"


def _explain_mark(comparison: Comparison) -> str:
    """Returns what the mark means and, where the paper's setting was meant, what departs from it."""
    found = list(dict.fromkeys(text for cell in comparison.cells if cell.is_marked for text in cell.departures))
    more = f"; and {len(found) - SHOWN_DEPARTURES} more" if len(found) > SHOWN_DEPARTURES else ""
    return f"{MARK_NOTE}: {'; '.join(found[:SHOWN_DEPARTURES])}{more}." if found else f"{MARK_NOTE}."


def _escape(text: str) -> str:
    """Returns a text as LaTeX prints it."""
    return "".join(LATEX.get(character, character) for character in text)
