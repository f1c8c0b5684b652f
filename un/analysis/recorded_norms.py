"""The norms of a model by name, and what can be read from each kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from un.norms import Norm

DEFAULT_EPS = 1e-5  # of a norm without eps


class RecordedNorm:
    """One norm, ours or a foreign one.

    Args:
        name: dotted, as `un.surgery` names it.
        layer: its place among all norms of the model, the first is 0.
        module: the norm.
        axis: of the channels of its input.
    """

    def __init__(self, name: str, layer: int, module: nn.Module, axis: int) -> None:
        self.name, self.layer, self.module, self.axis = name, layer, module, axis
        self.source: nn.Module = self.module.source if isinstance(self.module, Norm) else self.module

    @property
    def eps(self) -> float:
        """What the norm adds to a second moment."""
        eps = getattr(self.module, "eps", None)
        return DEFAULT_EPS if eps is None else float(eps)

    @property
    def is_centered(self) -> bool:
        """Whether the norm's own statistic is around the mean."""
        return self._read_running()[1] is not None

    def prepare(self, x: Tensor) -> Tensor:
        """The rows (R, C) of an input, detached."""
        x = x.detach()
        x = x.movedim(self.axis, -1)
        return x.reshape(-1, x.shape[-1])

    def scale_rows(self, rows: Tensor) -> Tensor | None:
        """The rows (R, C) whose moment the norm takes, where they are not those it is given (PowerNorm's groups)."""
        prepared = self.source.prepare(rows) if isinstance(self.source, Norm) else rows
        return None if prepared is rows else prepared

    def read_running(self) -> Tensor | None:
        """The running second moment (C,) that inference uses; None for a norm without one."""
        return self._read_running()[0]

    def read_running_gradient(self) -> Tensor | None:
        """The running gradient statistic ψ (C,); None for a norm without one."""
        return self._read_buffer("ema_gz")

    def read_counter(self, name: str) -> Tensor | None:
        """A counter without axes, e.g. `skip_counter`; None for a norm without it."""
        counter = self._read_buffer(name)
        return None if counter is None else counter.squeeze()

    def _read_running(self) -> tuple[Tensor | None, Tensor | None]:
        return self.source.read_running() if isinstance(self.source, Norm) else (None, None)

    def _read_buffer(self, name: str) -> Tensor | None:
        buffer = self.source._buffers.get(name)
        return None if buffer is None else buffer.detach().view(-1)


def choose_norms(
    norms: Iterable[tuple[str, nn.Module, int]], include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> list[RecordedNorm]:
    """Chooses the norms to record by name.

    Args:
        norms: of a model, in module order, as `un.surgery.recognition.list_norms` gives them.
        include: globs on dotted names, `*` crosses dots.
        exclude: globs of names to leave out.

    Raises:
        ValueError: nothing is left.
    """
    found = [RecordedNorm(name, layer, module, axis) for layer, (name, module, axis) in enumerate(norms)]
    chosen = [site for site in found if _matches(site.name, include) and not _matches(site.name, exclude)]
    if not chosen:
        names = ", ".join(site.name for site in found) or "none"
        raise ValueError(f"include {list(include)} and exclude {list(exclude)} leave no norm; the model's are: {names}")
    return chosen


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
