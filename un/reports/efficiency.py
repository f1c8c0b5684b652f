"""Tables of measurements: a row for each, and in words against which LayerNorm a published figure is reached."""

from __future__ import annotations

from collections.abc import Sequence

from un.reports.comparison import Cell, Comparison, Line, leave_out_empty
from un.reports.measurements import DEVICES, Measurement, plan_settings
from un.reports.specification import Table, TableRow

LIMIT = "speed_limit"
BASELINES = {"speed": "the fused LayerNorm", "speed_elementary": "LayerNorm in elementary operations"}


def compare_measurements(table: Table, measurements: Sequence[Measurement]) -> Comparison:
    """Returns a row for every measurement of the table's models; one without any shows what was published."""
    own = [one for one in measurements if one.benchmark == table.benchmark]
    rows: list[Line] = []
    sentences: list[str] = []
    for row in table.rows:
        found = [one for one in own if one.model == row.model]
        rows += [_fill_line(table, row, one) for one in found] or [_fill_line(table, row, None)]
        sentences += summarise_row(table, row, found)
    measured, counts = {one.file for one in own}, []
    for device in DEVICES:
        planned = plan_settings(table.models, device, table.benchmark)
        counts.append(f"{sum(one.file in measured for one in planned)} of {len(planned)} on {device}")
    missing = (
        f"Measured of what is planned: {', '.join(counts)}; scripts/reproduce.py table={table.name} measures more."
    )
    columns = tuple(column.label or str(column.metric) for column in table.columns)
    setting = "  \n".join(filter(None, (table.setting, *sentences, missing)))
    return leave_out_empty(Comparison(table.name, table.title, columns, tuple(rows), table.digits, setting))


def summarise_row(table: Table, row: TableRow, found: Sequence[Measurement]) -> list[str]:
    """Returns a sentence for each place: the largest speed-up against either LayerNorm, and what none could pass."""
    published = {column.metric: figure for column, figure in zip(table.columns, row.published, strict=True)}
    wanted = published.get("speed")
    if wanted is None:
        return []
    figure = wanted.value
    sentences = []
    for place in dict.fromkeys(one.place for one in found):
        here = [one for one in found if one.place == place]
        parts = []
        for metric, baseline in BASELINES.items():
            gains = [(gain, one) for one in here if (gain := one.get_gain(metric)) is not None]
            if gains:
                gain, best = max(gains, key=lambda pair: pair[0])
                reached = sum(value >= figure for value, _ in gains)
                parts.append(
                    f"{gain:.{table.digits}f} % over {baseline} at the most ({best.where}; the published {figure:g} % "
                    f"or more in {reached} of {len(gains)} settings)"
                )
        limits = [limit for one in here if (limit := one.get_gain(LIMIT)) is not None]
        if parts and limits:
            bound = f"no norms at all are at most {max(limits):.{table.digits}f} % faster than the fused LayerNorm"
            sentences.append(f"{row.label} on {place}: {'; '.join(parts)}; {bound}.")
    return sentences


def _fill_line(table: Table, row: TableRow, found: Measurement | None) -> Line:
    cells = tuple(
        Cell(
            published=published,
            paper_setting=table.paper_setting,
            measured=found.get_gain(str(column.metric)) if found else None,
        )
        for column, published in zip(table.columns, row.published, strict=True)
    )
    return Line(f"{row.label}, {found.label}" if found else str(row.label), "un", cells)
