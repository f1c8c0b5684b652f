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


def fit_mask(mask: Tensor, x: Tensor) -> Tensor:
    """The mask for as many tokens as there are now, (B, N, 1); those that came later are not masked."""
    num_tokens = x.shape[1]
    return F.pad(mask[:, :num_tokens], (0, max(num_tokens - mask.shape[1], 0)))[..., None]


def fill_if_any(step, x, inputs, before):
    mask = fit_mask(inputs["mask"], x)
    return x.masked_fill(mask, step.number) if mask.any() else x


def pad_by_zeros(step, x, inputs, before):
    return torch.cat((x, x.new_zeros(x.shape[0], -x.shape[1] % WINDOW, C)), 1)


def assign_by_mask(step, x, inputs, before):
    y = x.clone()
    y[fit_mask(inputs["mask"], x)[..., 0]] = step.token
    return y


def assign_by_index(step, x, inputs, before):
    y = x.clone()
    y[:, inputs["index"] % x.shape[1]] = before[:, :1]
    return y


def assign_slice(step, x, inputs, before):
    y = x.clone()
    y[:, : inputs["extra"].shape[1]] = step.number
    return y


def gather(step, x, inputs, before):
    return x.gather(1, (inputs["index"] % x.shape[1])[None, :, None].expand(len(x), -1, C))


def drop(step, x, inputs, before):
    num_dropped = inputs["extra"].shape[1]
    return x[:, num_dropped:] if x.shape[1] > num_dropped else x


def choose_experts(step, x, inputs, before):
    chosen = step.gate(x).argmax(-1)
    out = torch.zeros_like(x)
    for number, expert in enumerate(step.experts):
        out[chosen == number] = expert(x[chosen == number])
    return out


def attend(step, x, inputs, before):
    return F.scaled_dot_product_attention(step.query(x), F.linear(x, step.key.weight), step.value(x))


def where_before(step, x, inputs, before):
    num_tokens = min(x.shape[1], before.shape[1])  # a branch on equal sizes would be beyond what is promised
    mask = fit_mask(inputs["mask"], x)
    return torch.where(mask[:, :num_tokens], x[:, :num_tokens], before[:, :num_tokens])


def add_before(step, x, inputs, before):
    num_tokens = min(x.shape[1], before.shape[1])
    return x[:, :num_tokens] + before[:, :num_tokens]


MOVES = {
    "fill": lambda step, x, inputs, before: x.masked_fill(fit_mask(inputs["mask"], x), step.number),
    "fill in place": lambda step, x, inputs, before: x.clone().masked_fill_(fit_mask(inputs["mask"], x), step.number),
    "fill if any": fill_if_any,
    "where": lambda step, x, inputs, before: torch.where(fit_mask(inputs["mask"], x), step.token, x),
    "where before": where_before,
    "pad": lambda step, x, inputs, before: F.pad(x, (0, 0, 0, -x.shape[1] % WINDOW)),
    "pad if odd": lambda step, x, inputs, before: F.pad(x, (0, 0, 0, 1), value=step.number) if x.shape[1] % 2 else x,
    "pad by zeros": pad_by_zeros,
    "concatenate": lambda step, x, inputs, before: torch.cat((x, inputs["extra"]), 1),
    "prepend": lambda step, x, inputs, before: torch.cat((step.token.expand(len(x), 1, C), x), 1),
    "assign by mask": assign_by_mask,
    "assign by index": assign_by_index,
    "assign slice": assign_slice,
    "pick": lambda step, x, inputs, before: x[:, inputs["index"] % x.shape[1]],
    "gather": gather,
    "drop": drop,
    "roll": lambda step, x, inputs, before: x.roll(1, 1),
    "mean": lambda step, x, inputs, before: x.mean(1, keepdim=True),
}
READERS = {
    "linear": lambda step, x, inputs, before: step.linear(x),
    "convolution": lambda step, x, inputs, before: step.conv(x.mT).mT if x.shape[1] > 2 else x,
    "attention": attend,
    "experts": choose_experts,
}
OTHERS = {
    "norm": lambda step, x, inputs, before: step.norm(x),
    "activation": lambda step, x, inputs, before: x.tanh(),
    "residual": add_before,
}
OPERATIONS = {**MOVES, **READERS, **OTHERS}


class Step(nn.Module):
    """One operation on tokens (B, N, C), which may use the model's other inputs and an earlier result."""

    def __init__(self, kind: str, draw: random.Random) -> None:
        super().__init__()
        self.kind, self.number, self.token = kind, draw.choice((0.0, 0.5)), nn.Parameter(torch.randn(C))
        if kind == "norm":
            self.norm = draw.choice((UnifiedNorm, BatchNorm, nn.LayerNorm))(C)
        elif kind == "linear":
            self.linear = nn.Linear(C, C, bias=draw.random() < 0.5)
        elif kind == "convolution":
            self.conv = nn.Conv1d(C, C, 3, padding=draw.choice((0, 1)))
        elif kind == "experts":
            self.gate = nn.Linear(C, EXPERTS)
            self.experts = nn.ModuleList(nn.Linear(C, C, bias=draw.random() < 0.5) for _ in range(EXPERTS))
        elif kind == "attention":
            self.query, self.key, self.value = nn.Linear(C, C), nn.Linear(C, C, bias=False), nn.Linear(C, C, bias=False)

    def forward(self, x: Tensor, inputs: dict[str, Tensor], before: Tensor) -> Tensor:
        return OPERATIONS[self.kind](self, x, inputs, before)


class RandomModel(nn.Module):
    """Chains of a norm, moves, a reader and what may follow, some of which read an earlier result, and a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        kinds: list[str] = []
        for _ in range(draw.randint(1, 2)):
            moves = draw.choices(list(MOVES), k=draw.randint(0, 2))
            kinds += ["norm", *moves, draw.choice(("linear", *READERS)), draw.choice((*OTHERS, *MOVES))]
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
    num_extra = 0 if bare else draw.randint(1, 2)
    extra = torch.randn(batch, num_extra, C, generator=generator, dtype=torch.float64)
    return x, mask, extra, torch.randint(0, 5, (draw.randint(1, 4),), generator=generator)
