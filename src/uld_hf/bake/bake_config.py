"""`ULDBakeConfig`: how an unlearned model is distilled into plain weights."""

import math
from dataclasses import dataclass, field

from trl import SFTConfig

from ..training.uld_config import check_choice, check_data_settings, fit_to_machine
from .losses import DIVERGENCES


@dataclass
class ULDBakeConfig(SFTConfig):
    r"""
    Configuration class for the [`ULDBakeTrainer`].

    Only the parameters specific to baking are listed; all of [`~trl.SFTConfig`] and [`~transformers.TrainingArguments`]
    is available too.

    Parameters:
        > Parameters that control the loss

        divergence (`str`, *optional*, defaults to `"forward_kl"`):
            What the student minimizes at each token: `"forward_kl"`, KL(teacher || student); `"reverse_kl"`, KL(student
            || teacher); or `"js"` (Jensen-Shannon).
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of both distributions in the divergence: above 1, what both find improbable counts for more.
        likelihood_weight (`float`, *optional*, defaults to `0.2`):
            Weight of a second term: how far student and teacher are apart in the log-probability of the text's own next
            token (smooth L1), at temperature 1. A divergence hardly sees tokens that the teacher finds improbable, of
            which forgotten text consists. Must be `0` where the teacher rules tokens out (`outside="mask"`,
            `remove_top_k`).
        retain_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the mean divergence on what must be kept, beside that on the forget set.
        retain_per_forget (`float`, *optional*, defaults to `1.0`):
            Rows of what must be kept for each forget row, in every batch. An epoch is one pass over the forget set and
            the teacher's answers to it; each epoch sees the next part of the rest.

        > Parameters that control the text on which student and teacher are compared

        teacher_answers (`int`, *optional*, defaults to `4`):
            Answers drawn from the teacher to each prompt of the forget set before training: what the student is to
            say in place of what is forgotten. `0` compares on the given answers only.
        on_policy_fraction (`float`, *optional*, defaults to `0.0`):
            Share of batches whose answers the student draws itself (GKD, arXiv 2306.13649).
        generation_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of these draws.
        max_new_tokens (`int`, *optional*, defaults to `128`):
            Longest answer drawn, in tokens.

        > Parameters that control the teacher

        teacher_top_k (`int`, *optional*):
            Write the teacher's so many most probable tokens to disk once, and all others together as one outcome, and
            compare with these in every epoch instead of running the teacher. It takes `8 k + 8` bytes a token.
        teacher_cache_dir (`str`, *optional*):
            Folder for that and for the teacher's answers, to use them in another run. Defaults to the output folder,
            where they are removed at the end.

        > Parameters that control the student

        noise (`float`, *optional*, defaults to `0.0`):
            Share of fresh weights mixed into the student before it is trained (UNDO, arXiv 2506.06278): the more, the
            less is left to relearn from, and the longer the training must be. Not with LoRA.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `num_train_epochs`: 10, for a student that has not come near its teacher knows what the target knows.
    > - `gradient_checkpointing`: off; say `activation_checkpointing=True` where memory is short.
    > - `bf16`: `True` only where the accelerator has it, instead of everywhere.
    > - `dataloader_pin_memory`: `True` only where there is an accelerator.
    > - `hub_private_repo`: `True`.
    >
    > Without LoRA the student is trained in float32; what is saved has the target's own type.
    """

    num_train_epochs: float = field(
        default=10.0, metadata={"help": "Number of passes over the forget set and the teacher's answers."}
    )

    divergence: str = field(
        default="forward_kl",
        metadata={"help": "What the student minimizes at each token.", "choices": list(DIVERGENCES)},
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of both distributions in the divergence."})
    likelihood_weight: float = field(
        default=0.2,
        metadata={"help": "Weight of the difference in the log-probability of the text's own tokens, beside it."},
    )
    retain_weight: float = field(default=1.0, metadata={"help": "Weight of the divergence on what must be kept."})
    retain_per_forget: float = field(
        default=1.0, metadata={"help": "Rows of what must be kept for each forget row, in every batch."}
    )
    teacher_answers: int = field(
        default=4, metadata={"help": "Answers drawn from the unlearned model to each prompt of the forget set."}
    )
    on_policy_fraction: float = field(
        default=0.0, metadata={"help": "Share of batches whose answers the student draws itself (GKD)."}
    )
    generation_temperature: float = field(default=1.0, metadata={"help": "Temperature of drawn answers."})
    max_new_tokens: int = field(default=128, metadata={"help": "Longest answer drawn, in tokens."})
    teacher_top_k: int | None = field(
        default=None,
        metadata={"help": "Keep the teacher's so many most probable tokens on disk, and do not run it again."},
    )
    teacher_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder for what the teacher said, to use it in another run."}
    )
    noise: float = field(
        default=0.0,
        metadata={"help": "Share of fresh weights mixed into the student at the start (UNDO); not with LoRA."},
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Old name of activation_checkpointing, which recomputes to save memory."}
    )
    hub_private_repo: bool | None = field(default=True, metadata={"help": "Whether a pushed repository is private."})
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Whether to train in bf16 mixed precision. Defaults to where the accelerator has it."},
    )

    def __post_init__(self):
        fit_to_machine(self)
        super().__post_init__()
        check_choice("divergence", self.divergence, DIVERGENCES)
        check_data_settings(self)
        positive = ("temperature", "retain_weight", "retain_per_forget", "generation_temperature")
        for name in positive:
            if not (math.isfinite(vars(self)[name]) and vars(self)[name] > 0):
                raise ValueError(f"{name}={vars(self)[name]} must be a finite number above 0.")
        if not (math.isfinite(self.likelihood_weight) and self.likelihood_weight >= 0):
            raise ValueError(f"likelihood_weight={self.likelihood_weight} must be a finite number, at least 0.")
        for name in ("on_policy_fraction", "noise"):
            if not 0 <= vars(self)[name] <= 1:  # also refuses NaN
                raise ValueError(f"{name}={vars(self)[name]} must lie between 0 and 1.")
        if self.teacher_answers < 0:
            raise ValueError(f"teacher_answers={self.teacher_answers} must be at least 0.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1.")
        if self.teacher_top_k is not None and self.teacher_top_k < 1:
            raise ValueError(f"teacher_top_k={self.teacher_top_k} must be at least 1; leave it out to keep nothing.")
        if self.padding_free:
            raise ValueError(
                "padding_free=True is not supported: the rows of a batch are looked up, and answered, one by one."
            )
        if self.load_best_model_at_end:
            raise ValueError("load_best_model_at_end=True is not supported: the last student is the one that is saved.")
        if self.loss_type != "nll":
            raise ValueError(f"loss_type={self.loss_type!r} has no meaning here: choose a divergence.")
