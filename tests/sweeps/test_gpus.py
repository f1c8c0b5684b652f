"""Each process of a parallel sweep takes another GPU and keeps it."""

from pathlib import Path

import pytest

from tests.forked import SERVER
from un.sweeps import gpus


def take(folder: str) -> list[str | None]:
    return [gpus.take_gpu(["3", "5"], Path(folder)) for _ in range(2)]


def test_processes_take_different_gpus_and_keep_them(tmp_path: Path) -> None:
    with SERVER.Pool(1) as one, SERVER.Pool(1) as two, SERVER.Pool(1) as three:
        assert one.apply(take, (str(tmp_path),)) == ["3", "3"]
        assert two.apply(take, (str(tmp_path),)) == ["5", "5"]
        assert three.apply(take, (str(tmp_path),)) == [None, None]
    with SERVER.Pool(1) as later:  # the others have ended
        assert later.apply(take, (str(tmp_path),)) == ["3", "3"]


@pytest.mark.parametrize(
    ("visible", "expected"), [("0,2", ["0", "2"]), ("", []), ("-1", []), ("GPU-1f, GPU-2e", ["GPU-1f", "GPU-2e"])]
)
def test_gpus_that_may_be_used(monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[str]) -> None:
    monkeypatch.setenv(gpus.VISIBLE, visible)
    assert gpus.list_gpus() == expected


def test_gpus_of_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.setattr(gpus, "DRIVER", tmp_path)
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert gpus.list_gpus() == ["0", "1"]
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "nothing")
    assert gpus.list_gpus() == []
