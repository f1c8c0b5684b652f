import pytest
from hydra.errors import InstantiationException, MissingConfigException
from omegaconf.errors import InterpolationKeyError

from un.command.errors import describe_error, is_user_error


class MisconfigurationException(Exception):  # noqa: N818  named as Lightning's
    pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a"), True),
        (FileNotFoundError("a"), True),
        (ModuleNotFoundError("a"), True),
        (MisconfigurationException("a"), True),
        (TypeError("f() got an unexpected keyword argument 'a'"), True),
        (TypeError("a"), False),
        (RuntimeError("a"), False),
        (RuntimeError("[/torch/gloo/transport/tcp/pair.cc:545] Connection reset by peer"), True),
        (type("DistBackendError", (RuntimeError,), {})("a"), True),
        (KeyError("a"), False),
    ],
)
def test_whose_fault(error: Exception, expected: bool) -> None:
    assert is_user_error(error) is expected
    wrapped = InstantiationException("Error in call to target 'x':\nfull_key: model")
    wrapped.__cause__ = error
    assert is_user_error(wrapped) is expected


def test_descriptions_are_one_line() -> None:
    wrapped = InstantiationException("Error in call to target 'x':\nfull_key: model")
    wrapped.__cause__ = ValueError("depth=0\nmust be at least 1")
    assert describe_error(wrapped) == "model: depth=0 must be at least 1"
    assert describe_error(ValueError()) == "ValueError"
    assert "ended or does not answer" in describe_error(RuntimeError("[/a/gloo/b.cc:1] Timed out\nwaiting 600000ms"))
    assert (
        describe_error(PermissionError(13, "Permission denied", "/x/config.yaml"))
        == "/x/config.yaml: Permission denied"
    )


def test_missing_packages_come_with_the_command_that_installs_them() -> None:
    """As Hydra wraps them when it looks for a `_target_`, and bare."""
    missing = ModuleNotFoundError("No module named 'sacrebleu.metrics'", name="sacrebleu.metrics")
    located = ImportError("Error loading 'un.translation.data.X':\nModuleNotFoundError(...)\nAre you sure?")
    located.__cause__ = missing
    wrapped = InstantiationException("Error locating target 'un.translation.data.X'\nfull_key: data")
    wrapped.__cause__ = located
    line = "sacrebleu, which belongs to the extra 'translation', is not installed: make translation"
    assert describe_error(missing) == line
    assert describe_error(wrapped) == f"data: {line}"
    own = ImportError("translation needs fairseq,\nwhich is broken")
    own.__cause__ = ImportError("cannot import name 'x'")
    located.__cause__ = own
    assert describe_error(wrapped) == "data: translation needs fairseq, which is broken"
    unknown = ModuleNotFoundError("No module named 'nowhere'", name="nowhere")
    assert describe_error(unknown) == "No module named 'nowhere'"


def test_errors_of_a_loader_process_lose_its_traceback() -> None:
    """As torch raises them in the process of the training."""
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
    assert describe_error(ValueError(f"{text}ValueError: unreadable image: a: b\n")) == "unreadable image: a: b"


def test_interpolations_that_lead_nowhere() -> None:
    error = InterpolationKeyError("Interpolation key 'x' not found")
    assert describe_error(error).startswith("Interpolation key 'x' not found; ${...} stands for another value: rename")


@pytest.mark.parametrize(
    ("name", "extra"),
    [("hydra/launcher/submitit_slurm", "slurm"), ("hydra/sweeper/optuna", "optuna")],
)
def test_plugins_that_are_not_installed_come_with_the_command_that_installs_them(name: str, extra: str) -> None:
    error = MissingConfigException(f"In 'hydra/config': Could not find '{name}'", name, ["basic"])
    cure = f"{name} belongs to the extra '{extra}', which is not installed: pip install -e '.[{extra}]'"
    assert describe_error(error) == cure
