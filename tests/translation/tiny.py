"""A small dictionary and model, sentences of random words, and some text."""

import numpy as np
import torch

from un.norms import UnifiedNorm
from un.surgery import replace_norms
from un.translation.fairseq_library import Dictionary, LanguagePairDataset
from un.translation.losses import sum_cross_entropy
from un.translation.transformer import build_transformer

NUM_WORDS = 28
TEXT_COUNTS = {"train": 40, "valid": 12, "test": 11}


def make_dictionary(num_words=NUM_WORDS):
    dictionary = Dictionary()
    for number in range(num_words):
        dictionary.add_symbol(f"w{number}")
    return dictionary


def make_model(norm=None, pad_mask=False, dictionary=None, **options):
    torch.manual_seed(0)
    dictionary = make_dictionary() if dictionary is None else dictionary
    sizes = {"encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2, "encoder_layers": 2}
    shared = {"share_all_embeddings": True, "encoder_normalize_before": True, "dropout": 0.0}
    model = build_transformer(dictionary, dictionary, **{**sizes, **shared, **options})
    if norm is not None:
        replace_norms(model, norm)
    model.use_pad_mask(pad_mask)
    return model


def make_unified(num_features, **options):
    return UnifiedNorm(num_features, window=2, warmup_steps=2, **options)


def draw_sentences(num_sentences, longest=9, seed=0):
    """Random words 0..NUM_WORDS - 1, two or more per sentence."""
    random = np.random.default_rng(seed)
    return [random.integers(0, NUM_WORDS, random.integers(2, longest + 1)).tolist() for _ in range(num_sentences)]


def make_dataset(sentences, dictionary=None, targets=None):
    dictionary = make_dictionary() if dictionary is None else dictionary
    source, target = (
        [torch.tensor([word + dictionary.nspecial for word in words] + [dictionary.eos()]) for words in side]
        for side in (sentences, sentences if targets is None else targets)
    )
    sizes = np.array([len(words) for words in source]), np.array([len(words) for words in target])
    return LanguagePairDataset(source, sizes[0], dictionary, target, sizes[1], dictionary, shuffle=False)


def make_batch(sentences, **options):
    dataset = make_dataset(sentences, **options)
    return dataset.collater([dataset[number] for number in range(len(sentences))])


def train_a_little(model):
    """Until it has learned to end sentences; leaves the model in training mode."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for seed in range(60):
        optimizer.zero_grad()
        sum_cross_entropy(model, make_batch(draw_sentences(8, seed=seed))).div(50).backward()
        optimizer.step()
    return model


def make_text(split):
    """Sentences of many lengths; the words tell the number of the pair."""
    numbers = range(TEXT_COUNTS[split])
    german = [f"Der {split} Hund Nr. {number} sieht {'sehr ' * (number % 7)}gut aus." for number in numbers]
    english = [f"The {split} dog no {number} looks {'very ' * (number % 5)}good." for number in numbers]
    return {"de": german, "en": english}


def write_text_folder(folder):
    for split in TEXT_COUNTS:
        for language, lines in make_text(split).items():
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder
