"""Strategies of valid command lines: task, tiny model, norm, surgery, optimizer, scheduler, precision and the rest."""

from hypothesis import strategies as st

from tests.fuzz.norm_overrides import norm_overrides

HEADS_AND_WIDTH = st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([2, 4, 8])).map(
    lambda p: (p[0], 2 * p[0] * p[1])
)
# What keeps an example short; two updates, whatever the accumulation.
SHORT = ["trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.limit_val_batches=1", "callbacks.progress_bar=null"]


@st.composite
def vit(draw: st.DrawFn) -> list[str]:
    """ViT on the digits."""
    heads, width = draw(HEADS_AND_WIDTH)
    overrides = ["model=vit_digits", f"model.num_heads={heads}", f"model.embed_dim={width}"]
    overrides += [f"model.depth={draw(st.integers(1, 2))}", f"model.patch_size={draw(st.sampled_from([2, 4]))}"]
    if draw(st.booleans()):
        overrides += ["model.global_pool=token", "model.class_token=true"]
    if draw(st.booleans()):
        overrides.append("+model.init_values=0.1")
    return overrides


@st.composite
def swin(draw: st.DrawFn) -> list[str]:
    """Swin of two stages on the digits."""
    heads = draw(st.sampled_from([1, 2]))
    sizes = [f"+model.embed_dim={8 * heads}", f"+model.num_heads=[{heads},{2 * heads}]", "+model.patch_size=2"]
    depths = f"+model.depths=[{draw(st.integers(1, 2))},{draw(st.integers(1, 2))}]"
    return ["model=swin_tiny_patch4_window7_224", *sizes, depths, "+model.window_size=2"]


@st.composite
def t2t_vit(draw: st.DrawFn) -> list[str]:
    """T2T-ViT on enlarged digits: its tokens stand for 16 x 16 pixels."""
    heads, width = draw(HEADS_AND_WIDTH)
    sizes = [f"+model.num_heads={heads}", f"+model.embed_dim={width}", f"+model.depth={draw(st.integers(1, 2))}"]
    tokens = f"+model.tokens_type={draw(st.sampled_from(['performer', 'transformer']))}"
    return ["model=t2t_vit_7", *sizes, tokens, "+model.token_dim=8", "data.image_size=32"]


@st.composite
def vision(draw: st.DrawFn) -> list[str]:
    """Image classification."""
    overrides = draw(st.one_of(vit(), swin(), t2t_vit()))
    overrides += [f"data.batch_size={draw(st.sampled_from([4, 8]))}", "data.limit=40"]
    overrides.append(f"optimizer={draw(st.sampled_from(['adamw', 'adam', 'sgd']))}")
    schedule = draw(st.sampled_from(["cosine", "cosine_epochwise", "constant"]))
    overrides.append(f"scheduler={schedule}")
    if schedule == "cosine_epochwise":
        overrides.append("~scheduler.warmup_steps")  # which the experiment sets for the schedule by steps
    if draw(st.booleans()):
        overrides += [f"task.ema_decay={draw(st.sampled_from(['0.5', '0.99']))}"]
        overrides += [f"task.evaluate_ema={draw(st.sampled_from(['true', 'false']))}"]
    if draw(st.booleans()):
        overrides.append("task.mixup={mixup_alpha: 0.8, cutmix_alpha: 1.0}")
    surgery = draw(st.sampled_from(["all", "blocks_only", "keep_final", "first", "not_first"]))
    chosen = {"first": ["surgery.include=['*norm1']"], "not_first": ["surgery.exclude=['*norm1']"]}
    return [*overrides, *chosen.get(surgery, [f"surgery={surgery}"])]


@st.composite
def translation(draw: st.DrawFn) -> list[str]:
    """Translation of phrases."""
    heads, width = draw(HEADS_AND_WIDTH)
    overrides = ["experiment=phrasebook_tiny", "data.path=null", "data.limit=60", "task.beam=2"]
    overrides += [
        f"data.max_tokens={draw(st.sampled_from([100, 400]))}",
        f"data.bpe_merges={draw(st.sampled_from([50, 'null']))}",
    ]
    overrides += [f"model.encoder_embed_dim={width}", f"model.encoder_attention_heads={heads}"]
    overrides += [f"model.encoder_ffn_embed_dim={2 * width}", f"model.encoder_layers={draw(st.integers(1, 2))}"]
    pre_norm = draw(st.booleans())
    overrides.append(f"model.encoder_normalize_before={str(pre_norm).lower()}")
    if draw(st.booleans()):
        overrides.append("+model.layernorm_embedding=true")
    if draw(st.booleans()):
        overrides += ["model.share_all_embeddings=false", "+data.joined_dictionary=false"]
    overrides.append(f"surgery.pad_mask={draw(st.sampled_from(['true', 'false']))}")
    kinds = ["all", "include", "exclude"] + ["keep_final"] * pre_norm
    surgery = draw(st.sampled_from(kinds))
    chosen = {
        "all": "surgery=all",
        "keep_final": "surgery=keep_final",
        "include": "surgery.include=['encoder.*']",
        "exclude": "surgery.exclude=['*final_layer_norm']",
    }
    return [*overrides, chosen[surgery]]


@st.composite
def compositions(draw: st.DrawFn) -> list[str]:
    """A whole command line."""
    overrides = draw(st.one_of(vision(), translation()))
    overrides += draw(norm_overrides())
    overrides += [f"surgery.carry_affine={draw(st.sampled_from(['true', 'false']))}"]
    overrides += [f"surgery.reset_steps={draw(st.sampled_from(['true', 'false']))}"]
    overrides += [f"trainer.precision={draw(st.sampled_from(['32-true', 'bf16-mixed', 'bf16-true', '64-true']))}"]
    overrides += [f"trainer.accumulate_grad_batches={draw(st.integers(1, 2))}"]
    clip = draw(st.sampled_from(["null", "0.5", "1.0"]))
    overrides += [f"trainer.gradient_clip_val={clip}"]
    overrides += [f"seed={draw(st.integers(0, 3))}"]
    return [*overrides, *SHORT]
