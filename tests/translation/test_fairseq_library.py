import logging

import pytest
from hydra.core.config_store import ConfigStore

from un.translation.fairseq_library import restore_global_state


def spoil_state_and_fail():
    ConfigStore.instance().store(name="adam", group="optimizer", node={"lr": [1]})
    logging.getLogger().setLevel(1)
    logging.getLogger().addHandler(logging.NullHandler())
    raise ZeroDivisionError


def test_what_fairseq_registers_and_configures_is_undone_even_after_an_error():
    root, store = logging.getLogger(), ConfigStore.instance()
    assert not {"criterion", "task"} & store.repo.keys()  # of fairseq, which has been imported
    before = root.level, root.handlers[:], list(store.repo)
    with pytest.raises(ZeroDivisionError), restore_global_state():
        spoil_state_and_fail()
    assert (root.level, root.handlers, list(store.repo)) == before
    assert root.manager.disable == 0
