"""`UnlearnConfig`: by which rival method a model's weights are changed."""

import math
from dataclasses import dataclass, field

from trl import SFTConfig

from ..training.uld_config import check_choice, check_data_settings, fit_to_machine


LOSS_TYPES = ("ga", "npo", "simnpo", "dpo", "undial", "rmu")
RETAIN_LOSS_TYPES = ("none", "nll", "kl", "activations")

# NPO and DPO: arXiv 2404.05868. SimNPO: the authors' for TOFU forget10 (OPTML-Group/Unlearn-Simple, TOFU/README.md:
# beta=4.5, and 2.5 for forget05). UNDIAL: OpenUnlearning's (configs/trainer/UNDIAL.yaml).
DEFAULT_BETAS = {"npo": 0.1, "dpo": 0.1, "simnpo": 4.5, "undial": 10.0}
# SimNPO's forget term has a weight of 0.125 there, and its retain term 1.
DEFAULT_RETAIN_WEIGHTS = {"simnpo": 8.0}
# As in TOFU for all weights of a 7B model; with LoRA's second factors, which begin at 0, as much would change nothing.
LEARNING_RATE, LORA_LEARNING_RATE = 1e-5, 1e-4


@dataclass
class UnlearnConfig(SFTConfig):
    r"""
    Configuration class for the [`UnlearnTrainer`].

    Only the parameters specific to unlearning are listed; all of [`~trl.SFTConfig`] and
    [`~transformers.TrainingArguments`] is available too.

    Parameters:
        > Parameters that choose the method

        loss_type (`str`, *optional*, defaults to `"npo"`):
            Term of the forget set: `"ga"` (gradient ascent), `"npo"`, `"simnpo"`, `"dpo"` (with refusals), `"undial"`
            or `"rmu"`. See [`uld_hf.baselines.losses`] for papers and equations.
        retain_loss_type (`str`, *optional*):
            Term of the retain set: `"none"`, `"nll"` (gradient difference), `"kl"` (to the target) or, for `"rmu"`,
            `"activations"`. Defaults to the latter for `"rmu"`, else to `"nll"`.
        retain_weight (`float`, *optional*):
            Weight of the retain term; the forget term's is 1. Defaults to 1, and to 8 for `"simnpo"`, whose authors
            weigh the forget term 0.125 on TOFU forget10 (OPTML-Group/Unlearn-Simple, TOFU/README.md: `npo_coeff`).

        > Parameters of the methods

        beta (`float`, *optional*):
            Inverse temperature of `"npo"` (0.1), `"dpo"` (0.1) and `"simnpo"` (4.5), or how far `"undial"` lowers the
            memorized token's logit (10).
        margin (`float`, *optional*, defaults to `0.0`):
            SimNPO's margin: beta times the gamma of the authors' code, which is 0 there too.
        refusals (`list[str]`, *optional*):
            Answers that `"dpo"` prefers. Defaults to [`uld_hf.baselines.refusals.REFUSALS`], in English.
        steering_layer (`int`, *optional*):
            Decoder layer l, from 0, after which `"rmu"` steers the activations. It and the two below it are trained,
            and nothing else. Defaults to about 7/32 of the depth, as in the paper.
        steering_coefficient (`float`, *optional*):
            RMU's c, the length of the vector that activations are steered to. It must exceed the activations' own
            length, which differs much between models. Defaults to 6.5, the paper's for one of them.

        > Parameters that control the training

        learning_rate (`float`, *optional*):
            The initial learning rate. Defaults to 1e-5, TOFU's for all weights of a 7B model, and to 1e-4 with LoRA.
        retain_per_forget (`float`, *optional*, defaults to `1.0`):
            Retain rows for each forget row, in every batch. An epoch is one pass over the forget set.
        merge_adapter (`bool`, *optional*, defaults to `False`):
            With LoRA, whether `save_model` writes the whole model with LoRA merged into it, instead of the adapter.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `num_train_epochs`: 5, `per_device_train_batch_size`: 32, `weight_decay`: 0.01 as in TOFU. `warmup_steps`: 0.1
    >   (a fraction).
    > - `gradient_checkpointing`: off; say `activation_checkpointing=True` where memory is short.
    > - `bf16`: `True` only where the accelerator has it, instead of everywhere.
    > - `dataloader_pin_memory`: `True` only where there is an accelerator.
    > - `hub_private_repo`: `True`.
    """

    learning_rate: float | None = field(
        default=None, metadata={"help": "The initial learning rate for AdamW. Default: 1e-5, and 1e-4 with LoRA."}
    )
    num_train_epochs: float = field(default=5.0, metadata={"help": "Number of passes over the forget set."})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Rows per device and step, forget and retain together."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps of linear warm-up; below 1, the fraction of all steps."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Old name of activation_checkpointing, which recomputes to save memory."}
    )
    hub_private_repo: bool | None = field(default=True, metadata={"help": "Whether a pushed repository is private."})

    loss_type: str = field(
        default="npo", metadata={"help": "Term of the forget set, see --method.", "choices": list(LOSS_TYPES)}
    )
    retain_loss_type: str | None = field(
        default=None,
        metadata={
            "help": "Term of the retain set: none, nll (with ga: gradient difference), kl (to the target), or for rmu "
            "activations. Default: nll, for rmu activations.",
            "choices": list(RETAIN_LOSS_TYPES),
        },
    )
    retain_weight: float | None = field(
        default=None, metadata={"help": "Weight of the retain term; the forget term's is 1. Default: 1; simnpo 8."}
    )
    beta: float | None = field(
        default=None,
        metadata={"help": "Inverse temperature of npo (0.1), dpo (0.1), simnpo (4.5); strength of undial (10)."},
    )
    margin: float = field(default=0.0, metadata={"help": "Margin of simnpo, beta times its gamma."})
    refusals: list[str] | None = field(
        default=None, metadata={"help": "Answers that dpo prefers. Default: twenty in English."}
    )
    steering_layer: int | None = field(
        default=None, metadata={"help": "Layer, from 0, after which rmu steers. Default: about 7/32 of the depth."}
    )
    steering_coefficient: float | None = field(
        default=None,
        metadata={"help": "Length of the vector that rmu steers to (6.5); above that of the activations."},
    )
    retain_per_forget: float = field(default=1.0, metadata={"help": "Retain rows for each forget row, in every batch."})
    merge_adapter: bool = field(
        default=False, metadata={"help": "With LoRA, save the whole model with LoRA merged into it, not the adapter."}
    )

    def __post_init__(self):
        fit_to_machine(self)
        super().__post_init__()
        check_choice("loss_type", self.loss_type, LOSS_TYPES)
        if self.retain_loss_type is None:
            self.retain_loss_type = "activations" if self.loss_type == "rmu" else "nll"
        check_choice("retain_loss_type", self.retain_loss_type, RETAIN_LOSS_TYPES)
        if self.retain_loss_type == "activations" and self.loss_type != "rmu":
            raise ValueError("retain_loss_type='activations' belongs to loss_type='rmu'. Use 'none', 'nll' or 'kl'.")
        if self.beta is not None and self.loss_type not in DEFAULT_BETAS:
            raise ValueError(f"loss_type={self.loss_type!r} has no beta: leave it out.")
        if self.beta is None:
            self.beta = DEFAULT_BETAS.get(self.loss_type)
        if self.retain_weight is None:
            self.retain_weight = DEFAULT_RETAIN_WEIGHTS.get(self.loss_type, 1.0)
        if self.margin and self.loss_type != "simnpo":
            raise ValueError(f"margin={self.margin}: loss_type={self.loss_type!r} has none, only 'simnpo' has.")
        if self.loss_type == "rmu" and self.steering_coefficient is None:
            self.steering_coefficient = 6.5
        for name in ("steering_layer", "steering_coefficient"):
            if self.loss_type != "rmu" and vars(self)[name] is not None:
                raise ValueError(f"{name}={vars(self)[name]}: loss_type={self.loss_type!r} steers nothing, 'rmu' does.")
        if self.refusals is not None:
            if self.loss_type != "dpo":
                raise ValueError(f"loss_type={self.loss_type!r} has no refusals, only 'dpo' has: leave them out.")
            if not self.refusals or not all(isinstance(text, str) and text.strip() for text in self.refusals):
                raise ValueError(f"refusals={self.refusals!r} must be texts, at least one.")
        if self.loss_type == "dpo" and self.completion_only_loss is False:
            raise ValueError(
                "completion_only_loss=False does not go with loss_type='dpo': answers are compared with refusals, and "
                "the question is the same in both. Leave it out."
            )
        for name in ("learning_rate", "retain_weight", "retain_per_forget", "beta", "steering_coefficient"):
            value = vars(self)[name]
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be a finite number above 0.")
        if not math.isfinite(self.margin):
            raise ValueError(f"margin={self.margin} must be a finite number.")
        check_data_settings(self)
        if self.padding_free:
            raise ValueError("padding_free=True is not supported: some methods need the likelihood of each row.")
