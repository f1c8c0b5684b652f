"""UN in numpy, float64, step by step: the official code (F1-F11, B1-B8) and the paper (P1-P5). Slow and obvious."""

from __future__ import annotations

import numpy as np


def geometric(window):
    with np.errstate(divide="ignore"):
        return np.exp(np.log(window).mean(0))


class OfficialReference:
    """Inputs are (B, N, C); `mask` is (B, N), True = padding."""

    def __init__(self, channels, window=4, warmup=4000, filtration=False, eps=1e-5, alpha=0.9):
        self.forward_size, self.backward_size = window if isinstance(window, tuple) else (window, window)
        self.warmup, self.filtration, self.eps, self.alpha = warmup, filtration, eps, alpha
        self.gamma, self.beta = np.ones(channels), np.zeros(channels)
        self.v, self.psi = np.ones(channels), np.zeros(channels)
        self.Q = np.zeros((self.forward_size, channels))
        self.G = np.zeros((self.backward_size, channels))
        self.t, self.skipped = 0, 0

    def forward(self, x, mask=None):
        self.t += 1
        rows = x.reshape(-1, x.shape[-1]) if mask is None else x[~mask]
        q = (rows**2).mean(0)
        values = np.sqrt(self.Q)
        variance = values.var(ddof=1) if values.size > 1 else np.nan
        slot = self.t % self.forward_size
        self.Q[slot] = q
        self.drop = self.forward_size == 1
        if self.filtration and self.t >= self.warmup:
            gap = self.Q.mean(0) - geometric(self.Q)
            if (gap > self.forward_size * variance).any():
                self.Q[slot] = self.v
                self.drop = True
                self.skipped += 1
        raw = self.t <= self.forward_size or self.t < self.warmup or self.drop
        self.s = q if raw else geometric(self.Q)
        if self.t <= max(1000, self.warmup) or self.drop:
            self.r = np.ones_like(q)
        else:
            self.r = np.clip(np.sqrt(self.s + self.eps) / np.sqrt(self.v + self.eps), 0.2, 5.0)
        self.Z = x / np.sqrt(self.s + self.eps)
        self.v = self.alpha * self.v + (1 - self.alpha) * self.s
        return self.gamma * self.Z + self.beta

    def backward(self, D):
        g = D * self.gamma * self.r
        p = (g * self.Z).mean(1).mean(0)
        self.G[self.t % self.backward_size] = self.psi if self.drop else p
        raw = self.t <= self.backward_size or self.t < self.warmup or self.drop
        m = p if raw else self.G.mean(0)
        self.psi = self.alpha * self.psi + (1 - self.alpha) * m
        kappa = m if self.drop else self.psi
        x_grad = (g - kappa * self.Z) / np.sqrt(self.s + self.eps)
        return x_grad, (D * self.r * self.Z).sum((0, 1)), D.sum((0, 1))

    def evaluate(self, x):
        return self.gamma * x / np.sqrt(self.v + self.eps) + self.beta


class PaperReference(OfficialReference):
    """Steps P1 to P5; S5, S6, S8 and S12 official, as the preset has them."""

    def forward(self, x, mask=None):
        self.t += 1
        self.mask = np.zeros(x.shape[:2], dtype=bool) if mask is None else mask
        q = (x[~self.mask] ** 2).mean(0)
        variance = np.sqrt(self.Q).var()
        self.Q[self.t % self.forward_size] = q
        self.full = self.t >= self.forward_size and self.t >= self.warmup
        self.drop = False
        if self.filtration and self.full:
            self.drop = bool((self.Q.mean(0) - geometric(self.Q) > self.forward_size * variance).any())
            self.skipped += self.drop
        self.s = geometric(self.Q) if self.full and not self.drop else q
        self.Z = x / np.sqrt(self.s + self.eps)
        self.v = self.alpha * self.v + (1 - self.alpha) * self.s
        return self.gamma * self.Z + self.beta

    def backward(self, D):
        g = D * self.gamma
        p = (g * self.Z).sum((0, 1)) / (~self.mask).sum()
        self.G[self.t % self.backward_size] = p
        if self.full and not self.drop:
            self.psi = self.alpha * self.psi + (1 - self.alpha) * self.G.mean(0)
        else:
            self.psi = p
        correction = np.where(self.mask[..., None], 0, self.psi * self.Z)
        return (g - correction) / np.sqrt(self.s + self.eps), (D * self.Z).sum((0, 1)), D.sum((0, 1))
