"""uld_hf: LLM unlearning that drops into the Hugging Face stack ("Unlearning from Logit Difference", NeurIPS 2024).

    training/    train an assistant: ULDTrainer, ULDConfig
    modeling_uld.py, logits_process.py    use it: ULDForCausalLM, ULDLogitsProcessor
    hub.py, saved_files.py, publish.py, model_card.py    save it, know its target, push it
    data/        forget and retain sets: TOFU, invented people
    evaluation/  know what was forgotten: TOFU, memorisation, privacy, verbatim, sweeps over settings
    cli/         the `uld` command

Importing the package makes `AutoModelForCausalLM` and `pipeline()` know `ULDForCausalLM`. The names of the training and
data rooms are imported when they are first used, so that inference needs neither trl nor datasets.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .assistant import build_assistant
from .configuration_uld import ULDModelConfig
from .logit_difference import logit_difference
from .logits_process import ULDLogitsProcessor
from .modeling_uld import ULDForCausalLM


if TYPE_CHECKING:
    from .data.fictitious import fictitious_dataset, invent_people, split_people
    from .data.formatting import question_answer_to_prompt_completion
    from .data.tofu import load_tofu
    from .training.estimate import estimate_training
    from .training.uld_config import ULDConfig
    from .training.uld_trainer import ULDTrainer

__version__ = "0.1.0"

_LAZY = {
    "ULDConfig": ".training.uld_config",
    "ULDTrainer": ".training.uld_trainer",
    "estimate_training": ".training.estimate",
    "fictitious_dataset": ".data.fictitious",
    "invent_people": ".data.fictitious",
    "load_tofu": ".data.tofu",
    "question_answer_to_prompt_completion": ".data.formatting",
    "split_people": ".data.fictitious",
}

__all__ = [
    "ULDConfig",
    "ULDForCausalLM",
    "ULDLogitsProcessor",
    "ULDModelConfig",
    "ULDTrainer",
    "build_assistant",
    "estimate_training",
    "fictitious_dataset",
    "invent_people",
    "load_tofu",
    "logit_difference",
    "question_answer_to_prompt_completion",
    "split_people",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
