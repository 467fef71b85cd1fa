"""`ULDBakeTrainer`: distills an unlearned model into plain weights."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
import trl
from datasets import Dataset, concatenate_datasets
from huggingface_hub import CommitInfo, HfApi
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging
from trl.models import unwrap_model_for_generation

import uld_hf

from ..context import context_length
from ..hub import fingerprint_target, load_config
from ..model_card import find_license
from ..modeling_uld import ULDForCausalLM
from ..publish import PrivatePushes
from ..training.checkpoints import find_last_checkpoint
from ..training.collator import DataCollatorForULD
from ..training.forget_retain_trainer import ForgetRetainTrainer, check_finite, check_given
from ..training.losses import add_loss, check_head
from ..training.preparation import check_disjoint, to_trainable_rows
from ..training.sharding import check_whole_weights, is_sharded, whole_weights
from ..training.target import check_tied_head, check_tokenizer, place_whole
from .bake_config import ULDBakeConfig
from .losses import BakeLossOutput, ComposedTargets, TopKTargets, bake_loss
from .sampling import answer_row, draw_answers, prompt_of
from .saving import (
    STUDENT_FILE,
    TEACHER_FOLDER,
    baked_model_card,
    check_output_folder,
    find_companions,
    save_baked_model,
)
from .student import Blueprint, build_student, check_adapter, check_student, make_skeleton, plain_model
from .teacher import check_teacher, composed_targets, fingerprint_teacher, load_target_tokenizer
from .teacher_cache import TopKCache, compute_fingerprint, open_or_write, read_answers, write_answers


# Mean nats per token beyond which train() warns that the student is not its teacher yet.
_LIKE_THE_TEACHER = 0.1

# DeepSpeed's name for what accelerate calls zero3_save_16bit_model.
_SAVES_WHOLE_WEIGHTS = "zero_optimization.stage3_gather_16bit_weights_on_model_save"

# What is compared, for fingerprints of what belongs to one training only.
_OBJECTIVE = "divergence, and likelihood at temperature 1"

# Number of a row whose answer the student has drawn: nothing was kept of it.
_DRAWN = -1


logger = logging.get_logger(__name__)


class DataCollatorForBaking(DataCollatorForULD):
    """ULD's collator, plus `row`: the numbers of the rows, by which the teacher's top tokens are found."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Collate tokenized rows.

        Args:
            examples (`list[dict[str, Any]]`):
                Rows with `input_ids`, `labels`, `is_retain` and `row`.

        Returns:
            `dict[str, torch.Tensor]`: ULD's batch, and `row` of shape `(batch_size,)`.
        """
        batch = super().torch_call(examples)
        batch["row"] = torch.tensor([example["row"] for example in examples])
        return batch


class ULDBakeTrainer(PrivatePushes, ForgetRetainTrainer):
    """
    Trainer that makes one plain checkpoint of an unlearned model: distillation of the composed distribution.

    The teacher is the unlearned model. The student begins as its target and learns the teacher's next-token
    distribution on the forget set, on answers that the teacher itself gives to its prompts, and on what must be kept.
    `save_model()` writes an ordinary `save_pretrained` folder. The teacher and its target are not changed.

    Args:
        model (`str` or [`ULDForCausalLM`]):
            The teacher: hub id or folder of a saved unlearned model, or a loaded one.
        args ([`ULDBakeConfig`], *optional*):
            Configuration. Defaults to one whose output folder is named after the teacher.
        forget_dataset ([`~datasets.Dataset`]):
            What was forgotten: text, prompt and completion, messages, or tokenized rows. Best what the assistants were
            trained on, with its paraphrases.
        retain_dataset ([`~datasets.Dataset`]):
            What must be kept, in any of these formats.
        general_dataset ([`~datasets.Dataset`], *optional*):
            Other text that must stay as it is, in any of these formats; joins the retain set.
        student ([`~transformers.PreTrainedModel`], *optional*):
            A model of the same tokenizer to train in place of a copy of the target. It is changed.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The target's tokenizer. Defaults to the one at the teacher's, or the target's, name.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train, e.g. a [`~peft.LoraConfig`]; merged when saved. The student then shares all frozen tensors
            with the teacher, except with FSDP and DeepSpeed. Defaults to training all weights.
        callbacks (`list[TrainerCallback]`, *optional*):
            Callbacks, as in [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*):
            Optimizer and scheduler, as in [`~transformers.Trainer`].

    Raises:
        TypeError: If the teacher is not an unlearned model, or a set is missing or streamed.
        ValueError: If nothing is subtracted in the teacher, its target is quantized, the output folder is not empty,
            the student has another vocabulary, an adapter would part its tied embeddings from its head, or a set cannot
            be trained on.

    Example:

    ```python
    >>> trainer = ULDBakeTrainer("forget-alice", ULDBakeConfig("baked"), forget_dataset=forget, retain_dataset=retain)
    >>> trainer.train()
    >>> trainer.save_model()
    ```
    """

    _name = "ULD bake"
    _tag_names = ("unlearning", "uld", "distillation")

    def __init__(
        self,
        model: str | ULDForCausalLM,
        args: ULDBakeConfig | None = None,
        forget_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None,
        general_dataset: Dataset | None = None,
        student: PreTrainedModel | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ):
        if args is None:
            name = model if isinstance(model, str) else model.name_or_path
            args = ULDBakeConfig(f"{os.path.basename(name) or 'model'}-baked")
        # What costs nothing to check is checked before anything is loaded.
        check_output_folder(Path(args.output_dir), goes_on=bool(args.resume_from_checkpoint))
        if not isinstance(model, str):
            check_teacher(model, args.divergence, args.likelihood_weight)
        if peft_config is not None:
            check_adapter(peft_config)
        if peft_config is not None and args.noise > 0:
            raise ValueError(f"noise={args.noise} needs all weights to be trained: leave out peft_config.")
        kept = {"retain": retain_dataset}
        if general_dataset is not None:
            kept["general"] = general_dataset
        check_given(args, {"forget": forget_dataset, **kept})
        check_whole_weights(args)
        if isinstance(model, str):
            load_config(model)  # of a plain model: an error, before its weights are read
            with whole_weights(args):
                name, model = model, ULDForCausalLM.from_pretrained(model, **(args.model_init_kwargs or {}))
            check_teacher(model, args.divergence, args.likelihood_weight)
        else:
            name = None
        target = model.target
        if processing_class is None:
            processing_class = load_target_tokenizer(model.config, name)
        self._vocab_size = target.get_input_embeddings().weight.shape[0]
        self._context_length = context_length(target.config)
        check_tokenizer(processing_class, self._vocab_size)
        if args.teacher_top_k is not None and args.teacher_top_k >= self._vocab_size:
            raise ValueError(
                f"teacher_top_k={args.teacher_top_k} must be below the {self._vocab_size} tokens there are."
            )
        if student is not None:
            check_student(student, model, processing_class)
        check_head(target)
        if peft_config is not None:
            check_tied_head(target if student is None else student, peft_config)
        kept = {name: to_trainable_rows(rows, name, args.dataset_text_field) for name, rows in kept.items()}
        self._retain_dataset, self._general_dataset = kept["retain"], kept.get("general")
        forget_dataset = to_trainable_rows(forget_dataset, "forget", args.dataset_text_field)

        self.teacher, sharded = model, is_sharded(args)
        if not sharded:
            place_whole(model, args)  # before the student takes its tensors
        # As they are now: trl may give a tokenizer a padding token, and a model's configuration options of its own.
        self._tokenizer_to_save = copy.deepcopy(processing_class)
        begin = target if student is None else student
        self._blueprint = Blueprint.of(begin)
        self._saved: tuple[Path, list[str]] | None = None
        self._own_student = None if student is None else student.name_or_path
        self._target_name = target.name_or_path or None
        num_layers = begin.config.get_text_config(decoder=True).num_hidden_layers
        self._target_fingerprint = fingerprint_target(begin, num_layers)
        with whole_weights(args):  # fresh ones, to be mixed in
            trained = build_student(model, student, peft_config, args.noise, args.seed, share=not sharded)
        self._skeleton = make_skeleton(trained)
        base = trained.get_base_model() if isinstance(trained, PeftModel) else trained
        check_head(base)
        forward = base.forward
        # trl tokenizes through `_prepare_dataset`, where what must be kept joins; the loss below replaces trl's own.
        super().__init__(
            model=trained,
            args=args,
            train_dataset=forget_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        base.forward = forward
        self._check_sharding(base)
        if sharded:
            place_whole(model, args)  # after the student's copy, which is divided where it is

        def loss(student: PreTrainedModel, hidden: torch.Tensor, **given: Any) -> BakeLossOutput:
            names = ("retain_weight", "temperature", "likelihood_weight")
            settings = {name: vars(args)[name] for name in names}
            return bake_loss(student, hidden, **given, kind=args.divergence, **settings)

        add_loss(base, loss)
        self.data_collator = DataCollatorForBaking(
            pad_token_id=self.data_collator.pad_token_id, pad_to_multiple_of=self.data_collator.pad_to_multiple_of
        )
        self.train_dataset = _number(self.train_dataset)
        self._given_rows = self.train_dataset
        self._num_given_forget_rows = self._num_forget_rows
        self._top_k: TopKCache | None = None
        eos = target.generation_config.eos_token_id
        eos = [self.processing_class.eos_token_id] if eos is None else eos if isinstance(eos, list) else [eos]
        self._eos_token_ids = [token for token in eos if token is not None]

    @property
    def _sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _check_sharding(self, student: PreTrainedModel) -> None:
        """Refuse what would fail in the middle of a training, or when its student is saved."""
        if self._sharded and self.args.save_only_model:
            raise ValueError(
                "save_only_model=True would write checkpoints without the student, which FSDP and DeepSpeed save with "
                "the optimizer. Leave it out, or set save_strategy='no'."
            )
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise ValueError("FSDP of version 1 is not supported: use fsdp_version: 2.")
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if plugin is None or plugin.zero_stage < 3:
            return
        gathers = plugin.hf_ds_config.get_value(_SAVES_WHOLE_WEIGHTS, False)
        if not (plugin.zero3_save_16bit_model if gathers == "auto" else gathers):
            raise ValueError(
                f"The student could not be saved: set {_SAVES_WHOLE_WEIGHTS} to true in DeepSpeed's configuration, or "
                "zero3_save_16bit_model: true in accelerate's."
            )
        if any(True for _ in student.get_output_embeddings().children()):
            raise ValueError(
                "LoRA or modules_to_save on the head do not go with DeepSpeed ZeRO-3, which would gather their parts "
                "once per tile of logits, in one process more often than in another. Leave the head out, or use ZeRO-2."
            )

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: ULDBakeConfig,
        packing: bool,
        formatting_func: Callable[[dict], str] | None,
        dataset_name: str,
    ) -> Dataset:
        rows = super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        if self._general_dataset is None:
            return rows
        general = self._prepare_rows(self._general_dataset, "general", processing_class, args)
        forget = rows.select(range(self._num_forget_rows))
        check_disjoint(forget, general, processing_class.eos_token_id, "general")
        general = general.add_column("is_retain", [True] * len(general))
        return concatenate_datasets([rows, general.select_columns(rows.column_names).with_format(None)])

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "is_retain", "row"]

    @property
    def teacher_cache_dir(self) -> Path:
        """Where what the teacher said is kept."""
        return Path(self.args.teacher_cache_dir or Path(self.args.output_dir, TEACHER_FOLDER))

    @property
    def teacher_cache_bytes(self) -> int:
        """Bytes of the teacher's most probable tokens on disk; 0 without `teacher_top_k`, or before training."""
        return 0 if self._top_k is None else self._top_k.num_bytes

    def _draw(self, model: PreTrainedModel, prompts: list[list[int]], synced_gpus: bool = False) -> Iterator[list[int]]:
        args = self.args
        return draw_answers(
            model,
            prompts,
            self._eos_token_ids,
            self.data_collator.pad_token_id,
            args.max_new_tokens,
            args.generation_temperature,
            args.per_device_train_batch_size,
            synced_gpus,
        )

    def prepare_teacher(self) -> None:
        """
        Let the teacher answer the forget set's prompts, and keep its most probable tokens where that was asked for.

        [`~ULDBakeTrainer.train`] does it; by itself it fills `teacher_cache_dir` for later runs.

        Raises:
            ValueError: If what was kept there was made with another teacher, other data or other settings.
        """
        args, folder = self.args, self.teacher_cache_dir
        with args.main_process_first(local=True, desc="asking the teacher"):
            rows = self._given_rows.select(range(self._num_given_forget_rows))
            prompts = list({tuple(prompt_of(row["input_ids"], row["labels"])): None for row in rows})
            teacher = fingerprint_teacher(self.teacher)
            answers = self._answers_of_teacher(prompts, teacher, folder)
            seen = {tuple(row["input_ids"]) for row in rows}
            drawn = [
                answer_row(prompt, answer, is_retain=False)
                for prompt, of_prompt in zip(prompts, answers, strict=True)
                for answer in map(list, dict.fromkeys(map(tuple, of_prompt)))
                if answer and (*prompt, *answer) not in seen
            ]
            kept = self._given_rows.select(range(self._num_given_forget_rows, len(self._given_rows)))
            parts = [rows, Dataset.from_list(drawn)] if drawn else [rows]
            parts = [part.select_columns(["input_ids", "labels", "is_retain"]) for part in (*parts, kept)]
            self.train_dataset = _number(concatenate_datasets([part.with_format(None) for part in parts]))
            self._num_forget_rows = len(rows) + len(drawn)
            data = {name: list(self.train_dataset[name]) for name in ("input_ids", "labels")}
            data_fingerprint = compute_fingerprint(**data)
            # What a checkpoint belongs to: resumed with other lessons, a training would be neither one nor the other.
            names = ("divergence", "temperature", "likelihood_weight", "retain_weight", "retain_per_forget")
            settings = {name: vars(args)[name] for name in names}
            settings["objective"] = _OBJECTIVE
            self._lesson = compute_fingerprint(teacher=teacher, data=data_fingerprint, settings=settings)
            if args.teacher_top_k is not None:
                self._top_k = self._top_k_of_teacher(teacher, data_fingerprint, data["labels"], folder)
                logger.info(f"The teacher's top {args.teacher_top_k} are in {folder}: {self._top_k.num_bytes:,} bytes.")

    def _answers_of_teacher(self, prompts: list[tuple[int, ...]], teacher: str, folder: Path) -> list[list[list[int]]]:
        args = self.args
        if not args.teacher_answers:
            return [[] for _ in prompts]
        names = ("teacher_answers", "generation_temperature", "max_new_tokens", "seed", "per_device_train_batch_size")
        settings = {name: vars(args)[name] for name in names}
        fingerprint = compute_fingerprint(teacher=teacher, prompts=prompts, end=self._eos_token_ids, **settings)
        answers = read_answers(folder, fingerprint)
        if answers is None:
            repeated = [list(prompt) for prompt in prompts for _ in range(args.teacher_answers)]
            with torch.random.fork_rng():
                torch.manual_seed(args.seed)
                drawn = self._draw(self.teacher, repeated)
                progress = tqdm(prompts, desc="The teacher answers", disable=args.disable_tqdm)
                answers = [[next(drawn) for _ in range(args.teacher_answers)] for _ in progress]
            write_answers(folder, fingerprint, answers)
        return answers

    def _top_k_of_teacher(self, teacher: str, data: str, labels: list[list[int]], folder: Path) -> TopKCache:
        args = self.args
        rows = self.train_dataset

        def log_probs() -> Iterator[torch.Tensor]:
            size = args.per_device_train_batch_size
            starts = range(0, len(rows), size)
            for start in tqdm(starts, desc="The teacher's top tokens", disable=args.disable_tqdm):
                examples = [rows[index] for index in range(start, min(start + size, len(rows)))]
                batch = {name: value.to(args.device) for name, value in self.data_collator(examples).items()}
                targets = composed_targets(self.teacher, batch)
                end = 0
                for count in (batch["labels"][:, 1:] != -100).sum(dim=1).tolist():
                    yield targets.log_probs(slice(end, end + count), args.temperature)
                    end += count

        fingerprint = compute_fingerprint(
            teacher=teacher, temperature=args.temperature, k=args.teacher_top_k, data=data, objective=_OBJECTIVE
        )
        next_tokens = [torch.tensor([label for label in of_row[1:] if label != -100]) for of_row in labels]
        return open_or_write(folder, fingerprint, args.teacher_top_k, next_tokens, log_probs, args.temperature)

    def _before_training(self, checkpoint: str | None) -> None:
        if checkpoint is None and find_last_checkpoint(self.args.output_dir) is not None:
            raise ValueError(
                f"{self.args.output_dir} holds the checkpoints of an unfinished bake: go on with "
                "resume_from_checkpoint=True, or delete them."
            )
        check_teacher(self.teacher, self.args.divergence, self.args.likelihood_weight)
        self.prepare_teacher()
        if checkpoint is not None:
            self._check_lesson(checkpoint)

    def _after_training(self) -> None:
        last = self._recent_metrics()
        for part in ("forget", "retain"):
            value = last.get(f"{part}_divergence", 0.0)
            if value > _LIKE_THE_TEACHER:
                logger.warning(
                    f"On the {part} rows the student is {value:.2f} nats per token from its teacher: it has not become "
                    "like it. Train for more epochs, or with a higher learning_rate."
                )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | None]:
        """The micro-batches of an optimizer step; in some of them the student answers the prompts itself."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        fraction = self.args.on_policy_fraction
        if fraction > 0 and batches:
            # By step, so that a resumed training tosses the same coins; and the same in all processes, which must draw
            # together where the weights are divided among them.
            generator = np.random.default_rng([self.args.seed, self.state.global_step])
            batches = [
                self._answered_by_student(batch, int(generator.integers(2**62)) + self.args.process_index)
                if generator.random() < fraction
                else batch
                for batch in batches
            ]
            num_items = self._get_num_items_in_batch(batches, device)
        return batches, num_items

    def _answered_by_student(self, batch: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        labels, input_ids = batch["labels"].tolist(), batch["input_ids"].tolist()
        prompts = [
            prompt_of(ids[:length], of[:length]) for ids, of, length in zip(input_ids, labels, lengths, strict=True)
        ]
        is_retain = batch["retain_mask"][:, 0].tolist()
        checkpointing = self.args.activation_checkpointing_kwargs
        with (
            torch.random.fork_rng(),
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gradient_checkpointing_kwargs=checkpointing
            ) as student,
        ):
            torch.manual_seed(seed)  # a resumed training draws the same: it restores its own state only after this
            student.eval()
            answers = list(self._draw(student, prompts, synced_gpus=self.is_fsdp_enabled))
            student.train()
        rows = [
            {**answer_row(prompt, answer, retain), "row": _DRAWN}
            for prompt, answer, retain in zip(prompts, answers, is_retain, strict=True)
        ]
        return {name: value.to(batch["input_ids"].device) for name, value in self.data_collator(rows).items()}

    def _targets(self, batch: dict[str, torch.Tensor], rows: list[int]) -> ComposedTargets | TopKTargets:
        if self._top_k is None or _DRAWN in rows:
            return composed_targets(self.teacher, batch)
        return self._top_k.lookup(rows, batch["labels"].device)

    def _run(self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items: torch.Tensor) -> BakeLossOutput:
        batch = {name: value for name, value in inputs.items() if name != "row"}
        return model(**batch, targets=self._targets(batch, inputs["row"].tolist()), num_items=num_items)

    def _per_token(self, *sums: float) -> dict[str, float]:
        metrics = {}
        for part, divergence, agreed, count in zip(("forget", "retain"), sums[:2], sums[2:4], sums[4:], strict=True):
            if count:
                metrics[f"{part}_divergence"] = divergence / count
                metrics[f"{part}_agreement"] = agreed / count
        return metrics

    def _record(self, outputs: BakeLossOutput, counts: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        """Per-token averages for the log, and a stop at the first divergence that is not a number."""
        names = ("forget_divergence", "retain_divergence", "forget_agreed", "retain_agreed")
        sums = torch.stack([outputs[name].float() for name in names])
        num_tokens = batch["attention_mask"].sum()[None]
        row = self.accelerator.gather(torch.cat([sums, counts.float(), num_tokens.float()])[None]).sum(dim=0).tolist()
        *sums, num_tokens = row
        check_finite({"forget": sums[0], "retain": sums[1]}, self.state.global_step + 1, self.args.learning_rate)
        self._log_per_token(tuple(sums), "train")
        self._total_train_tokens += int(num_tokens)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """
        Not offered: the divergence on other rows does not say what was forgotten.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "The divergence says nothing of what was forgotten. Measure trainer.baked_model() with "
            "uld_hf.evaluation.evaluation, or the saved model with `uld eval`."
        )

    def _trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # A checkpoint: what is trained, in a file that nothing takes for a model. It may not have forgotten yet. What
        # is divided among processes, FSDP and DeepSpeed save themselves.
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = {} if self._sharded else self._trained_parameters()
        save_file(
            {name: value.detach().contiguous() for name, value in trained.items()},
            folder / STUDENT_FILE,
            metadata={"lesson": self._lesson},
        )

    def _check_lesson(self, checkpoint: str) -> None:
        file = Path(checkpoint, STUDENT_FILE)
        if not file.exists():
            raise ValueError(f"{checkpoint} is not a checkpoint of ULDBakeTrainer: it has no {STUDENT_FILE}.")
        with safe_open(file, "pt") as opened:
            lesson = opened.metadata()["lesson"]
        if lesson != self._lesson:
            raise ValueError(
                f"{file} was trained with another teacher, other rows or another divergence. Resume with what it began "
                "with, or begin anew in another folder."
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = load_file(Path(resume_from_checkpoint, STUDENT_FILE))
        with torch.no_grad():
            for name, parameter in self._trained_parameters().items():
                parameter.copy_(saved[name])

    def _student_weights(self) -> dict[str, torch.Tensor] | None:
        if self._sharded:  # the first process gets them, and all must ask
            return self.accelerator.get_state_dict(self.model_wrapped)
        return dict(self.model.named_parameters())

    def baked_model(self) -> PreTrainedModel | None:
        """
        The student as a plain model on the CPU, as it would be saved; the training can go on.

        With FSDP and DeepSpeed, all processes must call it together.

        Returns:
            [`~transformers.PreTrainedModel`]: Adapters are merged; type and configuration are the target's own. `None`
            in processes other than the first where weights are divided among them.
        """
        weights = self._student_weights()
        if self._sharded and not self.is_world_process_zero():
            return None
        return plain_model(self._skeleton, weights, self._blueprint)

    def _describe_training(self) -> dict[str, Any]:
        args = self.args
        settings = (
            "divergence",
            "temperature",
            "likelihood_weight",
            "learning_rate",
            "num_train_epochs",
            "retain_weight",
            "retain_per_forget",
        )
        drawn = ("teacher_answers", "on_policy_fraction", "teacher_top_k", "noise", "seed")
        num_forget = self._num_given_forget_rows
        return {
            "rows": {
                "to forget": num_forget,
                "answers of the teacher": self._num_forget_rows - num_forget,
                "to keep": len(self._given_rows) - num_forget,
            },
            "settings": {
                "trained": "LoRA, merged" if isinstance(self.model, PeftModel) else "all weights",
                "steps": self.state.global_step,
                "rows per step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
                **{name: vars(args)[name] for name in (*settings, *drawn)},
            },
            "metrics": self._recent_metrics(),
            "versions": {
                "uld_hf": uld_hf.__version__,
                **{module.__name__: module.__version__ for module in (transformers, trl, peft, torch)},
            },
        }

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Write the baked model: an ordinary folder of `save_pretrained`, with the target's tokenizer and licence.

        Nothing can be loaded from it before all of it is written. The checkpoints in it are then removed. With FSDP and
        DeepSpeed, all processes must call it together; the first one writes.

        Args:
            output_dir (`str`, *optional*):
                Folder to write to. Defaults to `args.output_dir`.

        Raises:
            RuntimeError: If nothing was trained, or the training was cut off: it would know what the target knows.
            ValueError: If the folder holds something else.
        """
        if _internal_call:  # a checkpoint
            self._save(output_dir)
            return
        if self.state.global_step == 0:
            raise RuntimeError("Nothing was trained: what would be saved is the target, with everything it knows.")
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            raise RuntimeError(
                f"The training was cut off at step {self.state.global_step} of {self.state.max_steps}: this student "
                "has not forgotten yet. Go on with resume_from_checkpoint=True."
            )
        folder = Path(output_dir or self.args.output_dir)
        weights = self._student_weights()  # of all processes: it may take them together
        if self.is_world_process_zero():
            # What has come into its own folder since it was looked at is of this run: logs, an earlier save.
            if folder.resolve() != Path(self.args.output_dir).resolve():
                check_output_folder(folder)
            config = self.teacher.config
            name, source = self._blueprint.name, {}
            if name == config.target_name_or_path and config.target_revision and not os.path.isdir(name):
                source = {"revision": config.target_revision}
            license_data = find_license(name, **source) if name else {}
            self._saved = (
                folder,
                save_baked_model(
                    folder,
                    plain_model(self._skeleton, weights, self._blueprint),
                    self._tokenizer_to_save,
                    baked_model_card(config, self._own_student, license_data, self._describe_training()),
                    find_companions(name, **source) if name else [],
                ),
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: a student that has not forgotten yet is not uploaded."""

    def push_to_hub(
        self,
        commit_message: str | None = "Baked model",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """
        Upload the baked model, after [`~ULDBakeTrainer.save_model`].

        Other weights and adapters in the repository are deleted: of an unlearned model that was there, for instance,
        whose assistant is a copy of the forget set. Its history keeps them.

        Args:
            commit_message (`str`, *optional*):
                Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Whether to wait for the upload.
            token (`str`, *optional*):
                Hub token. Defaults to `args.hub_token`.
            revision (`str`, *optional*):
                Branch to push to. Defaults to `args.hub_revision`.
            private (`bool`, *optional*):
                Whether the repository must be private. Defaults to `args.hub_private_repo`, which is `True`.
            **kwargs:
                Of no effect: what transformers passes to its model card.

        Returns:
            [`~huggingface_hub.CommitInfo`]: The commit, or a future of it; `None` in processes other than the first.

        Raises:
            ValueError: If the baked model was not saved.
        """
        if not self.is_world_process_zero():
            return None
        if self._saved is None:
            raise ValueError("There is no baked model to push yet: call save_model() first.")
        folder, files = self._saved
        if self.hub_model_id is None or private is not None:
            self.init_hf_repo(token, private)
        return HfApi(token=token or self.args.hub_token).upload_folder(
            repo_id=self.hub_model_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision or self.args.hub_revision,
            allow_patterns=files,  # whatever else has come into the folder stays there
            delete_patterns=["*.safetensors", "*.bin", "*adapter_config.json"],
            run_as_future=not blocking,
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the card is written with the model."""


def _number(rows: Dataset) -> Dataset:
    return rows.add_column("row", list(range(len(rows))))
