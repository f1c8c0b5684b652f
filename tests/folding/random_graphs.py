"""Random small models out of the operations that have led folds astray, and inputs for them."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from un.norms import BatchNorm, UnifiedNorm

C = 4
EXPERTS = 3
WINDOW = 3


class Step(nn.Module):
    """One random operation on tokens (B, N, C); `kind` names its method."""

    def __init__(self, kind: str, draw: random.Random) -> None:
        super().__init__()
        self.kind = kind
        self.number = draw.choice((0.0, 0.5))
        self.norm = draw.choice((UnifiedNorm, BatchNorm, nn.LayerNorm))(C) if kind == "norm" else None
        self.linear = nn.Linear(C, C, bias=draw.random() < 0.5)
        self.conv = nn.Conv1d(C, C, 3, padding=draw.choice((0, 1)))
        self.experts = nn.ModuleList(nn.Linear(C, C) for _ in range(EXPERTS))
        self.query, self.value = nn.Linear(C, C), nn.Linear(C, C, bias=False)
        self.token = nn.Parameter(torch.randn(C))

    def forward(self, x: Tensor, inputs: dict[str, Tensor], before: Tensor) -> Tensor:
        return getattr(self, f"run_{self.kind}")(x, inputs, before)

    def run_norm(self, x, inputs, before):
        return self.norm(x)

    def run_linear(self, x, inputs, before):
        return self.linear(x)

    def run_activation(self, x, inputs, before):
        return x.tanh()

    def run_residual(self, x, inputs, before):
        return x + before if x.shape == before.shape else x

    def run_convolution(self, x, inputs, before):
        return self.conv(x.transpose(1, 2)).transpose(1, 2) if x.shape[1] > 2 else x

    def run_fill(self, x, inputs, before):
        return x.masked_fill(self._fit(inputs["mask"], x)[..., None], self.number)

    def run_fill_in_place(self, x, inputs, before):
        return x.clone().masked_fill_(self._fit(inputs["mask"], x)[..., None], self.number)

    def run_fill_if_any(self, x, inputs, before):
        mask = self._fit(inputs["mask"], x)
        return x.masked_fill(mask[..., None], self.number) if mask.any() else x

    def run_where(self, x, inputs, before):
        return torch.where(self._fit(inputs["mask"], x)[..., None], self.token, x)

    def run_where_before(self, x, inputs, before):
        return torch.where(self._fit(inputs["mask"], x)[..., None], x, before) if x.shape == before.shape else x

    def run_pad(self, x, inputs, before):
        return F.pad(x, (0, 0, 0, -x.shape[1] % WINDOW))

    def run_pad_if_needed(self, x, inputs, before):
        return F.pad(x, (0, 0, 0, 1), value=self.number) if x.shape[1] % 2 else x

    def run_pad_by_zeros(self, x, inputs, before):
        return torch.cat((x, x.new_zeros(x.shape[0], -x.shape[1] % WINDOW, C)), 1)

    def run_concatenate(self, x, inputs, before):
        return torch.cat((x, inputs["extra"]), 1)

    def run_prepend(self, x, inputs, before):
        return torch.cat((self.token.expand(len(x), 1, C), x), 1)

    def run_assign_by_mask(self, x, inputs, before):
        y = x.clone()
        y[self._fit(inputs["mask"], x)] = self.token
        return y

    def run_assign_by_index(self, x, inputs, before):
        y = x.clone()
        y[:, inputs["index"] % x.shape[1]] = before[:, :1]
        return y

    def run_assign_slice(self, x, inputs, before):
        y = x.clone()
        y[:, : inputs["extra"].shape[1]] = self.number
        return y

    def run_pick(self, x, inputs, before):
        return x[:, inputs["index"] % x.shape[1]]

    def run_gather(self, x, inputs, before):
        index = (inputs["index"] % x.shape[1])[None, :, None].expand(len(x), -1, C)
        return x.gather(1, index)

    def run_drop(self, x, inputs, before):
        return x[:, inputs["extra"].shape[1] :] if x.shape[1] > inputs["extra"].shape[1] else x

    def run_roll(self, x, inputs, before):
        return x.roll(1, 1)

    def run_mean(self, x, inputs, before):
        return x.mean(1, keepdim=True)

    def run_experts(self, x, inputs, before):
        chosen = self.linear(x).argmax(-1) % EXPERTS
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out[chosen == number] = expert(x[chosen == number])
        return out

    def run_attention(self, x, inputs, before):
        return F.scaled_dot_product_attention(self.query(x), F.linear(x, self.linear.weight), self.value(x))

    @staticmethod
    def _fit(mask: Tensor, x: Tensor) -> Tensor:
        """The mask for as many tokens as there are now; those that came later are not masked."""
        num_tokens = x.shape[1]
        return F.pad(mask[:, :num_tokens], (0, max(num_tokens - mask.shape[1], 0)))


READERS = ("linear", "linear", "convolution", "attention", "experts")
OTHERS = ("norm", "activation", "residual")
MOVES = sorted({name.removeprefix("run_") for name in vars(Step) if name.startswith("run_")} - {*READERS, *OTHERS})


class RandomModel(nn.Module):
    """Chains of a norm, moves, a reader and what may follow, some of which read an earlier result, and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        kinds: list[str] = []
        for _ in range(draw.randint(1, 2)):
            moves = draw.choices(MOVES, k=draw.randint(0, 2))
            kinds += ["norm", *moves, draw.choice(READERS), draw.choice((*OTHERS, *MOVES))]
        self.steps = nn.ModuleList(Step(kind, draw) for kind in kinds)
        self.readers = [draw.randint(0, number) for number in range(len(kinds))]
        self.head = nn.Linear(C, 3)

    def forward(self, x: Tensor, mask: Tensor, extra: Tensor, index: Tensor) -> Tensor:
        inputs = {"mask": mask, "extra": extra, "index": index}
        results = [x]
        for step, reader in zip(self.steps, self.readers, strict=True):
            results.append(step(results[-1], inputs, results[reader]))
        return self.head(results[-1]).mean(1)

    def describe(self) -> str:
        return ", ".join(step.kind for step in self.steps)


def draw_inputs(seed: int, bare: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, mask, further tokens and positions; a bare example masks, adds and pads nothing."""
    generator = torch.Generator().manual_seed(seed)
    draw = random.Random(seed)
    batch, num_tokens = (2, 2 * WINDOW) if bare else (draw.randint(1, 3), draw.randint(5, 9))
    x = torch.randn(batch, num_tokens, C, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, num_tokens, generator=generator) < (0.0 if bare else draw.choice((0.0, 0.5, 1.0)))
    num_extra = 0 if bare else draw.randint(0, 2)
    extra = torch.randn(batch, num_extra, C, generator=generator, dtype=torch.float64)
    return x, mask, extra, torch.randint(0, 5, (draw.randint(1, 4),), generator=generator)
