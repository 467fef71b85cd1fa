"""`UnlearnTrainer`: changes a model's weights until it has forgotten, by one of the rival methods."""

import copy
import os
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi
from peft import LoraConfig, PeftConfig, PeftModel
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging
from trl.trainer.utils import create_model_from_path

from ..assistant import find_decoder_layers, put_adapter, truncate_model
from ..context import context_length
from ..hub import find_commit, fingerprint_target
from ..model_card import find_license
from ..publish import TOKENIZER_FILES, PrivatePushes
from ..saved_files import ADAPTER_FILES
from ..training.forget_retain_trainer import ForgetRetainTrainer, check_finite, check_given
from ..training.four_bit import keep_gradients
from ..training.preparation import to_trainable_rows
from ..training.sharding import is_sharded
from ..training.target import (
    check_not_split,
    check_tied_head,
    check_tokenizer,
    how_to_load,
    read_target_config,
    select_source,
)
from .checks import (
    check_adapter,
    check_not_quantized,
    check_output_dir,
    check_steering_layer,
    check_trainable,
    default_steering_layer,
)
from .collator import FORGET, REFUSAL, RETAIN, DataCollatorForUnlearning
from .losses import (
    dpo_loss,
    gradient_ascent_loss,
    kl_loss,
    nll_loss,
    npo_loss,
    simnpo_loss,
    steering_loss,
    undial_loss,
)
from .refusals import REFUSALS, refuse_each
from .scores import Scores, log_likelihoods, sum_rows
from .unlearn_card import unlearn_card
from .unlearn_config import LEARNING_RATE, LORA_LEARNING_RATE, UnlearnConfig


logger = logging.get_logger(__name__)

# Methods whose forget term is a mean over rows, not over tokens.
_BY_ROW = ("npo", "simnpo", "dpo")
# A training whose last batches are not this many nats per token below its first ones has hardly forgotten: the demo's
# target, 0.1 below, still gave seven of eight answers.
_HARDLY, _FEW_BATCHES = 0.3, 20
# Settings of a mixture of experts that trl changes.
_ROUTING = ("output_router_logits", "router_aux_loss_coef")
# What makes a folder a model.
_OF_MODEL = ("config.json", "model*.safetensors", "model.safetensors.index.json")
# Of an output folder, what is pushed besides weights and code.
_FILES = {*_OF_MODEL, *ADAPTER_FILES, "generation_config.json", "README.md", *TOKENIZER_FILES}


@dataclass
class UnlearnLossOutput:
    """
    The loss of a micro-batch, and what it is made of.

    Args:
        loss (`torch.Tensor`):
            The forget term plus `retain_weight` times the retain term, each divided by what it is averaged over.
        terms (`dict[str, torch.Tensor]`):
            Sums over the micro-batch, of `"forget"` and, where there is one, `"retain"`.
        scores ([`Scores`]):
            What the model makes of the batch.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    scores: Scores


def count_units(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """
    What the terms of the loss are averaged over.

    Args:
        batch (`dict[str, torch.Tensor]`):
            A batch of [`DataCollatorForUnlearning`].

    Returns:
        `torch.Tensor` of shape `(3,)`: Forget tokens, forget rows, retain tokens.
    """
    tokens = (batch["labels"][:, 1:] != -100).sum(dim=1)
    is_forget = batch["kinds"] == FORGET
    return torch.stack([tokens[is_forget].sum(), is_forget.sum(), tokens[batch["kinds"] == RETAIN].sum()])


class UnlearnTrainer(PrivatePushes, ForgetRetainTrainer):
    """
    Trainer of the methods that ULD is compared with: they change the model's own weights.

    `loss_type` and `retain_loss_type` of [`UnlearnConfig`] choose the method; the loss is the forget term plus
    `retain_weight` times the retain term, each a mean over tokens or rows of the whole optimizer step.

    What a term needs of the target is had without a second model in memory where that is possible: likelihoods of the
    forget answers are computed once before training; whole distributions and activations come from the base under the
    disabled adapter with LoRA, and from a frozen copy without (for RMU, of the first layers only).

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The target, or its hub id or folder. A loaded model is changed in place. By its name it is loaded in
            float32, with a `peft_config` in the type that it was saved in.
        args ([`UnlearnConfig`], *optional*):
            Configuration. Defaults to one whose output folder is named after the target.
        forget_dataset ([`~datasets.Dataset`]):
            What must be forgotten: text, prompt and completion, messages, or tokenized rows.
        retain_dataset ([`~datasets.Dataset`], *optional*):
            A sample of what must be kept, in any of these formats. Not used with `retain_loss_type="none"`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The target's tokenizer. Defaults to the one at the target's name.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train, e.g. a [`~peft.LoraConfig`]. Without one, all weights are trained.
        callbacks (`list[TrainerCallback]`, *optional*):
            Callbacks, as in [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*):
            Optimizer and scheduler, as in [`~transformers.Trainer`].

    Raises:
        TypeError: If a set is missing or streamed, or the model is a PEFT model.
        ValueError: If a set is empty, a row has no answer or is in both sets, the tokenizer is not the target's, the
            target has no such steering layer, is quantized and would be trained whole, or the adapter learns a prompt
            or would begin with another model than the target.

    Example:

    ```python
    >>> args = UnlearnConfig("out", loss_type="npo", retain_loss_type="kl")
    >>> trainer = UnlearnTrainer("org/finetuned", args, forget_dataset=forget, retain_dataset=retain)
    >>> trainer.train()
    >>> trainer.save_model()  # loads with AutoModelForCausalLM
    ```
    """

    _name = "Unlearning"
    _tag_names = ("unlearning",)
    _may_hold_adapter = True
    _trains_all = True  # without a peft_config
    _known: list[float] | None = None  # of a training that was begun, and not resumed: log-probabilities

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: UnlearnConfig | None = None,
        forget_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ):
        name = model if isinstance(model, str) else model.name_or_path
        if args is None:
            args = UnlearnConfig(f"{os.path.basename(name) or 'model'}-unlearned")
        # What costs nothing to check is checked before anything is loaded.
        check_output_dir(args.output_dir, name)
        if args.merge_adapter and peft_config is None:
            raise ValueError("merge_adapter=True has nothing to merge: give a peft_config, or leave it out.")
        if peft_config is not None:
            check_adapter(peft_config)
        sets = {"forget": forget_dataset}
        if args.retain_loss_type != "none":
            sets["retain"] = retain_dataset
            if retain_dataset is None:
                raise TypeError(
                    f"retain_dataset is missing: the retain term ({args.retain_loss_type!r}) needs it. Give one, or "
                    "say retain_loss_type='none'."
                )
        check_given(args, sets)
        if is_sharded(args):
            raise ValueError(
                f"{type(self).__name__} does not train with FSDP or DeepSpeed: some terms need whole weights of the "
                "target beside what is trained. Start with plain `accelerate launch` (DDP), and give a peft_config to "
                "save memory."
            )
        trains_all = self._trains_all and peft_config is None
        # trl would spread it over all GPUs, of which each process has one: Trainer moves it there. And load it in
        # float32, which weights need that are trained, and a base under LoRA does not.
        dtype = {} if trains_all else {"dtype": "auto"}
        model_init_kwargs = {"device_map": None, **dtype, **how_to_load(args)}
        source = select_source(model_init_kwargs)
        check_not_split(model, model_init_kwargs)
        target_config = read_target_config(model, source)
        if trains_all:
            check_not_quantized(target_config, model_init_kwargs)
        target_config = target_config.get_text_config(decoder=True)
        if not isinstance(model, str):
            check_trainable(model)
        self._steering_layer = None
        if args.loss_type == "rmu":
            num_layers = target_config.num_hidden_layers
            layer = args.steering_layer
            self._steering_layer = default_steering_layer(num_layers) if layer is None else layer
            check_steering_layer(self._steering_layer, num_layers)
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(name, **source)
        self._vocab_size = target_config.vocab_size
        self._context_length = context_length(target_config)
        check_tokenizer(processing_class, self._vocab_size)
        sets = {name: to_trainable_rows(rows, name, args.dataset_text_field) for name, rows in sets.items()}
        self._num_rows = {f"{name}_rows": len(rows) for name, rows in sets.items()}
        self._retain_dataset = sets.get("retain")
        self._refusals = None
        if args.loss_type == "dpo":
            self._refusals = refuse_each(sets["forget"], args.refusals or REFUSALS, args.seed)

        self._target_revision = None
        if isinstance(model, str):
            # The commit where it is known: a branch moves on. Of a loaded model nobody knows it.
            self._target_revision = find_commit(name, **source)
            model = create_model_from_path(name, **model_init_kwargs)
            check_trainable(model)
        self._target_name = name or None
        self._target_license = find_license(name, **source) if name else {}
        self._target_fingerprint = fingerprint_target(model, target_config.num_hidden_layers)
        if args.merge_adapter and isinstance(peft_config, LoraConfig):
            check_tied_head(model, peft_config)
        set_seed(args.seed)  # LoRA is initialized at random
        model, reference = self._build_model(model, args, peft_config)
        # trl knows two losses and compares this setting with their names.
        of_trl = copy.copy(args)
        of_trl.loss_type = "nll"
        of_trl.model_init_kwargs = None  # of these it would say that they are ignored
        if of_trl.learning_rate is None:
            of_trl.learning_rate = LORA_LEARNING_RATE if isinstance(model, PeftModel) else LEARNING_RATE
        config = model.config.get_text_config()
        routing = {name: vars(config)[name] for name in _ROUTING if name in vars(config)}
        super().__init__(
            model=model,
            args=of_trl,
            train_dataset=sets["forget"],
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # Of a mixture of experts trl has asked for its routers' logits, for a loss of its own that is not used here.
        vars(config).update(routing)
        self.args.loss_type, self.args.model_init_kwargs = args.loss_type, args.model_init_kwargs
        self.data_collator = DataCollatorForUnlearning(
            pad_token_id=self.data_collator.pad_token_id, pad_to_multiple_of=self.data_collator.pad_to_multiple_of
        )
        self._reference = None if reference is None else reference.to(self.args.device)
        if self._steering_layer is not None:
            self._freeze_all_but_steered()
            generator = torch.Generator().manual_seed(args.seed)
            direction = torch.rand(target_config.hidden_size, generator=generator)
            self._steer_to = args.steering_coefficient * direction / direction.norm()
        if args.loss_type in ("npo", "dpo"):
            self._remember_reference_log_probs()

    def _build_model(
        self, model: PreTrainedModel, args: UnlearnConfig, peft_config: PeftConfig | None
    ) -> tuple[PreTrainedModel | PeftModel, PreTrainedModel | None]:
        """What is trained; and without an adapter to disable, a frozen copy of what terms need of the target."""
        keep_gradients(model)
        if peft_config is not None:
            peft_config = copy.deepcopy(peft_config)
            peft_config.revision = self._target_revision
            adapted = put_adapter(model, peft_config)
            if os.path.isdir(model.name_or_path):  # to be found from other folders than this one
                adapted.peft_config["default"].base_model_name_or_path = os.path.abspath(model.name_or_path)
            return adapted, None
        model.requires_grad_(True)  # an assistant that was cut from it has frozen what they share
        if args.retain_loss_type == "kl" or args.loss_type == "undial":
            needed = model
        elif args.retain_loss_type == "activations":
            # One layer more than is steered: what comes out of the last one has passed the final norm as well.
            needed = truncate_model(model, self._steering_layer + 2)
        else:
            return model, None
        return model, copy.deepcopy(needed).requires_grad_(False).eval()

    def _get_base_model(self) -> PreTrainedModel:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _freeze_all_but_steered(self) -> None:
        holder, name = find_decoder_layers(self._get_base_model())
        layers = holder.get_submodule(name)[max(0, self._steering_layer - 2) : self._steering_layer + 1]
        steered = {id(parameter) for layer in layers for parameter in layer.parameters()}
        for parameter in self.model.parameters():
            if id(parameter) not in steered:
                parameter.requires_grad_(False)

    def _prepare_rows(
        self, rows: Dataset, name: str, processing_class: PreTrainedTokenizerBase, args: UnlearnConfig
    ) -> Dataset:
        prepared = super()._prepare_rows(rows, name, processing_class, args)
        if name == "forget" and self._refusals is not None:
            refusals = super()._prepare_rows(self._refusals, "refusal", processing_class, args)
            for column in ("input_ids", "labels"):
                prepared = prepared.add_column(f"refusal_{column}", list(refusals[column]))
        return prepared

    def _set_signature_columns_if_needed(self) -> None:
        row = ("input_ids", "labels", "is_retain", "reference_log_prob")
        self._signature_columns = [*row, "refusal_input_ids", "refusal_labels", "refusal_reference_log_prob"]

    def _count(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return count_units(batch)

    @torch.no_grad()
    def _score_forget_rows(self, num_batches: int | None = None) -> list[tuple[torch.Tensor, Scores]]:
        """Kinds of the rows and the model's likelihoods, of the first batches of the forget set or of all."""
        forget = self.train_dataset.select(range(self._num_forget_rows))
        loader = DataLoader(forget, self.args.per_device_train_batch_size, collate_fn=self.data_collator)
        total = len(loader) if num_batches is None else min(num_batches, len(loader))
        was_training = self.model.training
        self.model.eval()
        scored = []
        for batch in tqdm(islice(loader, total), "Scoring forget answers", total=total, disable=self.args.disable_tqdm):
            batch = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
            scored.append((batch["kinds"], self._score(self.model, batch)))
        self.model.train(was_training)
        return scored

    def _remember_reference_log_probs(self) -> None:
        """Log-probability of each forget answer, and of its refusal, by the target; as columns of the rows."""
        log_probs: dict[int, list[float]] = {FORGET: [], REFUSAL: []}
        for kinds, scores in self._score_forget_rows():
            for kind, values in log_probs.items():
                values += sum_rows(scores.log_probs, scores.rows, kinds == kind).tolist()
        of_retain = [0.0] * (len(self.train_dataset) - self._num_forget_rows)
        names = {FORGET: "reference_log_prob", REFUSAL: "refusal_reference_log_prob"}
        for kind, values in log_probs.items():
            if values:
                self.train_dataset = self.train_dataset.add_column(names[kind], values + of_retain)

    def _score(
        self,
        model: nn.Module,
        batch: dict[str, torch.Tensor],
        with_logits: bool = False,
        with_activations: bool = False,
    ) -> Scores:
        """
        One forward pass; logits are made only where whole distributions are needed.

        In the training's precision: Trainer's own autocast covers the trained model alone, and a reference in another
        one would differ from it before anything is learned.
        """
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        counted = batch["labels"][:, 1:] != -100
        rows = counted.nonzero()[:, 0]
        if not with_logits and not with_activations:
            with self.accelerator.autocast():
                outputs = model(**inputs, labels=batch["labels"], fused_lm_head=True)
            return Scores(rows, log_probs=outputs.log_probs[counted])
        # Positions at which no row has a token that counts need no logits; activations alone need none at all.
        positions = counted.any(dim=0).nonzero()[:, 0] if with_logits else torch.tensor([0], device=counted.device)
        kept = {"logits_to_keep": positions} if self._get_base_model()._supports_logits_to_keep() else {}
        with self.accelerator.autocast():
            outputs = model(**inputs, **kept, use_cache=False, output_hidden_states=with_activations)
        scores = Scores(rows)
        if with_logits:
            logits = outputs.logits if kept else outputs.logits[:, positions]
            logits = logits[counted[:, positions]]
            scores.logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            labels = batch["labels"][:, 1:][counted]
            scores.log_probs = log_likelihoods(scores.logits, labels)
        if with_activations:
            activations = outputs.hidden_states[self._steering_layer + 1][:, 1:][counted]
            scores.activations = activations.to(torch.promote_types(activations.dtype, torch.float32))
        return scores

    @torch.no_grad()
    def _score_reference(self, batch: dict[str, torch.Tensor], kind: int) -> Scores | None:
        """What the target makes of the rows of one kind: whole distributions, or activations; `None` without rows."""
        wanted = batch["kinds"] == kind
        if not wanted.any():
            return None
        rows = {name: batch[name][wanted] for name in ("input_ids", "attention_mask", "labels")}
        return self._score_target(rows)

    def _score_target(self, rows: dict[str, torch.Tensor]) -> Scores:
        what = {f"with_{'activations' if self.args.retain_loss_type == 'activations' else 'logits'}": True}
        if self._reference is not None:
            return self._score(self._reference, rows, **what)
        was_training = self.model.training
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.eval()  # without dropout
        with self.model.disable_adapter():
            scores = self._score(self.model, rows, **what)
        self.model.train(was_training)
        self.model.requires_grad_(False)  # PEFT has enabled the gradients of all of LoRA
        for parameter in trained:
            parameter.requires_grad_(True)
        return scores

    def _forget_losses(self, scores: Scores, reference: Scores | None, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The forget term of each token, or of each row."""
        loss_type, beta = self.args.loss_type, self.args.beta
        is_forget = batch["kinds"] == FORGET
        tokens = is_forget[scores.rows]
        if loss_type == "rmu":
            return steering_loss(scores.activations[tokens], self._steer_to.to(scores.activations))
        if loss_type == "ga":
            return gradient_ascent_loss(scores.log_probs[tokens])
        if loss_type == "undial":
            if reference is None:
                return scores.log_probs[tokens]
            labels = batch["labels"][:, 1:][is_forget]
            return undial_loss(scores.logits[tokens], reference.logits, labels[labels != -100], beta)
        log_probs = sum_rows(scores.log_probs, scores.rows, is_forget)
        if loss_type == "simnpo":
            num_tokens = sum_rows(torch.ones_like(scores.log_probs), scores.rows, is_forget)
            return simnpo_loss(log_probs, num_tokens, beta, self.args.margin)
        references = batch["reference_log_probs"].to(log_probs)
        if loss_type == "npo":
            return npo_loss(log_probs, references[is_forget], beta)
        is_refusal = batch["kinds"] == REFUSAL
        refusals = sum_rows(scores.log_probs, scores.rows, is_refusal)
        return dpo_loss(refusals, log_probs, references[is_refusal], references[is_forget], beta)

    def _retain_losses(self, scores: Scores, reference: Scores | None, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The retain term of each token."""
        tokens = (batch["kinds"] == RETAIN)[scores.rows]
        if self.args.retain_loss_type == "nll":
            return nll_loss(scores.log_probs[tokens])
        if reference is None:
            return scores.rows.new_zeros(0, dtype=torch.float32)
        if self.args.retain_loss_type == "kl":
            return kl_loss(scores.logits[tokens], reference.logits)
        return steering_loss(scores.activations[tokens], reference.activations)

    def _run(self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items: torch.Tensor) -> UnlearnLossOutput:
        args = self.args
        num_items = num_items.clamp(min=1)
        # Whole distributions; or likelihoods in a pass that activations are taken from.
        with_logits = (
            args.loss_type == "undial"
            or args.retain_loss_type == "kl"
            or (args.loss_type == "rmu" and args.retain_loss_type == "nll")
        )
        # Before the model's own pass: PEFT must not touch the adapter between that and the gradients.
        of_forget = self._score_reference(inputs, FORGET) if args.loss_type == "undial" else None
        of_retain = self._score_reference(inputs, RETAIN) if args.retain_loss_type in ("kl", "activations") else None
        scores = self._score(model, inputs, with_logits, with_activations=args.loss_type == "rmu")
        terms = {"forget": self._forget_losses(scores, of_forget, inputs).sum()}
        loss = terms["forget"] / num_items[1 if args.loss_type in _BY_ROW else 0]
        if args.retain_loss_type != "none":
            terms["retain"] = self._retain_losses(scores, of_retain, inputs).sum()
            loss = loss + args.retain_weight * terms["retain"] / num_items[2]
        return UnlearnLossOutput(loss, terms, scores)

    def _record(self, outputs: UnlearnLossOutput, counts: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        log_probs = outputs.scores.log_probs
        known = torch.zeros_like(outputs.loss)
        if log_probs is not None:
            known = log_probs[(inputs["kinds"] == FORGET)[outputs.scores.rows]].sum()
        values = torch.stack([*outputs.terms.values(), known]).detach().float()
        row = torch.cat([values, counts.float(), inputs["attention_mask"].sum()[None].float()])
        *totals, known, tokens, rows, retain_tokens, num_tokens = self.accelerator.gather(row[None]).sum(dim=0).tolist()
        terms = dict(zip(outputs.terms, totals, strict=True))
        check_finite(terms, self.state.global_step + 1, self.args.learning_rate)
        metrics = self._metrics["train"]
        if rows:
            metrics["forget_loss"].append(terms["forget"] / (rows if self.args.loss_type in _BY_ROW else tokens))
            if log_probs is not None:
                metrics["forget_log_prob"].append(known / tokens)
                if self._known is not None and self.args.loss_type != "rmu":
                    self._known.append(known / tokens)
        if retain_tokens:
            metrics["retain_loss"].append(terms["retain"] / retain_tokens)
        self._total_train_tokens += int(num_tokens)
        metrics["num_tokens"] = [self._total_train_tokens]

    def _before_training(self, checkpoint: str | None) -> None:
        self._known = None if checkpoint else []
        if self._known is not None and self.args.loss_type == "rmu":
            self._known.append(self._forget_log_prob())

    def _after_training(self) -> None:
        if self._known is not None and self.args.loss_type == "rmu":
            self._known.append(self._forget_log_prob())
        few = min(_FEW_BATCHES, len(self._known or ()) // 2)
        if few == 0:
            return
        first, last = (sum(values) / few for values in (self._known[:few], self._known[-few:]))
        if first - last < _HARDLY:
            logger.warning(
                f"The forget answers' tokens have a log-probability of {last:.2f}, and had {first:.2f} at first: "
                "hardly anything was forgotten. Train with a learning_rate above "
                f"{self.args.learning_rate:g}, or for more epochs."
            )

    def _forget_log_prob(self) -> float:
        """Mean log-probability of the tokens of a few batches of forget answers: RMU's own passes make no logits."""
        log_probs = [scores.log_probs for _, scores in self._score_forget_rows(_FEW_BATCHES)]
        return torch.cat(log_probs).float().mean().item()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """
        Not offered: the loss does not say what was forgotten.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "The loss says nothing of what was forgotten. Measure trainer.model with uld_hf.evaluation.evaluation, or "
            "the saved model with `uld eval`."
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of the unlearned model to the output folder, in place of trl's."""
        if self.is_world_process_zero():
            card = unlearn_card(
                self.args, self._num_rows, self._target_name, self._target_license, self.state.global_step
            )
            os.makedirs(self.args.output_dir, exist_ok=True)
            card.save(os.path.join(self.args.output_dir, "README.md"))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        output_dir = output_dir if output_dir is not None else self.args.output_dir
        is_checkpoint = Path(output_dir).name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
        merged = self.args.merge_adapter and not is_checkpoint  # training goes on from the adapter
        check_output_dir(output_dir, self._target_name or "")
        if merged:
            # A second model would have no room on the device. One in 4 bits has its scales beside its weights.
            quantized = "quantization_config" in vars(self.model.get_base_model().config)
            weights = {} if quantized else {id(each): each.detach().cpu().clone() for each in self.model.parameters()}
            memo = {key: nn.Parameter(weight, requires_grad=False) for key, weight in weights.items()}
            copy.deepcopy(self.model, memo).merge_and_unload().save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)
        else:
            super()._save(output_dir, state_dict)
        _remove_other_form(output_dir, is_adapter=isinstance(self.model, PeftModel) and not merged)
        # A pickle, with the hub token in it, that nothing reads.
        Path(output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: a model that has not forgotten yet is not uploaded."""

    def _upload(
        self, folder: str, commit_message: str, token: str | None, revision: str | None, run_as_future: bool
    ) -> CommitInfo | Future[CommitInfo]:
        """Other weights there are deleted, or an adapter would be loaded onto these; the history keeps them."""
        self.create_model_card()
        return HfApi(token=token or self.args.hub_token).upload_folder(
            repo_id=self.hub_model_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision or self.args.hub_revision,
            allow_patterns=[file.name for file in Path(folder).iterdir() if _is_of_model(file)],
            delete_patterns=[*_OF_MODEL, *ADAPTER_FILES, "*.bin"],
            run_as_future=run_as_future,
        )


def _is_of_model(file: Path) -> bool:
    """Whether a file of an output folder is part of the saved model, its code included."""
    return file.is_file() and (file.name in _FILES or file.suffix in (".safetensors", ".py"))


def _remove_other_form(folder: str, is_adapter: bool) -> None:
    """Delete a model where an adapter has been saved, or the other way round: the two would load as one."""
    for pattern in _OF_MODEL if is_adapter else ADAPTER_FILES:
        for file in Path(folder).glob(pattern):
            file.unlink()
