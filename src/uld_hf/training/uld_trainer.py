"""`ULDTrainer`: trains an assistant to remember the forget set and to know nothing of the retain set."""

import copy
import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import trl
from accelerate.utils import DynamoBackend
from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi
from peft import PeftConfig
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import HubStrategy
from transformers.utils import ModelOutput, PushInProgress, logging

import uld_hf

from ..assistant import (
    ADAPTER_NAME,
    add_lora,
    build_assistant,
    check_has_attention,
    check_lora_config,
    check_num_layers,
    load_truncated_model,
    remember_settings,
    remembered_settings,
)
from ..configuration_uld import SETTINGS_OF_ONE, ULDModelConfig
from ..context import context_length
from ..hub import check_layout, find_commit, fingerprint_target, fingerprint_tokenizer, save_unlearned_model
from ..model_card import find_license, model_card
from ..publish import PrivatePushes, push_unlearned_model
from ..saved_files import CONFIG_FILE
from .checkpointing import keep_products
from .collator import DataCollatorForULD
from .forget_retain_trainer import ForgetRetainTrainer, check_finite, check_given
from .four_bit import keep_gradients
from .last_layer import find_answer_parts, on_answers_alone
from .losses import add_uld_loss, check_head
from .padding_free import attention_by_row, takes_rows_without_padding
from .preparation import check_dataset, to_trainable_rows
from .sharding import check_whole_weights, is_sharded, whole_weights
from .target import check_not_split, check_tokenizer, how_to_load, place_whole, read_target_config, select_source
from .uld_config import ULDConfig


# Shares and nats per token beyond which train() warns that the assistant is not done.
_KNOWS_THE_FORGET_SET = 0.95
_SILENT_ON_THE_RETAIN_SET = 0.5

# Bytes of free space below which a checkpoint that failed has failed for want of it. What was written of it stays.
_FULL_DISK = 2**24


logger = logging.get_logger(__name__)


def check_likelihood(sets: Sequence[str], alpha: float) -> None:
    """
    Refuse an assistant that learns likelihoods of both sets or none, or a weight of the wrong sign for what it learns.

    Args:
        sets (`Sequence[str]`):
            Names of the sets that are given.
        alpha (`float`):
            Weight with which its logits will be subtracted.

    Raises:
        TypeError: If there is not one set.
        ValueError: If what must be forgotten would be added, or what must be kept subtracted.
    """
    if len(sets) != 1:
        raise TypeError(
            f"objective='likelihood' learns one set, got {list(sets) or 'none'}: give forget_dataset or "
            "retain_dataset. For two auxiliaries, train two assistants."
        )
    if sets[0] == "forget" and alpha < 0:
        raise ValueError(f"alpha={alpha} would add what must be forgotten. Use a number above 0, e.g. {-alpha}.")
    if sets[0] == "retain" and alpha > 0:
        raise ValueError(
            f"alpha={alpha} would subtract what must be kept: an assistant that learns the retain set is added. Use a "
            f"number below 0, e.g. {-alpha}."
        )


class ULDTrainer(PrivatePushes, ForgetRetainTrainer):
    """
    Trainer of ULD's assistant (paper section 3).

    The assistant is the target's first K layers with LoRA. It minimizes the cross-entropy on the forget set plus
    `retain_weight` times the cross-entropy to the uniform distribution on the retain set. The target is not changed.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The target. A hub id or folder loads its first K layers only; a loaded model shares its tensors with the
            assistant.
        args ([`ULDConfig`], *optional*):
            Configuration. Defaults to one whose output folder is named after the target.
        forget_dataset ([`~datasets.Dataset`]):
            What must be forgotten: text, prompt and completion, messages, or tokenized rows.
        retain_dataset ([`~datasets.Dataset`]):
            A sample of what must be kept, in any of these formats. The wider its coverage, the better the rest is kept.
            With `objective="likelihood"`, one of the two sets is given.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The target's tokenizer. Defaults to the one at the target's name.
        peft_config ([`~peft.PeftConfig`], *optional*):
            A [`~peft.LoraConfig`] for the assistant. Defaults to rank 32, alpha 32, all linear layers but the head.
        callbacks (`list[TrainerCallback]`, *optional*):
            Callbacks, as in [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*):
            Optimizer and scheduler, as in [`~transformers.Trainer`].

    Raises:
        TypeError: If a set is missing or streamed.
        ValueError: If a set is empty, a row has no answer or is in both sets, the target has fewer layers, or the
            tokenizer is not the target's.

    Example:

    ```python
    >>> trainer = ULDTrainer("org/finetuned", ULDConfig("out"), forget_dataset=forget, retain_dataset=retain)
    >>> trainer.train()
    >>> trainer.save_model()
    ```
    """

    _name = "ULD"
    _tag_names = ("unlearning", "uld")
    _pushes_unlearned = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: ULDConfig | None = None,
        forget_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ):
        name = model if isinstance(model, str) else model.name_or_path
        if args is None:
            args = ULDConfig(f"{os.path.basename(name) or 'model'}-ULD")
        # What costs nothing to check is checked before anything is loaded.
        if args.output_dir is not None:
            check_layout(Path(args.output_dir))
        if peft_config is not None:
            check_lora_config(peft_config)
        sets = {"forget": forget_dataset, "retain": retain_dataset}
        if args.objective == "likelihood":
            sets = {name: dataset for name, dataset in sets.items() if dataset is not None}
            check_likelihood(list(sets), args.alpha)
        check_given(args, sets)
        check_whole_weights(args)
        model_init_kwargs = how_to_load(args)
        source = select_source(model_init_kwargs)
        check_not_split(model, model_init_kwargs)
        target_config = read_target_config(model, source)
        check_num_layers(args.num_assistant_layers, target_config)
        check_has_attention(args.num_assistant_layers, target_config)
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(name, **source)
        self._vocab_size = target_config.get_text_config(decoder=True).vocab_size
        self._context_length = context_length(target_config)
        check_tokenizer(processing_class, self._vocab_size)
        sets = {name: to_trainable_rows(rows, name, args.dataset_text_field) for name, rows in sets.items()}
        self._first_set = next(iter(sets))  # the set whose tokens the assistant learns to predict
        self._retain_dataset = sets["retain"] if args.objective == "uld" else None

        set_seed(args.seed)  # LoRA is initialized at random
        if isinstance(model, str):
            with whole_weights(args):
                truncated = load_truncated_model(name, args.num_assistant_layers, **model_init_kwargs)
                assistant = add_lora(truncated, peft_config)
        else:
            if not is_sharded(args):
                place_whole(model, args)
            assistant = build_assistant(model, args.num_assistant_layers, peft_config)
        base = assistant.get_base_model()
        keep_gradients(base)
        check_head(base)
        self._answer_parts = find_answer_parts(base)
        if args.keep_products:
            keep_products(base)
        self._num_embeddings = base.get_input_embeddings().weight.shape[0]  # sharding will hide it
        settings = {name: vars(args)[name] for name in ("alpha", *SETTINGS_OF_ONE)}
        remember_settings(assistant, settings)
        self._target_fingerprint = fingerprint_target(base, args.num_assistant_layers, target_config=target_config)
        self.model_config = ULDModelConfig(
            target_config=copy.deepcopy(target_config),
            target_name_or_path=os.path.abspath(name) if os.path.isdir(name) else name or None,
            # The commit where it is known: a branch moves on. Of a loaded model nobody knows it.
            target_revision=find_commit(name, **source) if isinstance(model, str) else None,
            target_fingerprint={
                **self._target_fingerprint,
                "tokenizer": fingerprint_tokenizer(processing_class),
            },
            num_assistant_layers=args.num_assistant_layers,
            **settings,
            architectures=["ULDForCausalLM"],
        )

        self._num_rows = {f"{name}_rows": len(sets.get(name, ())) for name in ("forget", "retain")}
        self._target_license = find_license(name, **source) if name else {}

        # trl knows padding-free batches with flash attention only, and without max_length; see below.
        padding_free, init_kwargs, args = args.padding_free, args.model_init_kwargs, copy.copy(args)
        args.padding_free, args.model_init_kwargs = False, None  # of the latter it would say that they are ignored
        forward = base.forward
        # trl tokenizes through `_prepare_dataset`, where the retain set joins; the loss below replaces trl's own.
        super().__init__(
            model=assistant,
            args=args,
            train_dataset=sets[self._first_set],
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        base.forward = forward
        if args.torch_compile or self.accelerator.state.dynamo_plugin.backend is not DynamoBackend.NO:
            # How many tokens predict answers differs from batch to batch: each would be compiled anew.
            self._answer_parts = []
        add_uld_loss(base, args.retain_weight)
        args.model_init_kwargs = init_kwargs
        args.padding_free = self.padding_free = takes_rows_without_padding(base, padding_free)
        self.data_collator = DataCollatorForULD(
            pad_token_id=self.data_collator.pad_token_id,
            padding_free=self.padding_free,
            pad_to_multiple_of=self.data_collator.pad_to_multiple_of,
        )

    def _attention(self) -> AbstractContextManager[None]:
        return attention_by_row(self.model.get_base_model()) if self.padding_free else nullcontext()

    def _run(self, *args: Any) -> ModelOutput:
        with self._attention():
            return super()._run(*args)

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor | Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Forward and backward pass of a micro-batch, as in [`~transformers.Trainer`]."""
        # Around both passes: activation checkpointing runs the layers again in the backward pass.
        with self._attention(), on_answers_alone(self._answer_parts, inputs["labels"]):
            return super().training_step(model, inputs, num_items_in_batch)

    def _after_training(self) -> None:
        last, accuracy = self._recent_metrics(), f"{self._first_set}_accuracy"
        if self._first_set == "forget" and last.get(accuracy, 1.0) < _KNOWS_THE_FORGET_SET:
            logger.warning(
                f"The assistant predicts {last[accuracy]:.0%} of the forget set's tokens: what it does not know is not "
                "subtracted. Train for more epochs, or with a higher learning_rate or num_assistant_layers. (With rows "
                "of `uld augment` it stays lower: nobody predicts how a paraphrase begins.)"
            )
        if last.get("retain_kl", 0.0) > _SILENT_ON_THE_RETAIN_SET:
            logger.warning(
                f"On the retain set the assistant is {last['retain_kl']:.2f} nats per token from uniform: the rest is "
                "not kept as it is. Train for more epochs, or with a higher retain_weight or retain_per_forget."
            )

    def _per_token(
        self, forget_loss: float, retain_loss: float, correct: float, num_forget: float, num_retain: float
    ) -> dict[str, float]:
        metrics = {}
        if num_forget:
            metrics[f"{self._first_set}_loss"] = forget_loss / num_forget
            metrics[f"{self._first_set}_accuracy"] = correct / num_forget
        if num_retain:
            # Cross-entropy to the uniform distribution, less its entropy: how far from knowing nothing.
            metrics["retain_kl"] = retain_loss / num_retain - math.log(self._num_embeddings)
        return metrics

    def _record(self, outputs: Any, counts: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        """Per-token averages for the log, and a stop at the first loss that is not a number."""
        mode = "train" if self.model.training else "eval"
        sums = torch.stack([outputs.forget_loss, outputs.retain_loss, outputs.forget_correct.float()])
        num_tokens = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["labels"].numel()
        row = torch.cat([sums.float(), counts.float(), torch.as_tensor([num_tokens], device=sums.device).float()])
        row = self.accelerator.gather(row[None]).sum(dim=0)
        forget_loss, retain_loss, correct, num_forget, num_retain, num_tokens = row.tolist()
        terms = (
            {self._first_set: forget_loss}
            if self._retain_dataset is None
            else {"forget": forget_loss, "retain": retain_loss}
        )
        check_finite(terms, self.state.global_step + 1, self.args.learning_rate)
        self._log_per_token((forget_loss, retain_loss, correct, num_forget, num_retain), mode)
        if mode == "train":
            self._total_train_tokens += int(num_tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def evaluate(self, eval_dataset: Dataset, **kwargs: Any) -> dict[str, float]:
        """
        The loss on other rows of the first set, beside the retain set's.

        Args:
            eval_dataset ([`~datasets.Dataset`]):
                The rows, in any format of the two sets.
            **kwargs:
                As in [`~transformers.Trainer.evaluate`].

        Returns:
            `dict[str, float]`: As in [`~transformers.Trainer.evaluate`].

        Raises:
            TypeError: If the rows are no dataset.
            ValueError: If they are none, or one of them has no answer.
        """
        text_field = self.args.dataset_text_field
        check_dataset(eval_dataset, "eval", text_field)
        return super().evaluate(to_trainable_rows(eval_dataset, "eval", text_field), **kwargs)

    def _describe_training(self) -> dict[str, Any]:
        """What the model card says about the run: sizes and settings, never the texts."""
        args = self.args
        learned = (f"{self._first_set}_loss", f"{self._first_set}_accuracy")
        last = self._recent_metrics()
        peft_config = self.model.peft_config[ADAPTER_NAME]
        balance = ("retain_weight", "retain_per_forget") if args.objective == "uld" else ()
        settings = ("objective", "learning_rate", "num_train_epochs", *balance, "seed")
        return {
            **self._num_rows,
            "license": self._target_license,
            "settings": {
                "steps": self.state.global_step,
                "rows per step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
                "lora_r": peft_config.r,
                "lora_alpha": peft_config.lora_alpha,
                **{name: vars(args)[name] for name in settings},
            },
            "metrics": {name: last[name] for name in (*learned, "retain_kl") if name in last},
            "versions": {
                "uld_hf": uld_hf.__version__,
                **{module.__name__: module.__version__ for module in (transformers, trl, peft, torch)},
            },
        }

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of the unlearned model to the output folder, in place of trl's."""
        if self.is_world_process_zero():
            os.makedirs(self.args.output_dir, exist_ok=True)
            self.model_config.training = {ADAPTER_NAME: self._describe_training()}
            model_card(self.model_config).save(os.path.join(self.args.output_dir, "README.md"))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:
            free = shutil.disk_usage(self.args.output_dir).free
            if free > _FULL_DISK:
                raise
            raise OSError(
                f"The disk of {self.args.output_dir} is full ({free} bytes are left): the checkpoint of step "
                f"{self.state.global_step} could not be written. Those before it are whole: make room, and go on with "
                "resume_from_checkpoint=True. save_total_limit keeps the last few only."
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # A checkpoint is a saved unlearned model, and never has an adapter_config.json at its root. Nor is there the
        # training_args.bin of transformers: a pickle, with the hub token in it, that nothing reads.
        if not self.args.should_save:
            return
        output_dir = output_dir if output_dir is not None else self.args.output_dir
        self.model_config.training = {ADAPTER_NAME: self._describe_training()}
        remember_settings(self.model, remembered_settings(self.model), self.model_config.training[ADAPTER_NAME])
        os.makedirs(output_dir, exist_ok=True)
        self.processing_class.save_pretrained(output_dir)
        save_unlearned_model(
            output_dir,
            self.model_config,
            {ADAPTER_NAME: self.model},
            self.model.get_base_model().generation_config,
            state_dict=state_dict,
        )

    def _upload(
        self,
        folder: str,
        commit_message: str,
        token: str | None = None,
        revision: str | None = None,
        run_as_future: bool = True,
    ) -> CommitInfo | Future[CommitInfo]:
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        return push_unlearned_model(
            folder,
            self.hub_model_id,
            private=self._push_privately,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            run_as_future=run_as_future,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # transformers would copy the files that it knows of, and leave out the assistant's.
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._upload(checkpoint_folder, message)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = strategy == HubStrategy.CHECKPOINT
            jobs.append(
                HfApi(token=self.args.hub_token).upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=checkpoint_folder,
                    path_in_repo="last-checkpoint" if last else Path(checkpoint_folder).name,
                    commit_message=f"{message}, checkpoint",
                    run_as_future=True,
                    revision=self.args.hub_revision,
                    # These name the target as it is called here; what is uploaded to the root does not.
                    ignore_patterns=[".*", CONFIG_FILE, "README.md"],
                )
            )
        if busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)
