from pathlib import Path

import numpy as np
import pytest

from un.analysis.storage import StatisticsFiles


def make_rows(*steps: int) -> list[dict[str, object]]:
    return [
        {"step": step, "layer": layer, "site": name, "channels": 4, "peak": float(step), "gap": float("nan")}
        for step in steps
        for layer, name in enumerate("ab")
    ]


@pytest.fixture
def files(tmp_path: Path) -> StatisticsFiles:
    return StatisticsFiles(tmp_path)


def test_rows_come_back_and_later_ones_go(files: StatisticsFiles) -> None:
    files.append([])
    assert not files.exists()
    for steps in ((10, 20), (30,), (40, 50)):
        files.append(make_rows(*steps))
    table = files.read()
    assert table["step"].tolist() == [10, 10, 20, 20, 30, 30, 40, 40, 50, 50]
    assert table["site"].tolist() == list("ababababab")
    assert table["peak"].dtype == np.float32
    files.keep_until(30)
    files.append(make_rows(35))
    assert files.read()["step"].unique().tolist() == [10, 20, 30, 35]
    files.keep_until(-1)
    assert not files.exists()


def test_mistakes_name_the_file(files: StatisticsFiles) -> None:
    with pytest.raises(ValueError, match=r"holds no activation_stats\.parquet: train with callbacks=activation_stats"):
        files.read()
    files.append(make_rows(10))
    (path,) = files.folder.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"activation_stats\.parquet/000000010\.parquet is damaged"):
        files.read()
