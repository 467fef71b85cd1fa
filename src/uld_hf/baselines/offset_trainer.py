"""`OffsetTrainer`: an assistant that unlearns for a target, whose weights stay as they are."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..assistant import build_assistant, check_num_layers, lora_weights, truncate_model
from ..modeling_uld import ULDForCausalLM
from ..training.four_bit import keep_gradients
from ..training.target import place_whole
from .scores import Scores, log_likelihoods
from .unlearn_config import UnlearnConfig
from .unlearn_trainer import UnlearnTrainer


@dataclass
class OffsetConfig(UnlearnConfig):
    r"""
    Configuration class for the [`OffsetTrainer`].

    Only the parameters that [`UnlearnConfig`] does not have are listed.

    Parameters:
        num_assistant_layers (`int`, *optional*, defaults to `8`):
            Number K of the target's first decoder layers that the assistant runs on.
        offset_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the offset. The paper's is 1.
    """

    num_assistant_layers: int = field(
        default=8, metadata={"help": "Number of the target's first layers that the assistant runs on."}
    )
    offset_weight: float = field(default=1.0, metadata={"help": "Weight of what the assistant has changed."})

    def __post_init__(self):
        super().__post_init__()
        if self.loss_type == "rmu":
            raise ValueError("loss_type='rmu' steers activations, and an offset has none of the target's: use another.")
        if self.merge_adapter:
            raise ValueError("merge_adapter=True: the target does not change, there is nothing to merge into it.")
        if self.push_to_hub:
            raise ValueError("push_to_hub=True is not supported here: save the model, then push it with `uld push`.")
        if not (math.isfinite(self.offset_weight) and self.offset_weight > 0):
            raise ValueError(f"offset_weight={self.offset_weight} must be a finite number above 0.")
        if self.num_assistant_layers < 1:
            raise ValueError(f"num_assistant_layers={self.num_assistant_layers} must be at least 1.")


class OffsetTrainer(UnlearnTrainer):
    """
    Trainer of Offset unlearning (arXiv 2404.11045): any of [`UnlearnTrainer`]'s losses, on the logits
    `target + offset_weight * (assistant - untrained assistant)`, of which the assistant alone is trained.

    The paper's assistants are smaller models of the target's family; here it is LoRA on the target's first K layers, as
    ULD's is. The target's and the untrained assistant's logits are computed at every step, without gradients. What is
    saved is an unlearned model with two assistants, `"trained"` and `"untrained"`: load it with [`ULDForCausalLM`].

    It takes what [`UnlearnTrainer`] takes, with an [`OffsetConfig`]. `peft_config` is the assistant's LoRA and defaults
    to rank 32, alpha 32, all linear layers but the head. `model` is not changed.

    Raises:
        TypeError: As in [`UnlearnTrainer`].
        ValueError: As in [`UnlearnTrainer`], or if the target has fewer layers.
    """

    _name = "Offset"
    _tag_names = ("unlearning", "offset")
    _trains_all = False

    def _build_model(
        self, model: PreTrainedModel, args: OffsetConfig, peft_config: PeftConfig | None
    ) -> tuple[PeftModel, None]:
        check_num_layers(args.num_assistant_layers, model.config)
        place_whole(model, args)
        keep_gradients(model)
        self._target = model.requires_grad_(False).eval()
        self._untrained = truncate_model(model, args.num_assistant_layers)
        return build_assistant(model, args.num_assistant_layers, peft_config), None

    def _score(
        self,
        model: nn.Module,
        batch: dict[str, torch.Tensor],
        with_logits: bool = False,
        with_activations: bool = False,
    ) -> Scores:
        with torch.no_grad():
            target = UnlearnTrainer._score(self, self._target, batch, with_logits=True).logits
            untrained = UnlearnTrainer._score(self, self._untrained, batch, with_logits=True).logits
        scores = UnlearnTrainer._score(self, model, batch, with_logits=True)
        scores.logits = target + self.args.offset_weight * (scores.logits - untrained)
        labels = batch["labels"][:, 1:]
        scores.log_probs = log_likelihoods(scores.logits, labels[labels != -100])
        return scores

    def _score_target(self, rows: dict[str, torch.Tensor]) -> Scores:
        return UnlearnTrainer._score(self, self._target, rows, with_logits=True)

    def compose(self) -> ULDForCausalLM:
        """
        The unlearned model as it is now.

        Returns:
            [`ULDForCausalLM`]: Target, assistant and untrained assistant; a copy of the assistant's LoRA.
        """
        args = self.args
        # Untrained LoRA changes nothing: the least of it will do.
        none = LoraConfig(task_type="CAUSAL_LM", r=1, target_modules="all-linear")
        model = ULDForCausalLM(
            target=self._target,
            assistant={
                "trained": self.model,
                "untrained": build_assistant(self._target, args.num_assistant_layers, none),
            },
            alpha={"trained": -args.offset_weight, "untrained": args.offset_weight},
            relative_top=0.0,
            center=False,
        )
        names = ("loss_type", "retain_loss_type", "retain_weight", "beta", "learning_rate", "num_train_epochs", "seed")
        settings = {"method": "offset", "steps": self.state.global_step, **{name: vars(args)[name] for name in names}}
        model.config.target_revision = self._target_revision
        model.config.training["trained"] = {
            **self._num_rows,
            "license": self._target_license,
            "settings": {name: value for name, value in settings.items() if value is not None},
        }
        return model

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """Nothing: the card is written with the model."""

    def push_to_hub(self, *args: object, **kwargs: object) -> None:
        """
        Not offered: what is pushed here is one model or one adapter.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("Save the model, then push it with `uld push` or its own push_to_hub().")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        output_dir = output_dir if output_dir is not None else self.args.output_dir
        if Path(output_dir).name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):  # training goes on from the adapter
            weights = lora_weights(self.model) if state_dict is None else state_dict
            self.model.save_pretrained(output_dir, save_embedding_layers=False, state_dict=weights)
        else:
            self.compose().save_pretrained(output_dir)
        self.processing_class.save_pretrained(output_dir)
