import json

import pytest

from un.translation.preparation.steps import RECORD, Steps


class Chain:
    """Three steps that count how often they ran; each appends its setting to what the one before wrote."""

    def __init__(self, root):
        self.root = root
        self.runs = []

    def run(self, first="a", second="b", last="c", inputs="archive", fail_at=None):
        self.runs = []
        self.lines = []
        steps = Steps(self.root / "steps", {"input": inputs}, self.lines.append)

        def act(name, setting, before):
            def action(folder):
                self.runs.append(name)
                text = (before / "text").read_text() if before else ""
                (folder / "text").write_text(text + setting)
                if name == fail_at:
                    raise KeyboardInterrupt
                return {"characters": len(text) + 1}

            return action

        one = steps.run("1", {"setting": first}, act("1", first, None))
        two = steps.run("2", {"setting": second}, act("2", second, one))
        return steps.finish(self.root / "product", {"setting": last}, act("3", last, two))


def test_a_finished_preparation_runs_no_step_again(tmp_path):
    chain = Chain(tmp_path)
    product = chain.run()
    assert chain.runs == ["1", "2", "3"]
    first_lines = chain.lines
    assert chain.run() == product
    assert chain.runs == []
    assert [line for line in chain.lines if line.startswith("  ")] == [x for x in first_lines if x.startswith("  ")]


def test_a_killed_step_is_done_again_and_those_before_are_not(tmp_path):
    chain = Chain(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        chain.run(fail_at="2")
    assert not (tmp_path / "steps/2").exists()
    assert (tmp_path / "steps/2.partial/text").read_text() == "ab"
    product = chain.run()
    assert chain.runs == ["2", "3"]
    assert (product / "text").read_text() == "abc"
    assert not list((tmp_path / "steps").glob("*.partial"))


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"first": "x"}, ["1", "2", "3"]),
        ({"second": "x"}, ["2", "3"]),
        ({"last": "x"}, ["3"]),
        ({"inputs": "x"}, ["1", "2", "3"]),
    ],
)
def test_a_changed_setting_redoes_its_step_and_all_that_follow(tmp_path, change, again):
    chain = Chain(tmp_path)
    chain.run()
    chain.run(**change)
    assert chain.runs == again


def test_a_step_whose_file_was_lost_or_cut_is_done_again(tmp_path):
    chain = Chain(tmp_path)
    chain.run()
    (tmp_path / "steps/2/text").write_text("a")
    chain.run()
    assert chain.runs == ["2"]


def test_the_record_holds_settings_counts_and_checksums(tmp_path):
    chain = Chain(tmp_path)
    product = chain.run()
    record = json.loads((product / RECORD).read_text())
    assert record["setting"] == "c"
    assert record["counts"] == {"characters": 3}
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", FIPS 180
    assert record["files"] == {"text": {"bytes": 3, "sha256": digest}}
    assert record["inputs"] == {"input": "archive"}
    assert f"  {digest}  text (3 bytes)" in chain.lines


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "product").mkdir()
    (tmp_path / "product/thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"product exists and holds no preparation\.json"):
        Chain(tmp_path).run()
    assert (tmp_path / "product/thesis.txt").read_text() == "years of work"
