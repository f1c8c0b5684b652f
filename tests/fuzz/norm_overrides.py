"""Strategies of norms with random options, as overrides of the command line."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from un.norms import Switches

FLAG = st.sampled_from(["true", "false"])
FRACTION = st.sampled_from(["0", "0.1", "0.5", "0.98", "1"])
WINDOW = st.integers(1, 5)
STEPS = st.integers(0, 4)
EPS = st.sampled_from(["1e-6", "1e-5", "1e-3"])
# Switches of words and flags are drawn by their types, new ones too.
SWITCHES: dict[str, st.SearchStrategy[Any]] = {
    name: FLAG if hint is bool else st.sampled_from(get_args(hint))
    for name, hint in get_type_hints(Switches).items()
    if hint is bool or get_origin(hint) is Literal
} | {
    "compensation_limits": st.sampled_from(["null", "[0.2,5]", "[1,1]", "[0,100]"]),
    "compensation_start": STEPS,
    "threshold_factor": st.sampled_from(["null", "0", "0.5", "4"]),
}
UNIFIED: dict[str, st.SearchStrategy[Any]] = SWITCHES | {
    "window": WINDOW | st.tuples(WINDOW, WINDOW).map(lambda pair: f"[{pair[0]},{pair[1]}]"),
    "warmup_steps": STEPS,
    "filtration": FLAG,
    "momentum": FRACTION | st.tuples(FRACTION, FRACTION).map(lambda pair: f"[{pair[0]},{pair[1]}]"),
    "eps": EPS,
}
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "layernorm": {},
    "un": UNIFIED,
    "un_paper": UNIFIED,
    "pn_v": UNIFIED,
    "batchnorm": {"momentum": FRACTION, "eps": EPS, "sync": FLAG},
    "powernorm": {
        "num_groups": st.sampled_from([1, 2, 4]),
        "warmup_steps": STEPS,
        "alpha_forward": FRACTION,
        "alpha_backward": FRACTION,
        "group_scaling": FLAG,
        "eps": EPS,
        "sync": FLAG,
    },
    "mabn": {"window": UNIFIED["window"], "warmup_steps": STEPS, "momentum": FRACTION, "eps": EPS, "sync": FLAG},
    "rmsnorm": {"eps": EPS},
    "rep_batchnorm": {"initial_eta": FRACTION, "initial_weight": FRACTION, "momentum": FRACTION, "sync": FLAG},
    "prepbn": {
        "steps": st.integers(1, 3),
        "layer_norm_steps": st.integers(0, 2),
        "start": FRACTION,
        "base": st.sampled_from(["layernorm", "rmsnorm"]),
        "calls_per_step": st.integers(1, 2),
        "eps": EPS,
    },
    "dyt": {"initial_alpha": st.sampled_from(["0.1", "0.5", "1"]), "bias": FLAG},
}


@st.composite
def norm_overrides(draw: st.DrawFn) -> list[str]:
    """The norm and up to six of its options."""
    name = draw(st.sampled_from(sorted(OPTIONS)))
    options = OPTIONS[name]
    if not options:
        return [f"norm={name}"]
    chosen = draw(st.lists(st.sampled_from(sorted(options)), max_size=6, unique=True))
    overrides = [f"norm={name}", *(f"norm.{option}={draw(options[option])}" for option in chosen)]
    return [*overrides, "+norm.affine=false"] if draw(st.integers(0, 9)) == 0 else overrides
