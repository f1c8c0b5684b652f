"""Chooses what the channels of the folded model mean, and so which norms can vanish.

A channel with value x in the model holds h in the folded one, x = scale * h + shift: its frame. Whatever is not
understood needs x itself (scale 1, shift 0). A norm that vanishes passes h on; its map enters the next frame. A linear
map can take any frames at its input and, unless something else is asked of it, give any at its output. The two sides
of a sum have one scale. Frames are propagated in the order of execution. Where one cannot be kept, the norm it comes
from is blamed and tries its next form. That covers rules R1 to R5, R7, R8 and R10's LayerScale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from un.folding.frames import NOBODY, Fill, Form, Frames, is_same
from un.folding.graph import Catalog, Graph, LinearUse, NormCall, Padding, Sum
from un.folding.sites import FoldSite

MAX_CONDITION = 1e4  # of a scale carried through a residual stream, spec R8


class Solver:
    """Propagates frames through a graph for given forms of the norms.

    Args:
        graph: from a trace.
        catalog: of the traced model's stored tensors.
        sites: the norms, in the numbering of the graph.
        max_condition: largest max|scale| / min|scale| carried through a residual stream; 1 carries none.
    """

    def __init__(
        self, graph: Graph, catalog: Catalog, sites: Sequence[FoldSite], max_condition: float = MAX_CONDITION
    ) -> None:
        self.graph, self.catalog, self.max_condition = graph, catalog, max_condition
        self.sites = sites
        self.calls: dict[int, list[NormCall]] = {index: [] for index in range(len(sites))}
        self.from_linear = torch.zeros(graph.size, dtype=torch.bool)
        self._read_by_norm = torch.full((graph.size,), NOBODY)
        self._read_by_sum, self._read_by_linear, self.pinned = (self.from_linear.clone() for _ in range(3))
        self.weight_dims: dict[str, int] = {}
        several = len(sites)
        for source in graph.sources:
            if isinstance(source, LinearUse):
                self.from_linear[source.outputs] = has_home(source, catalog) | (source.bias is None)
                self.weight_dims[source.weight.name] = len(source.weight.size)
                if source.inputs is not None:
                    self._read_by_linear[source.inputs] = True
            elif isinstance(source, NormCall):
                self.calls[source.site].append(source)
                seen = self._read_by_norm[source.inputs]
                reader = torch.where((seen == NOBODY) | (seen == source.site), source.site, several)
                self._read_by_norm[source.inputs] = reader
                if not sites[source.site].offline:
                    self.pinned[source.inputs] = True
            else:
                self._read_by_sum[source.left] = self._read_by_sum[source.right] = True
        for meeting in graph.meetings:
            self._read_by_linear[meeting.left] = self._read_by_linear[meeting.right] = True
        for read in (*graph.reads, *graph.keys):
            self.pinned[read.codes] = True
        for codes in (*(padding.codes for padding in graph.paddings), *(read.codes for read in graph.padded)):
            self._read_by_linear[codes] = True
        self.pinned[0] = True
        self._read_otherwise = self._read_by_sum | self.pinned | (self._read_by_norm != NOBODY)
        self._read_by_norms_alone = self.from_linear & ~(self._read_by_sum | self._read_by_linear | self.pinned)
        for read in graph.ordered:
            self._read_by_norms_alone[read.codes] = False
        self._forms = [self._list_forms(site) for site in range(len(sites))]

    def list_forms(self, site: int) -> list[Form]:
        """The forms a norm can try, best first."""
        return self._forms[site]

    def _list_forms(self, site: int) -> list[Form]:
        if self.sites[site].obstacle or not self.calls[site]:
            return [Form.KEEP]
        if not self.sites[site].offline:
            return [Form.FORWARD, Form.KEEP]
        backward = [Form.BACKWARD] if self._can_go_backward(site) else []
        if self.sites[site].is_layer_scale:
            return [*backward, Form.KEEP]
        if self.is_direct(site):
            return [Form.FORWARD, *backward, Form.KEEP]
        return [*backward, Form.FORWARD, Form.MULTIPLY, Form.KEEP]

    def is_direct(self, site: int) -> bool:
        """Whether only linear maps read a norm."""
        return not bool(self._read_otherwise[self._list_outputs(site)].any())

    def feeds_sum(self, site: int) -> bool:
        """Whether a norm's output is one side of an addition."""
        return bool(self._read_by_sum[self._list_outputs(site)].any())

    def list_norm_readers(self, site: int) -> list[int]:
        """The norms that read a norm's output."""
        mine = torch.zeros(self.graph.size, dtype=torch.bool)
        mine[self._list_outputs(site)] = True
        return [index for index, calls in self.calls.items() if any(bool(mine[call.inputs].any()) for call in calls)]

    def _list_outputs(self, site: int) -> Tensor:
        return torch.cat([call.outputs for call in self.calls[site]] or [torch.zeros(0, dtype=torch.int64)])

    def _can_go_backward(self, site: int) -> bool:
        """Whether a norm reads nothing but linear maps' outputs that nobody else reads, always by the same channel."""
        inputs = torch.cat([call.inputs for call in self.calls[site]])
        channels = torch.cat([call.channels for call in self.calls[site]])
        if not bool((self._read_by_norms_alone[inputs] & (self._read_by_norm[inputs] == site)).all()):
            return False
        of_code = torch.zeros(self.graph.size, dtype=torch.int64)
        of_code[inputs] = channels
        return bool((of_code[inputs] == channels).all())

    def solve(self, forms: dict[int, Form]) -> Frames:
        """Frames for these forms; `blamed` is empty where they are possible as far as codes tell."""
        ones, zeros = (
            torch.ones(self.graph.size, dtype=torch.float64),
            torch.zeros(self.graph.size, dtype=torch.float64),
        )
        owner = torch.full((self.graph.size,), NOBODY)
        frames = Frames(ones, zeros, ones.clone(), zeros.clone(), owner, zeros.bool())
        free = self.from_linear & ~self.pinned
        for source in self.graph.sources:
            if isinstance(source, NormCall):
                self._place_norm(source, forms[source.site], frames, free)
            elif isinstance(source, Sum):
                self._place_sum(source, frames, free)
            else:
                self._place_linear(source, frames, free)
            if frames.blamed:
                return frames  # what follows may be wrong only because of this
        self._check_readers(frames)
        return frames

    def _place_norm(self, call: NormCall, form: Form, frames: Frames, free: Tensor) -> None:
        site, inputs, outputs = self.sites[call.site], call.inputs, call.outputs
        scale, shift = site.scale.cpu()[call.channels], site.shift.cpu()[call.channels]
        free[inputs] = False
        if form is Form.BACKWARD:
            if not bool(frames.is_plain(inputs).all()):
                frames.blame(inputs, f"{site.name} is to go into the linear map before it")
            frames.row_scale[inputs], frames.row_shift[inputs] = scale, shift
            frames.owner[inputs] = call.site
            return
        if site.offline:
            shift = scale * frames.shift[inputs] + shift
            scale = scale * frames.scale[inputs]
        elif not bool(frames.is_plain(inputs).all()):
            frames.blame(inputs, f"{site.name} reads it, which is not linear")
        if form is Form.FORWARD:
            frames.scale[outputs], frames.shift[outputs], frames.owner[outputs] = scale, shift, call.site
            return
        if form is Form.MULTIPLY:
            frames.shift[outputs], frames.owner[outputs] = shift, call.site
            shift = torch.zeros_like(shift)
        if site.offline:
            self._keep_residue(call, scale, shift, frames)

    def _place_linear(self, use: LinearUse, frames: Frames, free: Tensor) -> None:
        """Leaves in the output what a shift of the input adds where no stored bias can take it away."""
        homeless = ~has_home(use, self.catalog)
        if use.inputs is None or not bool(homeless.any()) or bool((frames.shift[use.inputs] == 0).all()):
            return
        weight = use.weight.view(self.catalog.by_name[use.weight.name].tensor).cpu().double()
        outputs = use.outputs[homeless]
        frames.shift[outputs] = shift_through(weight, frames.shift[use.inputs], use.groups)[homeless]
        frames.owner[outputs] = frames.owner[use.inputs].max()
        frames.homeless[outputs] = True
        free[outputs] = False

    def _keep_residue(self, call: NormCall, scale: Tensor, shift: Tensor, frames: Frames) -> None:
        """Notes the map that stays in a norm's place, one per channel for all calls and positions."""
        size = len(self.sites[call.site].scale)
        if call.site not in frames.residues:
            known = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
            known[0][call.channels], known[1][call.channels] = scale, shift
            frames.residues[call.site] = known
        known = frames.residues[call.site]
        same = is_same(known[0][call.channels], scale) & is_same(known[1][call.channels], shift)
        if not bool(same.all()):
            inputs = torch.cat([other.inputs for other in self.calls[call.site]])
            frames.blame(inputs, f"{self.sites[call.site].name} sees it beside values that are not its own")

    def _place_sum(self, source: Sum, frames: Frames, free: Tensor) -> None:
        left, right, outputs = source.left, source.right, source.outputs
        both = free[left] & free[right]
        free[left[both]] = free[right[both]] = False
        for mine, other in ((left, right), (right, left)):
            chosen = free[mine]
            self._fit_writer(mine[chosen], other[chosen], source, frames)
        free[left] = free[right] = False
        same = is_same(frames.scale[left], frames.scale[right])
        if not bool(same.all()):
            reason = f"the addition in {source.module} needs one scale on both sides"
            frames.blame(torch.cat((left[~same], right[~same])), reason)
        frames.scale[outputs] = frames.scale[left]
        frames.shift[outputs] = frames.shift[left] + frames.shift[right]
        owner = frames.owner[left]
        frames.owner[outputs] = torch.where(owner != NOBODY, owner, frames.owner[right])

    def _fit_writer(self, writer: Tensor, stream: Tensor, source: Sum, frames: Frames) -> None:
        """Lets a linear map write into a stream: at the stream's scale, and taking its shift away."""
        if bool(frames.is_plain(stream).all()):
            return
        scale = frames.scale[stream]
        condition = float(scale.abs().max() / scale.abs().min())
        for site in torch.unique(frames.owner[stream]).tolist():
            frames.conditions[site] = max(condition, frames.conditions.get(site, 1.0))
        if bool((scale == 0).any()):
            frames.blame(stream, f"a scale is 0 in the stream of {source.module}")
            return
        if condition > self.max_condition:
            reason = (
                f"scales of the stream of {source.module} differ by a factor of {condition:.0e}, too much to carry on"
            )
            frames.blame(stream, reason)
            return
        frames.scale[writer], frames.shift[writer] = scale, -frames.shift[stream]
        frames.row_scale[writer] = 1 / scale
        frames.row_shift[writer] = frames.shift[stream] / scale
        frames.owner[writer] = frames.owner[stream]

    def _check_readers(self, frames: Frames) -> None:
        """Blames norms whose frames meet a reader that needs others."""
        for read in self.graph.reads:
            wrong = read.codes[~frames.is_plain(read.codes)]
            through = " through a linear map that takes no bias" if bool(frames.homeless[wrong].any()) else ""
            frames.blame(wrong, f"read by {read.reader}{through}")
        for meeting in self.graph.meetings:
            same = is_same(frames.scale[meeting.left], frames.scale[meeting.right])
            same &= is_same(frames.shift[meeting.left], frames.shift[meeting.right])
            wrong = torch.cat((meeting.left[~same], meeting.right[~same]))
            frames.blame(wrong, f"the {meeting.reader} also reads values that are not its own, as zero padding")
        for read in self.graph.keys:
            frames.blame(read.codes[frames.scale[read.codes] != 1], f"read by {read.reader}")
        for padding in self.graph.paddings:
            self._place_fill(padding, frames)
        for read in self.graph.padded:
            frames.blame(read.codes[frames.shift[read.codes] != 0], read.reader)
        for read in self.graph.ordered:
            frames.blame(read.codes[frames.scale[read.codes] <= 0], f"{read.reader} needs positive scales")

    def _place_fill(self, padding: Padding, frames: Frames) -> None:
        """Notes what a call of `F.pad` must put in so that it means the constant."""
        scale, shift = frames.scale[padding.codes], frames.shift[padding.codes]
        fill = Fill((padding.value - shift) / scale, padding.axis, padding.num_dims, padding.value)
        if bool((scale == 0).any()):
            frames.blame(padding.codes[scale == 0], f"a scale is 0 before the {padding.reader}")
            return
        known = frames.fills.setdefault((padding.module, padding.index), fill)
        same = known.values.shape == fill.values.shape and bool(is_same(known.values, fill.values).all())
        counts = self.graph.padding_counts[padding.module] - {0}
        if not same or (len(counts) != 1 and not fill.is_plain):
            frames.blame(padding.codes, f"the {padding.reader} serves several inputs and would need several constants")


def has_home(use: LinearUse, catalog: Catalog) -> Tensor:
    """For each output of a linear map, whether a stored bias can take what a shift of the input adds to it."""
    if use.bias is None:
        return torch.full((use.size,), use.takes_bias)
    home = torch.zeros(use.size, dtype=torch.bool)
    for stored in catalog.list_stored(use.bias):
        if stored.persistent:
            home |= stored.holds(use.bias)
    return home


def shift_through(weight: Tensor, shift: Tensor, groups: int) -> Tensor:
    """What a shift (K,) of a linear map's input adds to its output (O,)."""
    return (weight * spread(shift, weight, groups)).flatten(1).sum(1)


def spread(values: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Values of a linear map's input channels laid beside its weight, (O or 1, K / groups, 1, ...)."""
    values = values.view(groups, -1)
    if groups > 1:
        values = values.repeat_interleave(weight.shape[0] // groups, dim=0)
    return values.view(*values.shape, *[1] * (weight.dim() - 2))
