"""uld_hf: LLM unlearning that drops into the Hugging Face stack ("Unlearning from Logit Difference", NeurIPS 2024).

    training/    train an assistant: ULDTrainer, ULDConfig
    bake/        distil the unlearned model into one plain checkpoint: ULDBakeTrainer, ULDBakeConfig
    modeling_uld.py, logits_process.py    use it: ULDForCausalLM, ULDLogitsProcessor
    hub.py, saved_files.py, publish.py, model_card.py    save it, know its target, push it
    baselines/   the methods it is compared with: UnlearnTrainer, UnlearnConfig
    data/        forget and retain sets: TOFU, invented people
    evaluation/  know what was forgotten: TOFU, memorisation, privacy, verbatim, sweeps over settings
    compare/     target and unlearned answers beside each other, in a browser
    cli/         the `uld` command

Importing the package makes `AutoModelForCausalLM` and `pipeline()` know `ULDForCausalLM`, whether transformers was
imported before or comes after. Everything is imported when it is first used, so that this costs next to nothing, and
inference needs neither trl nor datasets.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt


if TYPE_CHECKING:
    from .assistant import build_assistant
    from .bake.bake_config import ULDBakeConfig
    from .bake.bake_trainer import ULDBakeTrainer
    from .baselines.offset_trainer import OffsetConfig, OffsetTrainer
    from .baselines.unlearn_config import UnlearnConfig
    from .baselines.unlearn_trainer import UnlearnTrainer
    from .configuration_uld import ULDModelConfig
    from .data.fictitious import fictitious_dataset, invent_people, split_people
    from .data.formatting import question_answer_to_prompt_completion
    from .data.tofu import load_tofu
    from .logits_process import ULDLogitsProcessor
    from .modeling_uld import ULDForCausalLM
    from .subtraction import logit_difference
    from .training.estimate import estimate_training
    from .training.uld_config import ULDConfig
    from .training.uld_trainer import ULDTrainer

__version__ = "0.1.0"

_LAZY = {
    "OffsetConfig": ".baselines.offset_trainer",
    "OffsetTrainer": ".baselines.offset_trainer",
    "ULDBakeConfig": ".bake.bake_config",
    "ULDBakeTrainer": ".bake.bake_trainer",
    "ULDConfig": ".training.uld_config",
    "ULDForCausalLM": ".modeling_uld",
    "ULDLogitsProcessor": ".logits_process",
    "ULDModelConfig": ".configuration_uld",
    "ULDTrainer": ".training.uld_trainer",
    "UnlearnConfig": ".baselines.unlearn_config",
    "UnlearnTrainer": ".baselines.unlearn_trainer",
    "build_assistant": ".assistant",
    "estimate_training": ".training.estimate",
    "fictitious_dataset": ".data.fictitious",
    "invent_people": ".data.fictitious",
    "load_tofu": ".data.tofu",
    "logit_difference": ".subtraction",
    "question_answer_to_prompt_completion": ".data.formatting",
    "split_people": ".data.fictitious",
}

__all__ = [
    "OffsetConfig",
    "OffsetTrainer",
    "ULDBakeConfig",
    "ULDBakeTrainer",
    "ULDConfig",
    "ULDForCausalLM",
    "ULDLogitsProcessor",
    "ULDModelConfig",
    "ULDTrainer",
    "UnlearnConfig",
    "UnlearnTrainer",
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


@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _register(auto: ModuleType) -> None:
    """Make AutoConfig know `ULDModelConfig` as soon as AutoConfig is there; to import it here would import torch."""
    importlib.import_module(".configuration_uld", __name__)
