"""Translation as a LightningModule. Shapes: T length of a translation."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from un.datasets import count_updates
from un.norms.core.penalties import sum_penalties
from un.tasks import GraphPart
from un.translation.batches import Batch
from un.translation.encoder_graph import EncoderGraph, replace_encoder
from un.translation.generation import BeamSearch
from un.translation.losses import compute_logits, cross_entropy, measure_cross_entropy, sum_cross_entropy
from un.translation.scores import SentencePair, score_translations, write_translations
from un.translation.transformer import Transformer

FOLD_EXAMPLES = 4  # sentence pairs that a fold is checked on
LEFT_OUT = "the decoder, which reads the states in the form of this encoder, and beam search: they stay in PyTorch"
FOLDER = "translations"  # in the run folder, with a file per split
LOSS_DETAILS = "cross-entropy in nats per target token (end of sentence included), without label smoothing"


class Translation(lightning.LightningModule):
    """Trains a Transformer with cross-entropy, and scores its translations.

    Logs `train/loss` (smoothed, nats per target token) and `train/lr` by step; by epoch `val/` and `test/` `loss` and
    `ppl`, and where translations are made `bleu` (tokenised), `sacrebleu` (detokenised) and `chrf`. Translations go to
    `translations/<split>.tsv` in the run folder. The data module gives `texts(split)` and `preprocessor`.

    Gradients are those of the mean over all target tokens of an update, however these fall into micro-batches and
    processes, as in fairseq.

    Args:
        model: Has the dictionaries of the data.
        optimizer: Makes the optimizer from the model.
        scheduler: Makes a torch scheduler from optimizer, number of updates and updates per epoch, to be stepped after
            every update; null keeps the rate.
        label_smoothing: As fairseq defines it, see `sum_cross_entropy`.
        beam: Number of hypotheses; see `BeamSearch` for this and the next four.
        length_penalty: Power of the length by which scores are divided.
        max_len_a: The longest translation of n tokens has max_len_a n + max_len_b tokens.
        max_len_b: See `max_len_a`.
        min_len: Minimum number of tokens of a translation.
        val_bleu: Whether to translate in validation, too, and monitor `val/bleu` instead of `val/loss`; a mapping does
            so with other values of the five.

    Raises:
        ValueError: A value is out of range.
        TypeError: A name in `val_bleu` is unknown.
    """

    distillation: Any = (
        None  # what the original of a retrofitted model adds to the loss, see `un.retrofit.distillation`
    )

    def __init__(
        self,
        model: Transformer,
        optimizer: Callable[[Transformer], Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        label_smoothing: float = 0.1,
        beam: int = 5,
        length_penalty: float = 1.0,
        max_len_a: float = 0.0,
        max_len_b: int = 200,
        min_len: int = 1,
        val_bleu: bool | Mapping[str, Any] = False,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"task.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.model, self.make_optimizer, self.make_scheduler = model, optimizer, scheduler
        self.label_smoothing = label_smoothing
        search = BeamSearch(beam, length_penalty, max_len_a, max_len_b, min_len)
        self.searches = {"test": search}
        if val_bleu is not False:
            self.searches["val"] = replace(search, **({} if val_bleu is True else val_bleu))
        self.monitor, self.monitor_mode = ("val/bleu", "max") if "val" in self.searches else ("val/loss", "min")
        self.losses = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})  # weighted by target tokens
        self._hypotheses: dict[int, Tensor] = {}  # sentence -> (T,) on the CPU
        self._num_tokens = 0  # of the micro-batches since the last update
        self._details: dict[str, str] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss summed over target tokens; gradients are normalised before the update."""
        logits, targets = compute_logits(self.model, batch)
        loss = cross_entropy(logits, targets, self.label_smoothing)
        self._num_tokens += batch["ntokens"]
        rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        self.log("train/loss", loss.detach() / batch["ntokens"], prog_bar=True, batch_size=batch["ntokens"])
        self.log("train/lr", max(rates), batch_size=batch["ntokens"])
        penalty = sum_penalties(self.model)
        if penalty is not None:
            self.log("train/penalty", penalty.detach(), batch_size=batch["ntokens"])
            loss = loss + penalty * batch["ntokens"]
        if self.distillation is not None:
            taught = self.distillation(logits, lambda model: compute_logits(model, batch)[0])
            if taught is not None:
                self.log("train/distillation", taught.detach(), batch_size=batch["ntokens"])
                loss = loss + taught * batch["ntokens"]
        return loss * self.trainer.accumulate_grad_batches  # by which Lightning divides

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divides the gradients by the target tokens of the update."""
        num_tokens: Any = self._num_tokens
        if self.trainer.world_size > 1:
            num_tokens = torch.tensor(num_tokens, dtype=torch.float32, device=self.device)
            distributed.all_reduce(num_tokens)
        self._num_tokens = 0
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, self.trainer.world_size / num_tokens)  # DDP gives the mean over processes

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        num_tokens = batch["ntokens"]
        loss = sum_cross_entropy(self.model, batch)
        metric: Any = self.losses[split]
        metric.update(loss / num_tokens, num_tokens)
        if split in self.searches:
            # Without numbers to compare fairseq's search fails: what diverged has no translations, and no loss either.
            nothing = batch["target"].new_tensor([self.model.decoder.dictionary.eos()])
            search = self.searches[split]
            found = search.translate(self.model, batch) if loss.isfinite() else [nothing] * len(batch["id"])
            self._hypotheses |= {i: tokens.cpu() for i, tokens in zip(batch["id"].tolist(), found, strict=True)}

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        metric: Any = self.losses[split]
        loss = metric.compute()
        metric.reset()
        self.log_dict({f"{split}/loss": loss, f"{split}/ppl": loss.exp()}, prog_bar=True, sync_dist=True)
        self._details |= {f"{split}/loss": LOSS_DETAILS, f"{split}/ppl": f"exp of the {LOSS_DETAILS}"}
        if split in self.searches:
            self._score_translations(split)

    def _score_translations(self, split: str) -> None:
        """Scores what all processes translated, in the order of the sentences, and writes it down once."""
        found = sorted(self._gather_hypotheses().items())
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        preprocessor, texts = data.preprocessor, data.texts(split)
        words = [preprocessor.decode(tokens) for _, tokens in found]
        pairs = [
            SentencePair(i, texts.source[i], texts.reference[i], preprocessor.detokenize(hypothesis))
            for (i, _), hypothesis in zip(found, words, strict=True)
        ]
        references = [texts.tokenized_reference[pair.id] for pair in pairs]
        for name, score in score_translations(pairs, words, references, preprocessor.lowercase).items():
            # A float would become float32 on the way.
            value = torch.tensor(score.value, dtype=torch.float64, device=self.device)
            self.log(f"{split}/{name}", value, prog_bar=True, sync_dist=True)
            self._details[f"{split}/{name}"] = f"{score.details}, {self.searches[split]}"
        if self.trainer.is_global_zero:
            write_translations(pairs, Path(self.trainer.default_root_dir) / FOLDER / f"{split}.tsv")

    def _gather_hypotheses(self) -> dict[int, Tensor]:
        """Returns and forgets the hypotheses of all processes."""
        parts = [self._hypotheses]
        if self.trainer.world_size > 1:
            parts = [{} for _ in range(self.trainer.world_size)]
            distributed.all_gather_object(parts, self._hypotheses)
        self._hypotheses = {}
        return {i: tokens for part in parts for i, tokens in part.items()}

    def metric_details(self) -> dict[str, str]:
        """Returns what the metrics logged so far are: the kind, sacrebleu's signature and the search."""
        return dict(self._details)

    @property
    def inference_model(self) -> Transformer:
        return self.model

    def use_inference_model(self, model: nn.Module) -> None:
        assert isinstance(model, Transformer)
        self.model = model

    def make_fold_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the first sources and targets of a batch."""
        return {name: value[:FOLD_EXAMPLES] for name, value in batch["net_input"].items()}

    def call_model(self, model: nn.Module, batch: Batch) -> Any:
        return model(**batch["net_input"])

    def measure_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Transformer)
        return measure_cross_entropy(model, batch)

    def predict(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """Returns the translations of a batch."""
        assert isinstance(model, Transformer)
        return self.searches["test"].translate(model, batch)

    def cut_graph(self, model: nn.Module, batch: Batch) -> GraphPart:
        """Returns the encoder; a search with a cache that grows and hypotheses that end has no fixed graph."""
        assert isinstance(model, Transformer)
        return GraphPart(
            EncoderGraph(model).eval(),
            {"source_tokens": batch["net_input"]["src_tokens"]},
            {"source_tokens": {0: "batch", 1: "length"}},
            ("states", "padding_mask"),
            LEFT_OUT,
        )

    def use_graph(self, run: Callable[..., tuple[Tensor, ...]]) -> None:
        """Tests with an encoder that a graph computes."""
        replace_encoder(self.model.encoder, run)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.model)
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer, *count_updates(self.trainer))
        if not isinstance(scheduler, LRScheduler):
            raise ValueError(f"scheduler makes a {type(scheduler).__name__}, translation takes scheduler=inverse_sqrt")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
