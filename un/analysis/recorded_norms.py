"""The norms of a model by name, and what can be read from each kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from un.norms import Norm

DEFAULT_EPS = 1e-5  # of a norm without eps


@dataclass(frozen=True)
class RecordedNorm:
    """One norm, ours or a foreign one.

    Attributes:
        name: dotted, as `un.surgery` names it.
        layer: its place among all norms of the model, the first is 0.
        module: the norm.
        axis: of the channels of its input.
    """

    name: str
    layer: int
    module: nn.Module
    axis: int

    @property
    def source(self) -> nn.Module:
        """The norm that holds the statistics, where another one wraps it."""
        return self.module.source if isinstance(self.module, Norm) else self.module

    @property
    def eps(self) -> float:
        """What the norm adds to a second moment."""
        eps = getattr(self.module, "eps", None)
        return DEFAULT_EPS if eps is None else float(eps)

    def flatten(self, x: Tensor) -> Tensor:
        """Returns the rows (R, C) of an input, detached."""
        x = x.detach().movedim(self.axis, -1)
        return x.reshape(-1, x.shape[-1])

    def scale_rows(self, rows: Tensor) -> Tensor | None:
        """Returns the rows (R, C) whose moment the norm takes; None where it scales none (PowerNorm scales groups)."""
        prepared = self.source.prepare(rows) if isinstance(self.source, Norm) else rows
        return None if prepared is rows else prepared

    def read_running(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns the running second moment and mean (C,) that inference uses; None for what the norm lacks."""
        return self.source.read_running() if isinstance(self.source, Norm) else (None, None)

    def read_discrepancy(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns the discrepancy of mean and scale of the latest training call; None for what the norm lacks."""
        found = self.source.measure_discrepancy() if isinstance(self.source, Norm) else {}
        return found.get("mean_discrepancy"), found.get("scale_discrepancy")

    def read_buffer(self, name: str) -> Tensor | None:
        """Returns a buffer as a vector, e.g. `skip_counter` (1,) or `ema_gz` (C,); None for a norm without it."""
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
