import logging
import subprocess
import sys

import pytest

from un.translation.fairseq_library import restore_global_state

ISOLATED = """
import logging, sys
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
logging.getLogger().setLevel(logging.WARNING)
before = list(ConfigStore.instance().repo)
import un.translation.fairseq_library
assert list(ConfigStore.instance().repo) == before, "entries in the ConfigStore"
assert logging.getLogger().level == logging.WARNING and logging.getLogger().handlers == []
assert logging.getLogger("any").isEnabledFor(logging.WARNING)
with initialize_config_dir(sys.argv[1], version_base="1.3"):
    config = compose("config", ["optimizer=adam", "optimizer.lr=3"])
assert config == {"optimizer": {"lr": 3}}, config
"""


def test_import_leaves_hydra_and_logging_as_they_were_and_says_nothing(tmp_path):
    # fairseq registers nodes of these names, with a list of rates and without our keys.
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "adam.yaml").write_text("lr: 1\n")
    (tmp_path / "config.yaml").write_text("defaults: [optimizer: adam, _self_]\n")
    command = [sys.executable, "-c", ISOLATED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def spoil_logging_and_fail():
    logging.getLogger().setLevel(1)
    logging.getLogger().addHandler(logging.NullHandler())
    raise ZeroDivisionError


def test_state_is_restored_after_an_error():
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    with pytest.raises(ZeroDivisionError), restore_global_state():
        spoil_logging_and_fail()
    assert (root.level, root.handlers) == before
    assert root.manager.disable == 0
