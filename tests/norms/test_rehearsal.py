"""A norm whose state moves twice in a recomputed call is refused before it trains, with a line that says where."""

import pytest
import torch
from torch import nn

from tests.norms.helpers import C, copy_state
from un.norms import BatchNorm, Norm, UnifiedNorm, describe_warmup
from un.norms.core.rehearsal import check_recomputation
from un.surgery import replace_norms


class Careless(Norm):
    """Moves its state in the forward itself."""

    def __init__(self, num_features, **options):
        super().__init__(num_features, eps=1e-5, **options)
        self.register_state("running_var", 1, num_features)

    def forward(self, x, pad_mask=None):
        x, _ = self.check_input(x, pad_mask)
        if self.training:
            self.running_var.lerp_(x.detach().square().flatten(0, -2).mean(0), 0.1)
        return self.scale_and_shift(x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt())


def test_every_norm_passes_and_is_left_alone(name, norm):
    before, random = copy_state(norm), torch.get_rng_state()
    check_recomputation(norm)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert norm.training


def test_a_careless_norm_is_refused_before_the_model_changes():
    model = nn.Sequential(nn.Linear(C, C), nn.LayerNorm(C))
    with pytest.raises(ValueError, match=r"^Careless changes running_var outside self.notes.decide_once: .*twice"):
        replace_norms(model, Careless)
    assert isinstance(model[1], nn.LayerNorm)


def test_a_training_inside_the_warm_up_is_told():
    model = nn.Sequential(UnifiedNorm(C, warmup_steps=3), BatchNorm(C), UnifiedNorm(C, warmup_steps=2))
    assert describe_warmup(model) == ""  # nothing was trained
    for _ in range(2):
        model(torch.randn(4, C))
    assert describe_warmup(model).startswith(
        "1 of 2 norms are still in their warm-up, in which they only use batch statistics: UnifiedNorm counted 2 of 3 "
        "calls; train longer or lower warmup_steps"
    )
    model(torch.randn(4, C))
    assert describe_warmup(model) == ""
