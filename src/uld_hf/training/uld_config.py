"""`ULDConfig`: how an assistant is trained, and with which settings it is saved."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import ParallelismConfig
from accelerate.utils import parse_flag_from_env
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from ..configuration_uld import SETTINGS_OF_ONE
from ..subtraction import check_subtraction, clamp_or_default
from .checkpointing import check_recomputes


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """
    Refuse a value that is not one of a setting's choices, and name them.

    Args:
        name (`str`):
            Name of the setting.
        value (`object`):
            Its value.
        choices (`Sequence[str]`):
            What it may be.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}.")


def fit_to_machine(config: SFTConfig) -> None:
    """
    Settle what depends on the accelerator: bf16, where nobody has said, and pinned memory.

    Args:
        config ([`~trl.SFTConfig`]):
            The trainer's configuration, before transformers looks at it.
    """
    if config.bf16 is None:
        config.bf16 = is_torch_bf16_gpu_available() and not config.fp16 and not config.use_cpu
    # Pinned memory is an accelerator's: torch warns where there is none.
    config.dataloader_pin_memory = config.dataloader_pin_memory and torch.accelerator.is_available()


def check_data_settings(config: SFTConfig) -> None:
    """
    Refuse settings of trl that do not go with two sets of rows on the target's own vocabulary.

    Args:
        config ([`~trl.SFTConfig`]):
            The trainer's configuration.

    Raises:
        ValueError: If rows would be packed, drawn in another order, not prepared, or split between processes, the
            embeddings resized, labels smoothed, or another set evaluated on.
    """
    parallelism = config.parallelism_config
    if parallelism is None and parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"):
        parallelism = ParallelismConfig()  # of `accelerate launch`, as the trainer will read it
    if parallelism is not None and parallelism.non_data_parallel_size > 1:
        raise ValueError(
            f"Tensor, context and sequence parallelism are not supported ({' '.join(str(parallelism).split())}): the "
            "loss needs whole rows. Use data parallelism: DDP, FSDP or DeepSpeed ZeRO (examples/accelerate)."
        )
    if config.packing:
        raise ValueError(
            "packing=True is not supported: it would mix forget and retain rows in any ratio. Leave it out."
        )
    if config.train_sampling_strategy not in ("group_by_length", "random"):
        raise ValueError(
            f"train_sampling_strategy={config.train_sampling_strategy!r} would not mix forget and retain rows. Use "
            "'group_by_length' or 'random'."
        )
    if config.dataset_kwargs:
        raise ValueError(
            f"dataset_kwargs={config.dataset_kwargs} is not supported (skip_prepare_dataset would leave out the "
            "retain set). Pass tokenized rows as they are: they are not tokenized again."
        )
    if config.chat_template_path is not None:
        raise ValueError(
            f"chat_template_path={config.chat_template_path!r} is not supported: it may resize the embeddings, which "
            "are the target's own. Set processing_class.chat_template instead."
        )
    if config.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={config.label_smoothing_factor} is not supported: the losses here are their "
            "papers' own. Leave it out."
        )
    if config.eval_strategy != "no" or config.eval_on_start:
        asked = "eval_on_start=True" if config.eval_on_start else f"eval_strategy={config.eval_strategy.value!r}"
        raise ValueError(
            f"{asked} is not supported: there is no set to evaluate on beside these two, and a loss says nothing of "
            "what was forgotten. Leave it out, and measure what is saved with uld_hf.evaluation or `uld eval`."
        )


def check_keep_products(config: "ULDConfig") -> None:
    """
    Refuse to keep products of layers that are not computed again, or not in a way that could keep them.

    Args:
        config ([`ULDConfig`]):
            Configuration of the training.

    Raises:
        ValueError: If `keep_products` would have no effect.
    """
    check_recomputes(config.keep_products, config.activation_checkpointing)
    if not config.keep_products:
        return
    others = {"use_reentrant", "selective"} & {
        name for name, value in (config.activation_checkpointing_kwargs or {}).items() if value
    }
    if others:
        raise ValueError(
            f"keep_products=True does not go with {sorted(others)} in activation_checkpointing_kwargs. Leave them out."
        )
    if config.deepspeed_plugin is not None and config.deepspeed_plugin.zero_stage == 3:
        raise ValueError(
            "keep_products=True does not go with DeepSpeed ZeRO-3, which needs use_reentrant. Use ZeRO-2 or DDP, or "
            "leave it out."
        )


@dataclass
class ULDConfig(SFTConfig):
    r"""
    Configuration class for the [`ULDTrainer`].

    Only the parameters specific to ULD are listed; all of [`~trl.SFTConfig`] and [`~transformers.TrainingArguments`]
    is available too. The defaults of training are the paper's settings for TOFU on a pretrained 7B target (section 4.1
    and appendix); a small target trained from scratch needs more layers and steps. Those for inference are this
    project's study's: the paper subtracts with `alpha=0.75, center=False`.

    Parameters:
        > Parameters that control the assistant

        num_assistant_layers (`int`, *optional*, defaults to `8`):
            Number K of the target's first decoder layers that the assistant runs on. The paper uses 8 of 32.

        > Parameters that control the training

        objective (`str`, *optional*, defaults to `"uld"`):
            `"uld"` remembers the forget set and is uniform on the retain set. `"likelihood"` learns one set and nothing
            else, as Divergence Decoding's auxiliaries do (arXiv 2605.31293): the forget set with a positive `alpha`, or
            the retain set with a negative one. The other set is left out then.
        retain_weight (`float`, *optional*, defaults to `6.5`):
            Weight of the retain term, the paper's beta.
        retain_per_forget (`float`, *optional*, defaults to `1.0`):
            Retain rows for each forget row, in every batch. An epoch is one pass over the forget set, whatever the size
            of the retain set; each epoch sees the next part of the retain set.
        padding_free (`bool`, *optional*):
            Put the rows of a batch one after another into one sequence, instead of padding them: the same result in
            less time and memory. Defaults to doing so where the attention is sdpa or flash attention, and the model is
            found to keep rows apart.
        keep_products (`bool`, *optional*, defaults to `False`):
            With `activation_checkpointing`, keep matrix products and attention, and compute again only what is cheap:
            less memory is saved, at little time.
        train_sampling_strategy (`str`, *optional*, defaults to `"group_by_length"`):
            Where rows are padded, put rows of similar lengths into a step (`"group_by_length"`), or leave the order to
            chance (`"random"`). Either way every step has the same share of both sets.

        > Parameters that are saved with the assistant, for inference

        alpha (`float`, *optional*, defaults to `1.25`):
            Weight with which the assistant's logits are subtracted. The paper uses 0.75 on TOFU and 0.5 on books, with
            `center=False`.
            Negative for an assistant that learned the retain set: it is added, beside one that is subtracted.
        relative_top (`float`, *optional*, defaults to `0.01`):
            Subtract only at tokens whose target probability is at least this fraction of the most probable token's;
            `0` subtracts everywhere.
        outside (`str`, *optional*, defaults to `"keep"`):
            Tokens left out by `relative_top` keep the target's logits (`"keep"`) or can't be chosen (`"mask"`).
        center (`bool`, *optional*, defaults to `True`):
            Subtract the assistant's `log p + log V`, so that a uniform assistant changes nothing.
        clamp (`bool`, *optional*, defaults to the value of `center`):
            Do not lift the tokens that the assistant finds less probable than a uniform guess (not in the paper).
        remove_top_k (`int`, *optional*, defaults to `0`):
            Instead of subtracting, rule out so many tokens, those with the highest weighted sum of the assistants'
            logits (Divergence Decoding's rank variant, not in the paper).
        gate (`float`, *optional*, defaults to `0.0`):
            Subtract only at positions where the assistant is surer than this (0: uniform, 1: one token); elsewhere the
            target's logits are kept to the bit (not in the paper).
        by_certainty (`bool`, *optional*, defaults to `False`):
            Multiply `alpha` by how sure the assistant is, 0 to 1, at every position (not in the paper).

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `learning_rate`: 1e-3, `num_train_epochs`: 10, `per_device_train_batch_size`: 32, `weight_decay`: 0.01 and
    >   `warmup_steps`: 0.1 (a fraction), as in the paper and its code.
    > - `gradient_checkpointing`: off, as only K layers are trained; say `activation_checkpointing=True` where memory is
    >   short.
    > - `bf16`: `True` only where the accelerator has it, instead of everywhere.
    > - `dataloader_pin_memory`: `True` only where there is an accelerator.
    > - `hub_private_repo`: `True`, because the assistant is a concentrated copy of the forget set.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "The initial learning rate for AdamW."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Number of passes over the forget set."})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Rows per device and step, forget and retain together."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps of linear warm-up; below 1, the fraction of all steps."}
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Recompute activations in the backward pass to save memory. Old name of activation_checkpointing."
        },
    )
    hub_private_repo: bool | None = field(
        default=True,
        metadata={"help": "Whether a pushed repository is private. The assistant is a copy of the forget set."},
    )

    num_assistant_layers: int = field(
        default=8, metadata={"help": "Number of the target's first layers that the assistant runs on."}
    )
    objective: str = field(
        default="uld",
        metadata={
            "help": "What the assistant learns: ULD's two terms, or the likelihood of one set, as auxiliaries of "
            "Divergence Decoding do.",
            "choices": ["uld", "likelihood"],
        },
    )
    retain_weight: float = field(default=6.5, metadata={"help": "Weight of the retain term (the paper's beta)."})
    retain_per_forget: float = field(default=1.0, metadata={"help": "Retain rows for each forget row, in every batch."})
    padding_free: bool | None = field(
        default=None,
        metadata={
            "help": "Put the rows of a batch one after another, without padding. By default where the attention is "
            "sdpa or flash attention and the model keeps rows apart."
        },
    )
    keep_products: bool = field(
        default=False,
        metadata={
            "help": "With activation_checkpointing, keep matrix products and attention, and compute again only what is "
            "cheap."
        },
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "Where rows are padded: put rows of similar lengths into a step, or leave the order to chance.",
            "choices": ["group_by_length", "random"],
        },
    )
    alpha: float = field(
        default=1.25, metadata={"help": "Weight with which the assistant's logits are subtracted at inference."}
    )
    relative_top: float = field(
        default=0.01,
        metadata={
            "help": "At inference, subtract only at tokens whose target probability is at least this fraction of the "
            "most probable token's; 0 subtracts everywhere."
        },
    )
    outside: str = field(
        default="keep",
        metadata={
            "help": "What happens at inference to the tokens left out by relative_top: they keep the target's logits, "
            "or are masked.",
            "choices": ["keep", "mask"],
        },
    )
    center: bool = field(
        default=True, metadata={"help": "Center the assistant's logits, so that a uniform assistant changes nothing."}
    )
    clamp: bool | None = field(
        default=None,
        metadata={
            "help": "At inference, do not lift the tokens that the assistant finds less probable than a guess. By "
            "default on, unless center is off."
        },
    )
    remove_top_k: int = field(
        default=0,
        metadata={
            "help": "At inference, rule out so many tokens, those that the assistants find most typical of what must "
            "be forgotten, instead of subtracting; 0 subtracts."
        },
    )
    gate: float = field(
        default=0.0,
        metadata={
            "help": "At inference, subtract only where the assistant is surer than this (0: uniform, 1: one token)."
        },
    )
    by_certainty: bool = field(
        default=False,
        metadata={"help": "At inference, multiply alpha by how sure the assistant is (0: uniform, 1: one token)."},
    )

    def __post_init__(self):
        fit_to_machine(self)
        super().__post_init__()
        self.clamp = clamp_or_default(self.clamp, self.center)
        check_subtraction(self.alpha, **{name: vars(self)[name] for name in SETTINGS_OF_ONE})
        check_choice("objective", self.objective, ("uld", "likelihood"))
        if self.alpha < 0 and self.objective == "uld":
            raise ValueError(f"alpha={self.alpha} would add what must be forgotten. Use a number above 0, e.g. 1.25.")
        if self.num_assistant_layers < 1:
            raise ValueError(f"num_assistant_layers={self.num_assistant_layers} must be at least 1.")
        for name, value in (("retain_weight", self.retain_weight), ("retain_per_forget", self.retain_per_forget)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be a finite number above 0.")
        check_data_settings(self)
        check_keep_products(self)
        if self.loss_type != "nll":
            raise ValueError(f"loss_type={self.loss_type!r} has no meaning here: the loss is ULD's. Leave it out.")
