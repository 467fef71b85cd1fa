"""What trainers with a forget and a retain set have in common: how rows are prepared, drawn and counted."""

import copy
import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import TrainOutput
from transformers.utils import ModelOutput, logging
from trl import SFTConfig, SFTTrainer

from .checkpoints import check_training, fingerprint_training, resolve_checkpoint, set_aside, write_training
from .preparation import ROW, check_dataset, check_disjoint, check_tokens, join_sets, split_long_rows
from .sampler import AlternatingSampler, EpochCallback
from .target import check_processes


logger = logging.get_logger(__name__)

# Batches whose averages say how a training has ended.
_RECENT_BATCHES = 10


def check_given(args: SFTConfig, sets: Mapping[str, Dataset | None]) -> None:
    """
    Refuse what cannot be trained on, before anything is loaded.

    Args:
        args ([`~trl.SFTConfig`]):
            The trainer's configuration.
        sets (`Mapping[str, Dataset | None]`):
            The sets that it needs, as given, by their names.

    Raises:
        TypeError: If a set is missing, streamed, or not a dataset.
        ValueError: If a set is empty, packed or in no known format, or there are several GPUs in this process.
    """
    check_processes(args)
    for name, rows in sets.items():
        check_dataset(rows, name, args.dataset_text_field)


def holds_model(output_dir: str) -> bool:
    """
    Whether a training has saved its model, which another one would replace.

    Args:
        output_dir (`str`):
            The folder.

    Returns:
        `bool`: Whether a configuration is there, a model's or an adapter's.
    """
    return any(Path(output_dir, name).exists() for name in ("config.json", "adapter_config.json"))


def check_finite(terms: Mapping[str, float], step: int, learning_rate: float) -> None:
    """
    Stop at the first loss that is not a number.

    Args:
        terms (`Mapping[str, float]`):
            Terms of the loss by name.
        step (`int`):
            Step at which they were computed.
        learning_rate (`float`):
            Learning rate, for the message.

    Raises:
        FloatingPointError: If a term is NaN or infinite.
    """
    for term, value in terms.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The {term} loss is {value} at step {step}. Lower learning_rate (now {learning_rate}), or train in "
                "bf16 or fp32 instead of fp16."
            )


def count_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """
    Number of forget and of retain tokens of a batch that count in the loss.

    Args:
        batch (`dict[str, torch.Tensor]`):
            A batch of [`DataCollatorForULD`].

    Returns:
        `torch.Tensor` of shape `(2,)`: Forget tokens, retain tokens.
    """
    counted, retain = batch["labels"][:, 1:] != -100, batch["retain_mask"][:, 1:]
    return torch.stack([(counted & ~retain).sum(), (counted & retain).sum()])


class ForgetRetainTrainer(SFTTrainer):
    """
    Base of the trainers with a forget and a retain set, which become one: every batch has rows of both in one ratio.

    A subclass passes its first set as `train_dataset`, sets `_retain_dataset`, `_vocab_size`, `_context_length` and
    `_target_fingerprint` before that, and has `retain_per_forget` among its arguments. Without a retain set, rows are
    drawn as in any trainer.
    """

    # compute_loss divides by the tokens of the whole optimizer step itself.
    loss_is_scaled_for_ga = True

    _retain_dataset: Dataset | None
    _vocab_size: int
    _context_length: int | None
    _target_fingerprint: dict[str, str | None]  # of what the training begins with
    _first_set = "forget"  # name of the set that is passed as `train_dataset`, for messages
    _fingerprints: dict[str, str]  # of a training that has begun, as the next line
    _recent: deque[tuple[float, ...]] | None = None  # of a training that has begun

    def _prepare_rows(
        self, rows: Dataset, name: str, processing_class: PreTrainedTokenizerBase, args: SFTConfig
    ) -> Dataset:
        """Tokens of a set, by trl: whole, checked, and split where they are longer than the context."""
        # trl cuts rows at max_length and drops those without an answer; neither may happen here.
        whole = copy.copy(args)
        whole.max_length = None
        whole.shuffle_dataset = False
        # trl decides this once, from the first row; here the two sets may differ in format.
        has_prompt = bool({"completion", "completion_mask"} & set(rows.column_names))
        self.completion_only_loss = has_prompt if args.completion_only_loss is None else args.completion_only_loss
        tokenized = super()._prepare_dataset(rows, processing_class, whole, False, None, name)
        columns = [column for column in ("input_ids", "labels", ROW) if column in tokenized.column_names]
        tokenized = tokenized.select_columns(columns)
        check_tokens(tokenized, self._vocab_size, name)
        splittable = not self.completion_only_loss and "input_ids" not in rows.column_names
        limits = {"max_length": args.max_length, "the model's context": self._context_length}
        return split_long_rows(tokenized, limits, name, splittable)

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: SFTConfig,
        packing: bool,
        formatting_func: Callable[[dict], str] | None,
        dataset_name: str,
    ) -> Dataset:
        prepared = {"forget": self._prepare_rows(dataset, self._first_set, processing_class, args)}
        if self._retain_dataset is not None:
            prepared["retain"] = self._prepare_rows(self._retain_dataset, "retain", processing_class, args)
            check_disjoint(prepared["forget"], prepared["retain"], processing_class.eos_token_id)
        if dataset_name == "train":  # and not a set to evaluate
            self._num_forget_rows = len(prepared["forget"])
        return join_sets(prepared)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "is_retain"]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        if self._retain_dataset is None:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        grouped = args.train_sampling_strategy == "group_by_length" and not self.padding_free
        sampler = AlternatingSampler(
            num_forget=self._num_forget_rows,
            num_retain=len(self.train_dataset) - self._num_forget_rows,
            retain_per_forget=args.retain_per_forget,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            lengths=[len(tokens) for tokens in self.train_dataset["input_ids"]] if grouped else None,
            rows_per_step=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        )
        self.remove_callback(EpochCallback)
        self.add_callback(EpochCallback(sampler))
        return sampler

    def _before_training(self, checkpoint: str | None) -> None:
        """What comes before the first step, from a checkpoint or anew."""

    def _after_training(self) -> None:
        """Warnings of a training that has not reached what it is for."""

    def _per_token(self, *sums: float) -> dict[str, float]:
        """Averages by name, of sums over one or several batches and the tokens they are over."""
        raise NotImplementedError

    def _log_per_token(self, sums: tuple[float, ...], mode: str) -> None:
        """Note a batch's sums for the log, and for the end of the training."""
        for name, value in self._per_token(*sums).items():
            self._metrics[mode][name].append(value)
        if mode == "train" and self._recent is not None:
            self._recent.append(sums)

    def _recent_metrics(self) -> dict[str, float]:
        """Per-token averages of the last batches: logs may cover the whole training, or be off."""
        if not self._recent:
            return {}
        return self._per_token(*(sum(column) for column in zip(*self._recent, strict=True)))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """
        Train, and say so if what is trained has not become what it is for.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint's folder; or `True` for the last one that was written to its end, whatever killed the
                training.
            **kwargs:
                As in [`~transformers.Trainer.train`].

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]: As in [`~transformers.Trainer.train`].

        Raises:
            ValueError: If there is no whole checkpoint to resume from, or it is of other rows or parameters; or, in
                baking, one is there and training begins anew.
        """
        checkpoint = resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is None and holds_model(self.args.output_dir):
            logger.warning(
                f"{self.args.output_dir} holds a saved model, which save_model() will replace: another output_dir "
                "keeps it."
            )
        self._before_training(checkpoint)
        self._fingerprints = self._fingerprint_training()
        if checkpoint is not None:
            check_training(checkpoint, self._fingerprints)
        self._recent = deque(maxlen=_RECENT_BATCHES)
        result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        if checkpoint is not None and not self._recent:
            logger.warning(
                f"Nothing was trained: {checkpoint} is the end of this training already. Raise num_train_epochs or "
                "max_steps to go on."
            )
        self._after_training()
        return result

    def predict(self, *args: Any, **kwargs: Any) -> None:
        """
        Not offered: what is trained predicts something else than the unlearned model, or is not it yet.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} predicts nothing. Save the model and load it to generate, or measure it with "
            "uld_hf.evaluation or `uld eval`."
        )

    def _fingerprint_training(self) -> dict[str, str]:
        number, rows = self._num_forget_rows, self.train_dataset
        sets = {self._first_set: rows.select(range(number))}
        if number < len(rows):
            sets["retain"] = rows.select(range(number, len(rows)))
        return fingerprint_training(self.model, sets, self._target_fingerprint)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.args.should_save:
            set_aside(self.args.output_dir, self.state.global_step)
        super()._save_checkpoint(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            write_training(output_dir, self._fingerprints)
        # The trainer's state comes next and says that the checkpoint is whole: of every process.
        self.accelerator.wait_for_everyone()

    def _count(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the terms of the loss are averaged over."""
        return count_tokens(batch)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor | None:
        """Counts in all micro-batches of an optimizer step, over all processes."""
        if not batch_samples:
            return None
        counts = sum(self._count(batch).to(device) for batch in batch_samples)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.gather(counts[None]).sum(dim=0)
        return counts

    def _run(self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items: torch.Tensor) -> ModelOutput:
        """A forward pass that returns the `loss`: sums over this micro-batch, divided by the step's counts."""
        return model(**inputs, num_items=num_items)

    def _record(self, outputs: Any, counts: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        """Averages for the log, and a stop at the first loss that is not a number."""
        raise NotImplementedError

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """
        The loss of a micro-batch: its share of the optimizer step's loss.

        Args:
            model (`nn.Module`):
                What is trained, possibly wrapped for distributed training.
            inputs (`dict[str, torch.Tensor]`):
                A batch of the trainer's collator.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Whether to return the loss's parts too.
            num_items_in_batch (`torch.Tensor`, *optional*):
                What the terms are averaged over, of the whole optimizer step: forget and retain tokens, or as
                `UnlearnTrainer` counts. Defaults to the counts of this batch.

        Returns:
            `torch.Tensor`: The loss; with `return_outputs`, a tuple of it and its parts, e.g. [`ULDLossOutput`].

        Raises:
            FloatingPointError: If a term is NaN or infinite.
        """
        local = self._count(inputs)
        outputs = self._run(model, inputs, local if num_items_in_batch is None else num_items_in_batch)
        self._record(outputs, local, inputs)
        loss = outputs.loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients; the counts are over all processes
        return (loss, outputs) if return_outputs else loss
