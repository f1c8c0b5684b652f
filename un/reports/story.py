"""What tables say, in sentences: every word of them is computed from the intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from un.reports.comparison import Cell, Comparison
from un.reports.rendering import DIFFERENCE_NOTE, describe_difference, explain_verdicts
from un.reports.statistics import DIVERGES, NOT_DECIDED, VERDICTS

HEADING = "What the tables say"
MAX_LENGTH = 200  # characters of the names of rows that are not decided; more are counted


def tell(comparisons: Sequence[Comparison], level: int = 2) -> str:
    """Returns a section with a line for each column of each table that has verdicts; empty without any."""
    lines = list_sentences(comparisons)
    if not lines:
        return ""
    margins = sorted({comparison.margin for comparison in comparisons for cell in comparison.cells if cell.verdict})
    notes = [explain_verdicts(margin) for margin in margins]
    intro = f"Against LayerNorm, in points. {DIFFERENCE_NOTE}"
    return "\n\n".join([f"{'#' * level} {HEADING}", " ".join([intro, *notes]), "\n".join(lines)]) + "\n"


def list_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """Returns a line for each column of each table that has verdicts."""
    return [line for comparison in comparisons for line in _list_lines(comparison)]


def _list_lines(comparison: Comparison) -> Iterator[str]:
    for index, column in enumerate(comparison.columns):
        cells = [(row.label, row.cells[index]) for row in comparison.rows]
        groups = {word: [(label, cell) for label, cell in cells if cell.verdict == word] for word in VERDICTS}
        parts = [_describe_group(word, group, comparison.digits) for word, group in groups.items() if group]
        if parts:
            where = f"{comparison.title}, {column}" if column else comparison.title
            yield f"- **{where}** ({_count_seeds(cell for _, cell in cells)}). {' '.join(parts)}"


def _describe_group(word: str, group: Sequence[tuple[str, Cell]], digits: int) -> str:
    """Returns e.g. "Behind: UN −0.90 [−1.20, −0.60]."."""
    names = []
    for label, cell in group:
        difference = describe_difference(cell.to_layernorm, digits)
        shown = f"{cell.diverged} of {len(cell.runs)} seeds" if word == DIVERGES else difference
        names.append(label if word == NOT_DECIDED and len(group) > 1 else f"{label} {shown}".strip())
    listed = " · ".join(names)
    is_long = word == NOT_DECIDED and len(listed) > MAX_LENGTH
    return f"{word.capitalize()}: {f'{len(names)} rows' if is_long else listed}."


def _count_seeds(cells: Iterable[Cell]) -> str:
    counts = sorted({len(cell.runs) for cell in cells if cell.runs})
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{span} seed{'s' if counts[-1] > 1 else ''}"
