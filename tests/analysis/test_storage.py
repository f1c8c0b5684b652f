from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from un.analysis.storage import StatisticsFiles


def make_rows(*steps: int) -> list[dict[str, object]]:
    return [
        {"step": step, "layer": layer, "site": name, "channels": 4, "peak": float(step), "gap": float("nan")}
        for step in steps
        for layer, name in enumerate("ab")
    ]


def test_rows_come_back_whatever_the_state_of_the_files(tmp_path: Path) -> None:
    files = StatisticsFiles(tmp_path)
    assert not files.exists()
    files.append([])
    assert not files.exists()
    files.append(make_rows(10, 20))
    files.append(make_rows(30))
    parts = files.read()
    assert parts["step"].tolist() == [10, 10, 20, 20, 30, 30]
    assert parts["site"].tolist() == list("ababab")
    assert parts["peak"].dtype == np.float32
    copies = {path.name: path.read_bytes() for path in files.parts.iterdir()}
    files.join()
    assert not files.parts.exists()
    pd.testing.assert_frame_equal(files.read(), parts)
    files.parts.mkdir()
    for name, content in copies.items():  # killed after the whole file was written, before the parts were removed
        (files.parts / name).write_bytes(content)
    pd.testing.assert_frame_equal(files.read(), parts)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(("until", "left"), [(-1, []), (10, [10]), (25, [10, 20]), (99, [10, 20, 30])])
def test_later_rows_go(tmp_path: Path, joined: bool, until: int, left: list[int]) -> None:
    files = StatisticsFiles(tmp_path)
    files.append(make_rows(10, 20))
    files.append(make_rows(30))
    if joined:
        files.join()
    files.keep_until(until)
    assert files.exists() == bool(left)
    if left:
        assert files.read()["step"].unique().tolist() == left
        files.append(make_rows(40))
        assert files.read()["step"].unique().tolist() == [*left, 40]


def test_mistakes_name_the_file(tmp_path: Path) -> None:
    files = StatisticsFiles(tmp_path)
    with pytest.raises(ValueError, match=r"holds no activation_stats\.parquet: train with callbacks=activation_stats"):
        files.read()
    files.append(make_rows(10))
    files.join()
    files.whole.write_bytes(files.whole.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"activation_stats\.parquet is damaged"):
        files.read()
