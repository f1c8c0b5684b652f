"""Chooses what the channels of the folded model mean, and so which norms can vanish.

An operation that is not understood needs the value x itself. A norm that vanishes passes h on; its map enters the next
frame. A linear map can take any frames at its input and, unless something else is asked of it, give any at its output.
The two sides of a sum have one scale. Frames are propagated in the order of execution. Where one cannot be kept, the
norm it comes from is blamed and tries its next form. That covers rules R1 to R8 and R10's LayerScale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from un.folding.frames import NOBODY, Fill, Form, Frames, is_same
from un.folding.graph import Graph, LinearUse, Meeting, Need, NormCall, Padding, Read, Sum
from un.folding.sites import FoldSite

MAX_CONDITION = 1e4  # of a scale carried through a residual stream, spec R8


class Solver:
    """Propagates frames through a graph for given forms of the norms.

    Args:
        graph: from a trace.
        sites: the norms, in the numbering of the graph.
        max_condition: largest max|scale| / min|scale| carried through a residual stream; 1 carries none.

    Attributes:
        calls: of each site's norm.
        forms: that each site can try, best first.
    """

    def __init__(self, graph: Graph, sites: Sequence[FoldSite], max_condition: float) -> None:
        self.graph, self.sites, self.max_condition = graph, sites, max_condition
        self.calls: list[list[NormCall]] = [[] for _ in sites]
        self._read_by_norm = torch.full((graph.size,), NOBODY)
        flags = torch.zeros(4, graph.size, dtype=torch.bool)
        self._from_linear, self._read_by_sum, self._read_by_linear, self._pinned = flags  # of each code
        self._note_readers()
        self.forms = [self._list_forms(site) for site in range(len(sites))]

    def _note_readers(self) -> None:
        graph, several = self.graph, len(self.sites)
        for source in graph.sources:
            if isinstance(source, LinearUse):
                self._from_linear[source.outputs] = has_home(source) | (source.bias is None)
                if source.inputs is not None:
                    self._read_by_linear[source.inputs] = True
            elif isinstance(source, NormCall):
                self.calls[source.site].append(source)
                seen = self._read_by_norm[source.inputs]
                reader = torch.where((seen == NOBODY) | (seen == source.site), source.site, several)
                self._read_by_norm[source.inputs] = reader
                if not self.sites[source.site].offline:
                    self._pinned[source.inputs] = True
            else:
                self._read_by_sum[source.left] = self._read_by_sum[source.right] = True
        for meeting in graph.meetings:
            self._read_by_linear[meeting.left] = self._read_by_linear[meeting.right] = True
        for padding in graph.paddings:
            self._read_by_linear[padding.codes] = True
        for read in graph.reads:
            readers = self._pinned if read.need in (Need.ITSELF, Need.SAME_SCALE) else self._read_by_linear
            readers[read.codes] = True
        self._pinned[0] = True

    def _list_forms(self, site: int) -> list[Form]:
        if self.sites[site].obstacle or not self.calls[site]:
            return [Form.KEEP]
        if not self.sites[site].offline:
            return [Form.FORWARD, Form.KEEP]
        backward = [Form.BACKWARD] if self._can_go_backward(site) else []
        if self.sites[site].is_layer_scale:
            return [*backward, Form.KEEP]
        others = self._read_by_sum | self._pinned | (self._read_by_norm != NOBODY)
        if not bool(others[self._list_outputs(site)].any()):  # only linear maps read it
            return [Form.FORWARD, *backward, Form.KEEP]
        return [*backward, Form.FORWARD, Form.MULTIPLY, Form.KEEP]

    def feeds_sum(self, site: int) -> bool:
        """Whether a norm's output is one side of an addition."""
        return bool(self._read_by_sum[self._list_outputs(site)].any())

    def list_norm_readers(self, site: int) -> list[int]:
        """Returns the norms that read a norm's output."""
        mine = torch.zeros(self.graph.size, dtype=torch.bool)
        mine[self._list_outputs(site)] = True
        return [index for index, calls in enumerate(self.calls) if any(mine[call.inputs].any() for call in calls)]

    def _list_outputs(self, site: int) -> Tensor:
        return torch.cat([call.outputs for call in self.calls[site]] or [torch.zeros(0, dtype=torch.int64)])

    def _can_go_backward(self, site: int) -> bool:
        """Whether a norm reads only outputs of linear maps that nothing else reads, each by the same channel."""
        inputs = torch.cat([call.inputs for call in self.calls[site]])
        channels = torch.cat([call.channels for call in self.calls[site]])
        mine = self._from_linear & (self._read_by_norm == site)
        mine &= ~(self._read_by_sum | self._read_by_linear | self._pinned)
        of_code = torch.zeros(self.graph.size, dtype=torch.int64)
        of_code[inputs] = channels
        return bool(mine[inputs].all()) and bool((of_code[inputs] == channels).all())

    def solve(self, forms: Sequence[Form]) -> Frames:
        """Returns frames for these forms; `blamed` is empty where they are possible as far as codes tell."""
        frames = Frames.plain(self.graph.size)
        free = self._from_linear & ~self._pinned
        for source in self.graph.sources:
            if isinstance(source, NormCall):
                self._place_norm(source, forms[source.site], frames, free)
            elif isinstance(source, Sum):
                self._place_sum(source, frames, free)
            else:
                self._place_linear(source, frames, free)
            if frames.blamed:
                return frames  # what follows may be wrong only because of this
        for read in self.graph.reads:
            _check_read(read, frames)
        for meeting in self.graph.meetings:
            _check_meeting(meeting, frames)
        for padding in self.graph.paddings:
            self._place_fill(padding, frames)
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

    def _keep_residue(self, call: NormCall, scale: Tensor, shift: Tensor, frames: Frames) -> None:
        """Notes the map that stays in a norm's place, one per channel for all calls and positions."""
        if call.site not in frames.residues:
            size = len(self.sites[call.site].scale)
            residue = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
            residue[0][call.channels], residue[1][call.channels] = scale, shift
            frames.residues[call.site] = residue
        known = frames.residues[call.site]
        same = is_same(known[0][call.channels], scale) & is_same(known[1][call.channels], shift)
        if not bool(same.all()):
            inputs = torch.cat([other.inputs for other in self.calls[call.site]])
            frames.blame(inputs, f"{self.sites[call.site].name} treats it and other values alike")

    def _place_linear(self, use: LinearUse, frames: Frames, free: Tensor) -> None:
        """Leaves in the output what a shift of the input adds where no stored bias can take it away."""
        homeless = ~has_home(use)
        if use.inputs is None or not bool(homeless.any()) or bool((frames.shift[use.inputs] == 0).all()):
            return
        weight = use.weight.cpu().double()
        outputs = use.outputs[homeless]
        frames.shift[outputs] = shift_through(weight, frames.shift[use.inputs], use.groups)[homeless]
        frames.owner[outputs] = frames.owner[use.inputs].max()
        frames.homeless[outputs] = True
        free[outputs] = False

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
        elif condition > self.max_condition:
            where = f"the stream of {source.module}"
            frames.blame(stream, f"scales of {where} differ by a factor of {condition:.0e}, too much to carry on")
        else:
            frames.scale[writer], frames.shift[writer] = scale, -frames.shift[stream]
            frames.row_scale[writer] = 1 / scale
            frames.row_shift[writer] = frames.shift[stream] / scale
            frames.owner[writer] = frames.owner[stream]

    def _place_fill(self, padding: Padding, frames: Frames) -> None:
        """Notes what a call of `F.pad` must put in so that it means the constant."""
        scale, shift = frames.scale[padding.codes], frames.shift[padding.codes]
        if bool((scale == 0).any()):
            frames.blame(padding.codes[scale == 0], f"a scale is 0 before the {padding.reader}")
            return
        fill = Fill((padding.value - shift) / scale, padding)
        known = frames.fills.setdefault((padding.module, padding.index), fill)
        same = known.values.shape == fill.values.shape and bool(is_same(known.values, fill.values).all())
        counts = self.graph.padding_counts[padding.module] - {0}
        if not same or (len(counts) != 1 and not fill.is_plain):
            frames.blame(padding.codes, f"the {padding.reader} serves several inputs and would need several constants")


def _check_read(read: Read, frames: Frames) -> None:
    """Blames norms whose frames meet a reader that needs others."""
    codes, reader = read.codes, read.reader
    if read.need is Need.ITSELF:
        wrong = codes[~frames.is_plain(codes)]
        through = " through a linear map that takes no bias" if bool(frames.homeless[wrong].any()) else ""
        frames.blame(wrong, f"read by {reader}{through}")
    elif read.need is Need.SAME_SCALE:
        frames.blame(codes[frames.scale[codes] != 1], f"read by {reader}")
    elif read.need is Need.NO_SHIFT:
        frames.blame(codes[frames.shift[codes] != 0], reader)
    else:
        frames.blame(codes[frames.scale[codes] <= 0], f"{reader} needs positive scales")


def _check_meeting(meeting: Meeting, frames: Frames) -> None:
    left, right = meeting.left, meeting.right
    same = is_same(frames.scale[left], frames.scale[right]) & is_same(frames.shift[left], frames.shift[right])
    frames.blame(torch.cat((left[~same], right[~same])), f"the {meeting.reader} treats it and other values alike")


def has_home(use: LinearUse) -> Tensor:
    """For each output of a linear map, whether a stored bias can take what a shift of the input adds to it."""
    if use.bias is None:
        return torch.full((use.size,), use.takes_bias)
    home = torch.zeros(use.size, dtype=torch.bool)
    for stored in use.biases:
        if stored.persistent:
            home |= stored.holds(use.bias)
    return home


def shift_through(weight: Tensor, shift: Tensor, groups: int) -> Tensor:
    """Returns what a shift (K,) of a linear map's input adds to its output (O,)."""
    return (weight * spread(shift, weight, groups)).flatten(1).sum(1)


def spread(values: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Lays values of a linear map's input channels beside its weight, (O or 1, K / groups, 1, ...)."""
    values = values.view(groups, -1)
    if groups > 1:
        values = values.repeat_interleave(weight.shape[0] // groups, dim=0)
    return values.view(*values.shape, *[1] * (weight.dim() - 2))
