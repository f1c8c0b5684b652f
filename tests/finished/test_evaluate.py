"""What an evaluation says of its metrics beside the run's own."""

import pytest

from un.finished.evaluate import format_evaluation

SPEED = {"folded_seconds": 0.1, "unfolded_seconds": 0.2, "speed_up": 2.0}


@pytest.mark.parametrize(
    ("now", "folded", "verdict"),
    [
        (50.0, False, "the same to the last bit"),
        (50.0001, True, "the same to rounding: relative difference 2.0e-06"),
        (50.0001, False, "DIFFERENT from the run's own"),
        (51.0, True, "DIFFERENT from the run's own"),
    ],
)
def test_the_verdict(now: float, folded: bool, verdict: str) -> None:
    fold = {"fold": {"folded": 3, "norms": 3}, "speed": SPEED} if folded else {}
    content = {"metrics": {"test/acc1": now}, "recorded": {"test/acc1": 50.0}, "same": now == 50, "changes": {}}
    text = format_evaluation({**content, "folded": folded, **fold})
    assert text.splitlines()[-1] == verdict
    assert ("2.00 times as fast" in text) is folded


def test_a_change_that_was_asked_for_is_named() -> None:
    content = {"metrics": {"test/bleu": 30.0}, "recorded": {"test/bleu": None}, "same": False, "folded": False}
    text = format_evaluation({**content, "changes": {"task.beam": 1}})
    assert "none" in text
    assert text.endswith("DIFFERENT from the run's own (asked for: task.beam=1)")
