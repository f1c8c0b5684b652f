"""What an example cannot show: experts without tokens, one token, constant outputs, masks and arguments left out."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.folding.helpers import C, linear, make_model, make_tokens, outcomes, relative_difference
from un.folding import ScaleShift, fold_norms
from un.norms import BatchNorm

EXPERTS = 4


def check_other_inputs(model: nn.Module, folded: nn.Module, *others: Tensor) -> None:
    for other in others:
        with torch.no_grad():
            expected = model(other)
            assert float(expected.std()) > 0
            assert relative_difference(expected, folded(other)) < 1e-5


def route_by_mask(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x)
    chosen = m.gate(y).argmax(-1)
    out = torch.zeros_like(x)
    for number, expert in enumerate(m.experts):
        out[chosen == number] = expert(y[chosen == number])
    return x + out


def route_by_position(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x).flatten(0, 1)
    chosen = m.gate(y).argmax(-1)
    out = torch.zeros_like(y)
    for number, expert in enumerate(m.experts):
        (rows,) = torch.where(chosen == number)
        out = out.index_add(0, rows, expert(y[rows]))
    return out


def route_by_hit(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x).flatten(0, 1)
    chosen = m.gate(y).argmax(-1)
    out = torch.zeros_like(y)
    for number in chosen.unique().tolist():
        out[chosen == number] = m.experts[number](y[chosen == number])
    return out


def route_by_order(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x).flatten(0, 1)
    chosen = m.gate(y).argmax(-1)
    parts = y[chosen.argsort()].split(chosen.bincount(minlength=EXPERTS).tolist())
    return torch.cat([expert(part) for expert, part in zip(m.experts, parts, strict=True)])


@pytest.mark.parametrize("route", [route_by_mask, route_by_position, route_by_hit, route_by_order])
def test_experts_without_tokens_are_followed_or_the_norm_stays(route):
    experts = nn.ModuleList(linear() for _ in range(EXPERTS))
    model = make_model(route, norm=BatchNorm(C), gate=linear(out=EXPERTS), experts=experts)
    folded, _ = fold_norms(model, make_tokens(1, 2, C))
    check_other_inputs(model, folded, *make_tokens(4, 20, C), *make_tokens(2, 9, C))


def test_experts_with_norms_of_their_own_and_no_token():
    experts = nn.ModuleList(nn.Sequential(BatchNorm(C), nn.ReLU(), linear()) for _ in range(EXPERTS))
    model = make_model(route_by_mask, norm=BatchNorm(C), gate=linear(out=EXPERTS), experts=experts)
    folded, _ = fold_norms(model, make_tokens(1, 1, C))
    check_other_inputs(model, folded, *make_tokens(4, 20, C))


def test_a_norm_stays_whose_values_the_example_overwrites_and_others_do_not():
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(x).clone()
        y[:, : x.shape[0]] = 0.5
        return m.fc(y)

    model = make_model(forward, norm=BatchNorm(C), fc=linear())
    folded, _ = fold_norms(model, make_tokens(5, 3, C))
    check_other_inputs(model, folded, *make_tokens(2, 6, C))


def test_a_norm_stays_where_its_reader_gets_no_row_and_the_report_says_so():
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(x)
        return m.first(y[:, 0]) + m.others(y[:, torch.arange(1, x.shape[1])]).sum(1)

    model = make_model(forward, norm=BatchNorm(C), first=linear(), others=linear())
    folded, report = fold_norms(model, make_tokens(2, 1, C))
    assert "linear map in others, which gets no row of the example" in report.rows[0].stays
    check_other_inputs(model, folded, *make_tokens(2, 6, C))


class Attention(nn.Module):
    """Softmax attention with a bare weight for the keys, which may be turned by their position."""

    def __init__(self, rotary: bool) -> None:
        super().__init__()
        self.norm, self.query, self.value = BatchNorm(C), linear(), linear()
        self.key = nn.Parameter(3 * torch.randn(C, C))
        self.rotary = rotary

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        key = F.linear(y, self.key)
        if self.rotary:
            angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
            key = key * angle.cos() + key.roll(1, -1) * angle.sin()
        return F.scaled_dot_product_attention(self.query(y), key, self.value(y))


@pytest.mark.parametrize(("rotary", "outcome"), [(False, "folded"), (True, "multiply-add")])
@pytest.mark.parametrize("num_tokens", [1, 4])
def test_the_shift_on_keys_goes_only_where_every_softmax_cancels_it(rotary, outcome, num_tokens):
    model = make_model(lambda m, x: m.attention(x), attention=Attention(rotary))
    folded, report = fold_norms(model, make_tokens(2, num_tokens, C))
    assert outcomes(report) == {"attention.norm": outcome}
    check_other_inputs(model, folded, *make_tokens(2, 7, C))


def test_keys_of_which_only_some_have_the_shift_keep_the_norm():
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(x)
        key = torch.cat((x[:, :1], F.linear(y, m.fc.weight)), 1)
        return F.scaled_dot_product_attention(m.fc(x), key, m.fc(torch.cat((x[:, :1], x), 1)))

    model = make_model(forward, norm=BatchNorm(C), fc=linear())
    folded, report = fold_norms(model, make_tokens())
    assert report.remaining
    check_other_inputs(model, folded, *make_tokens(2, 7, C))


def test_a_fold_behind_a_zero_head_is_compared_before_it():
    model = make_model(lambda m, x: m.head(m.fc(m.norm(x))), norm=BatchNorm(C), fc=linear(), head=linear())
    nn.init.zeros_(model.head.weight)
    folded, report = fold_norms(model, make_tokens(), on_unfoldable="raise")
    assert 0 < report.difference < 1e-12
    nn.init.normal_(model.head.weight)
    folded.head.load_state_dict(model.head.state_dict())
    check_other_inputs(model, folded, *make_tokens(2, 7, C))


def test_a_fold_that_no_output_can_confirm_is_refused():
    model = make_model(lambda m, x: m.fc(m.norm(x)).softmax(-1), norm=BatchNorm(C), fc=linear(out=1))
    nn.init.zeros_(model.fc.weight)
    with pytest.raises(ArithmeticError, match="nothing shows that the fold is right"):
        fold_norms(model, make_tokens())


class Masked(nn.Module):
    """A model that masks what the norm gives, if it gets a mask that masks something."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = BatchNorm(C), linear()

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: bool = False) -> Tensor:
        y = self.norm(x)
        if mask is not None and mask.any():
            y = y.masked_fill(mask[..., None], 0.0)
        return self.fc(y * 2 if scale else y)


def make_masked() -> nn.Module:
    return make_model(lambda m, x: None, inner=Masked()).inner


def test_both_answers_to_a_question_about_values_are_followed():
    model = make_masked()
    (x,) = make_tokens()
    folded, report = fold_norms(model, (x, torch.zeros(3, 5, dtype=torch.bool)))
    assert isinstance(folded.norm, ScaleShift)
    assert "masked_fill" in report.rows[0].stays
    mask = torch.rand(3, 5) > 0.5
    assert relative_difference(model(x, mask), folded(x, mask)) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": torch.ones(3, 5, dtype=torch.bool)}, "whose mask was None, not a tensor of truth values with 2 axes"),
        ({"scale": True}, "whose scale was False, not True"),
        ({"x": torch.zeros(3, 0, C)}, "whose x was a tensor of numbers with 3 axes, not .*, one of length 0"),
    ],
)
def test_a_call_of_another_kind_than_the_example_is_refused(arguments, message):
    folded, _ = fold_norms(make_masked(), make_tokens(), on_unfoldable="raise")
    assert type(copy.deepcopy(folded).norm) is nn.Identity
    with pytest.raises(ValueError, match=message):
        folded(**{"x": make_tokens()[0], **arguments})
    folded(x=make_tokens()[0], mask=None)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: OrderedDict(x=x)])
def test_examples_of_any_form_are_taken_and_not_changed(wrap):
    class Net(Masked):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(x.sub_(0.5).div_(0.25)))

    model = make_model(lambda m, x: None, inner=Net()).inner
    (x,) = make_tokens()
    before = x.clone()
    folded, _ = fold_norms(model, wrap(x), on_unfoldable="raise")
    assert torch.equal(x, before)
    assert relative_difference(model(x.clone()), folded(x.clone())) < 1e-5


def test_a_model_that_fixes_its_type_is_folded_in_it_and_the_report_says_so():
    model = make_model(lambda m, x: m.fc(m.norm(x.float())), norm=BatchNorm(C), fc=linear())
    folded, report = fold_norms(model, make_tokens(), on_unfoldable="raise")
    assert "the model's own type: the model does not run in float64" in str(report)
    check_other_inputs(model, folded, *make_tokens(2, 7, C))


def test_models_that_keep_tensors_or_compute_their_weights_are_copied():
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.kept = [m.fc(m.norm(x))]
        return m.pruned(m.kept[0])

    model = make_model(forward, norm=BatchNorm(C), fc=linear(), pruned=linear())
    prune.l1_unstructured(model.pruned, "weight", 0.5)
    model(*make_tokens())
    folded, _ = fold_norms(model, make_tokens(), on_unfoldable="raise")
    check_other_inputs(model, folded, *make_tokens(2, 7, C))
    model.handle = (number for number in range(3))
    with pytest.raises(ValueError, match="Model cannot be copied, so it cannot be folded: cannot pickle 'generator'"):
        fold_norms(model, make_tokens())


def test_lists_of_which_not_all_were_reached_keep_the_norm_before_them():
    model = make_model(
        lambda m, x: m.heads[int(x.shape[1] > 6)](m.norm(x)),
        norm=BatchNorm(C),
        heads=nn.ModuleList((linear(), linear(), linear())),
    )
    folded, report = fold_norms(model, make_tokens(2, 3, C))
    assert "heads.1, which the example does not reach" in report.rows[0].stays
    assert "left as they were: heads.1, heads.2" in str(report)
    check_other_inputs(model, folded, *make_tokens(2, 9, C))
