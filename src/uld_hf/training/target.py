"""The target as a trainer is given it, a name or a model: looked at before it is trained."""

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import find_adapter_config_file
from trl import SFTConfig

from ..configuration_uld import ULDModelConfig


# A vocabulary is padded to a round number of rows, and a few are reserved; more unused rows than this is a mistake.
_LEAST_VOCABULARY_USE = 0.9

_SOURCE_KWARGS = ("revision", "token", "cache_dir", "subfolder", "trust_remote_code", "local_files_only")


def check_processes(args: TrainingArguments) -> None:
    """
    Refuse several GPUs in one process.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The trainer's configuration.

    Raises:
        ValueError: If transformers would split batches over GPUs by itself.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process (DataParallel) are not supported: start with `accelerate launch`, "
            "or show the process one GPU, e.g. CUDA_VISIBLE_DEVICES=0."
        )


def place_whole(model: PreTrainedModel, args: TrainingArguments) -> None:
    """
    Move a loaded model to the trainer's device as a whole.

    Trainer moves what it trains, and with it the tensors that this shares with another model: the rest would stay.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. One that was spread over devices when it was loaded, or holds such a one, stays as it is.
        args ([`~transformers.TrainingArguments`]):
            The trainer's configuration.
    """
    # None is Trainer's own choice, which is to move unless weights are sharded.
    if args.place_model_on_device is False or any("hf_device_map" in vars(part) for part in model.modules()):
        return
    if model.device != args.device:
        model.to(args.device)


def how_to_load(args: SFTConfig) -> dict[str, Any]:
    """
    How a target is loaded that is given by its name.

    Args:
        args ([`~trl.SFTConfig`]):
            The trainer's configuration.

    Returns:
        `dict[str, Any]`: Its `model_init_kwargs`, with `trust_remote_code` where that was said by itself.
    """
    trust = {"trust_remote_code": True} if args.trust_remote_code else {}
    return {**trust, **(args.model_init_kwargs or {})}


def select_source(model_init_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    What says where the target is, for its configuration and tokenizer too.

    Args:
        model_init_kwargs (`Mapping[str, Any]`):
            How the target is loaded.

    Returns:
        `dict[str, Any]`: `revision`, `token`, ... where given.
    """
    return {key: model_init_kwargs[key] for key in _SOURCE_KWARGS if key in model_init_kwargs}


def check_not_split(model: str | PreTrainedModel, model_init_kwargs: Mapping[str, Any]) -> None:
    """
    Refuse a target whose tensors are split, as tensor parallelism does.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The target, or its hub id or folder.
        model_init_kwargs (`Mapping[str, Any]`):
            How it is loaded, where it is not yet.

    Raises:
        ValueError: If processes hold parts of its tensors, or would.
    """
    asked = any(model_init_kwargs.get(name) is not None for name in ("tp_plan", "tp_size", "distributed_config"))
    if asked or (not isinstance(model, str) and any(isinstance(each, DTensor) for each in model.parameters())):
        raise ValueError(
            "The target's tensors are split over processes: the loss needs whole ones. Load it without tp_plan and "
            "distributed_config; for several processes start with `accelerate launch` (DDP, FSDP or DeepSpeed ZeRO, "
            "examples/accelerate)."
        )


def read_target_config(model: str | PreTrainedModel, source: Mapping[str, Any]) -> PreTrainedConfig:
    """
    Configuration of the target.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            The target, or its hub id or folder.
        source (`Mapping[str, Any]`):
            `revision`, `token`, ... of its repository.

    Returns:
        [`~transformers.PreTrainedConfig`]: Its configuration.

    Raises:
        ValueError: If it is an unlearned model itself, or an adapter without a model.
    """
    try:
        config = AutoConfig.from_pretrained(model, **source) if isinstance(model, str) else model.config
    except (OSError, ValueError) as error:
        where = {key: value for key, value in source.items() if key != "trust_remote_code"}
        if find_adapter_config_file(model, **where) is None:
            raise
        raise ValueError(
            f"{model} is an adapter, not a model: merge it into its base first, with "
            f"AutoPeftModelForCausalLM.from_pretrained({model!r}).merge_and_unload().save_pretrained(folder), and save "
            "the tokenizer there too."
        ) from error
    if isinstance(config, ULDModelConfig):
        name = model if isinstance(model, str) else model.name_or_path
        raise ValueError(
            f"{name} is already an unlearned model: pass the model it was made from, {config.target_name_or_path}."
        )
    return config


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """
    Refuse a tokenizer that is not the target's.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        vocab_size (`int`):
            Rows of the target's embedding.

    Raises:
        ValueError: If it has more tokens than the target, or far fewer, or pads with a token that the target lacks.
    """
    # Tokens added without a row in the embedding are harmless where they are not used: Gemma 3 1B has one for images.
    if not (_LEAST_VOCABULARY_USE * vocab_size <= len(tokenizer) and tokenizer.vocab_size <= vocab_size):
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the target's vocabulary {vocab_size}: it belongs to another "
            "model. Pass the target's own as processing_class."
        )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= vocab_size:
        raise ValueError(
            f"The tokenizer pads with {tokenizer.pad_token!r}, token {tokenizer.pad_token_id}, for which the target's "
            f"embedding of {vocab_size} rows has none. Set tokenizer.pad_token to another, e.g. tokenizer.eos_token."
        )


def check_tied_head(model: PreTrainedModel, peft_config: LoraConfig) -> None:
    """
    Refuse to train the head or the embeddings apart from each other in a model in which the two are one tensor.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            What the adapter is for, and merged into.
        peft_config ([`~peft.LoraConfig`]):
            Configuration of the adapter.

    Raises:
        ValueError: If they would be two tensors after training: the plain model has room for one.
    """
    tied = model.get_input_embeddings(), model.get_output_embeddings()
    if tied[0].weight is not tied[1].weight:
        return
    for name in (name for name, module in model.named_modules() if module in tied):
        copied = any(name.endswith(saved) for saved in peft_config.modules_to_save or ())
        # PEFT's choice, where there is none, is neither of the two.
        if copied or (peft_config.target_modules is not None and check_target_module_exists(peft_config, name)):
            place = "modules_to_save" if copied else "target_modules"
            raise ValueError(
                f"peft_config has {name} in {place}: the model's embeddings and head are one tensor, and would be two. "
                "Leave both out, or train all weights (no peft_config)."
            )
