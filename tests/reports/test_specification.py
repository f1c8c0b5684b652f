"""What a table file may say, and the one line for what it may not."""

from typing import Any

import pytest

from un.reports.specification import Published, parse_table

TABLE: dict[str, Any] = {
    "title": "A table",
    "metric": "test/acc1",
    "source": "a readme",
    "columns": [{"label": "a", "arguments": ["experiment=x"]}, {"label": "b", "metric": "test/bleu"}],
    "rows": [{"label": "one", "arguments": ["norm=un"], "published": [1, None]}, {"arguments": ["ablation=y"]}],
}


def test_reads_what_is_there() -> None:
    table = parse_table("t", TABLE)
    assert [column.metric for column in table.columns] == ["test/acc1", "test/bleu"]
    assert table.rows[0].published == (Published(1.0, "a readme"), None)
    assert (table.rows[1].label, table.rows[1].published) == (None, (None, None))
    assert (table.paper_setting, table.digits) == (False, 2)


def test_the_source_of_a_row_wins() -> None:
    rows = [{"label": "one", "published": [1, 2], "source": "a paper"}]
    published = parse_table("t", {**TABLE, "rows": rows}).rows[0].published
    assert [figure.source for figure in published if figure] == ["a paper", "a paper"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rowz": []}, "there is no key rowz; did you mean 'rows'?"),
        ({"name": "u"}, "there is no key name"),
        ({"rows": []}, "rows is [], Tuple should have at least 1 item"),
        ({"digits": 9}, "digits is 9, expected less than or equal to 6"),
        ({"runs": "seed=0"}, "runs is 'seed=0', expected a valid array"),
        ({"source": None}, "rows.0.published.0.source is None, expected a valid string"),
        ({"rows": [{"label": "one", "published": 1}]}, "published has 1 values, expected one for each of 2 columns"),
        ({"rows": [{"label": "one", "seed": 0}]}, "there is no key rows.0.seed; allowed: label"),
        ({"rows": [{"label": "one", "model": "vit"}]}, "rows.0.model is 'vit', expected 'swin_tiny', 'vit_small'"),
        ({"rows": [{"label": "a", "model": "vit_small"}, {"label": "b"}]}, "row b: expected a model in every row"),
        (
            {"rows": [{"label": "one", "model": "vit_small"}]},
            "metric is 'test/acc1', allowed with model: speed, speed_elementary",
        ),
    ],
)
def test_mistakes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="table t") as error:
        parse_table("t", {**TABLE, **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
