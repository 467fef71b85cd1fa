"""The saved layout of an unlearned model, and the fingerprint that ties an assistant to its target.

    config.json                           model_type "uld", the target's id and fingerprint, K, alpha, ...
    generation_config.json
    README.md                             model card
    assistant/adapter_config.json         the assistant's LoRA, in PEFT's own format; further assistants are in folders
    assistant/adapter_model.safetensors   of their names

saved_files.py writes and reads the files, publish.py pushes them, model_card.py makes the README.

There is never an `adapter_config.json` at the root: AutoModelForCausalLM would then ignore config.json and put the
adapter on the first K layers of the whole target, which gives a model that *recites* what it should have forgotten.
"""

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, logging
from transformers.utils.hub import extract_commit_hash

from .assistant import (
    ADAPTER_NAME,
    add_lora,
    check_lora_config,
    check_num_layers,
    find_decoder_layers,
    lora_weights,
    shares_tensors,
    truncate_model,
)
from .configuration_uld import ULDModelConfig
from .intact import Watch
from .model_card import model_card
from .saved_files import (
    ADAPTER_FILES,
    CONFIG_FILE,
    DamagedFileError,
    check_checksum,
    delete_stale_files,
    describe_file,
    read_as_saved,
    read_json_object,
    sign_config,
    wait_for_save,
    write_together,
)


logger = logging.get_logger(__name__)

# Values hashed of each tensor: enough to tell two finetuned models apart, cheap on a sharded 70B.
_SAMPLES_PER_TENSOR = 256

_LORA_DTYPES = ("float64", "float32", "bfloat16", "float16")

# Tokenizers that split this text alike and have the same vocabulary are the same to an assistant.
_PROBE = "Who's Ada? Born 10.12.1815; naïve  Ωmega, 東京 مرحبا 🙂\n\tdef f(x): return x**2 # 100% 'ok'"


def fingerprint_target(
    model: PreTrainedModel, num_layers: int, target_config: PreTrainedConfig | None = None
) -> dict[str, str | None]:
    """
    Hash what an assistant depends on: the target's shape, its embeddings, norms and head, and its first layers; and the
    layers above these where they are there to be read.

    Evenly spaced values of every tensor are rounded to bfloat16 before hashing, so bf16 and fp32 loads agree. A
    float16 load rounds differently and counts as another target.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The target, or its first `num_layers` layers (LoRA on them is not counted).
        num_layers (`int`):
            Number of decoder layers K of the assistant.
        target_config ([`~transformers.PreTrainedConfig`], *optional*):
            Configuration of the whole target. Defaults to the model's own.

    Returns:
        `dict[str, str | None]`: SHA-256 by part: `"config"`, `"layers"` (`None` where the layers are quantized, which
        makes their values incomparable), `"above"` (`None` also where there are none, or they are offloaded or
        tensor-parallel and would have to be fetched) and `"rest"`.
    """
    text_config = (target_config or model.config).get_text_config(decoder=True)
    shape = {
        name: text_config.to_dict().get(name)
        for name in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    }
    shape["num_hidden_layers"] = text_config.num_hidden_layers  # some families save it under another name
    holder, name = find_decoder_layers(model)
    layers = holder.get_submodule(name)
    in_layers = {id(module) for layer in layers[:num_layers] for module in layer.modules()}
    above = {id(module) for layer in layers[num_layers:] for module in layer.modules()}

    hashes = {"layers": hashlib.sha256(), "above": hashlib.sha256(), "rest": hashlib.sha256()}
    unknown = set() if above else {"above"}
    # A tied head is the embedding once more. Tensors are told apart here, before offloaded ones come and go.
    first: dict[int, tuple[nn.Module, str]] = {}
    for module in model.modules():
        for name, tensor in module.named_parameters(recurse=False):
            first.setdefault(id(tensor), (module, name))
    own = {(id(module), name) for module, name in first.values()}
    for module_name, module in model.named_modules():
        if "lora_" in module_name:
            continue
        if id(module) in above and any(
            tensor.is_meta or isinstance(tensor, DTensor) for tensor in module.parameters(recurse=False)
        ):
            unknown.add("above")
            continue
        with align_module_device(module):
            for name, tensor in module.named_parameters(recurse=False):
                if (id(module), name) not in own:
                    continue
                if id(module) in above:
                    part = "above"
                else:
                    part = "layers" if id(module) in in_layers and tensor.dim() > 1 else "rest"
                if not tensor.is_floating_point():  # quantized
                    unknown.add("above" if part == "above" else "layers")
                    continue
                if isinstance(tensor, DTensor):  # tensor parallel
                    tensor = tensor.full_tensor()
                flat = tensor.detach().reshape(-1)
                step = max(1, flat.numel() // _SAMPLES_PER_TENSOR)
                sample = flat[::step].to(device="cpu", dtype=torch.bfloat16).view(torch.int16)
                label = f"{module_name.replace('.base_layer', '')}.{name}{tuple(tensor.shape)}"
                hashes[part].update(label.encode())
                hashes[part].update(sample.numpy().tobytes())
    return {
        "config": hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest(),
        **{part: None if part in unknown else value.hexdigest() for part, value in hashes.items()},
    }


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """
    Hash what an assistant depends on in a tokenizer: its vocabulary, and how it splits a text.

    Tokens that were added to the vocabulary (a padding token, for example) and the chat template do not count.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The target's tokenizer.

    Returns:
        `str`: SHA-256.
    """
    added = tokenizer.get_added_vocab()
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items() if token not in added)
    probe = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    return hashlib.sha256(json.dumps([vocabulary, probe]).encode()).hexdigest()


def fingerprint_tokenizer_of(name_or_path: str, revision: str | None = None, **hub_kwargs: Any) -> str | None:
    """
    Hash the tokenizer that lies beside a model's weights; none of its code is run.

    Args:
        name_or_path (`str`):
            Hub id or folder of the model.
        revision (`str`, *optional*):
            Revision of its repository.
        **hub_kwargs:
            `token`, `cache_dir`, `local_files_only` of its repository.

    Returns:
        `str` or `None`: SHA-256; `None` where there is none, or it cannot be read.
    """
    if not name_or_path:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision or "main", trust_remote_code=False, **hub_kwargs
        )
    except Exception:  # each family's tokenizer has its own way to say that its files are missing
        return None
    # Some families make one of a few added tokens where there are no files.
    is_empty = tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys()
    return None if is_empty else fingerprint_tokenizer(tokenizer)


def check_fingerprint(
    expected: dict[str, str | None], actual: dict[str, str | None], assistant_name: str, target_name: str
) -> None:
    """
    Refuse a target that is not the one an assistant was trained on.

    Args:
        expected (`dict[str, str | None]`):
            Fingerprint of the target that the assistant was trained on.
        actual (`dict[str, str | None]`):
            Fingerprint of the target at hand.
        assistant_name (`str`):
            Name of the assistant's target or folder, for the message.
        target_name (`str`):
            Name of the target at hand, for the message.

    Raises:
        ValueError: If the two differ in a part that both have.
    """
    what = {
        "config": "architecture",
        "layers": "weights of the first layers",
        "above": "weights of the layers above the assistant's",
        "rest": "embeddings, norms or head",
        "tokenizer": "tokenizers",
    }
    for part, description in what.items():
        if part in ("config", "layers", "rest") and (part not in expected or part not in actual):
            raise ValueError(f"The fingerprint lacks {part!r}: the saved config.json is damaged. Save the model again.")
        if None in (expected.get(part), actual.get(part)):
            continue
        if expected[part] != actual[part]:
            raise ValueError(
                f"The assistant ({assistant_name or 'unnamed'}) was trained on another target than "
                f"{target_name or 'the given model'}: their {description} differ. Subtracting it would not forget. "
                "Load the target it was trained on, or train a new assistant on this one. If you know better, "
                "load it in Python with allow_target_mismatch=True."
            )


def attach_assistant(
    target: PreTrainedModel,
    num_layers: int,
    peft_config: PeftConfig,
    state_dict: dict[str, torch.Tensor],
    name: str = ADAPTER_NAME,
) -> PeftModel:
    """
    Put an assistant's trained LoRA weights on a target's own first layers.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The target that the assistant was trained on.
        num_layers (`int`):
            Number of decoder layers K of the assistant.
        peft_config ([`~peft.PeftConfig`]):
            The adapter's configuration.
        state_dict (`dict[str, torch.Tensor]`):
            The adapter's weights, named as in PEFT's files.
        name (`str`, *optional*, defaults to `"assistant"`):
            Name of the assistant.

    Returns:
        [`~peft.PeftModel`]: The assistant, frozen.

    Raises:
        ValueError: If a weight is missing, unexpected, of another shape or type, or not finite.
    """
    wrong_type = {str(tensor.dtype) for tensor in state_dict.values()} - {f"torch.{name}" for name in _LORA_DTYPES}
    if wrong_type:
        raise ValueError(
            f"The assistant's weights are of type {sorted(wrong_type)} instead of {_LORA_DTYPES}: the file is damaged."
        )
    # A rank that the weights do not have would be allocated for nothing, whatever its size.
    most = max(
        (tensor.shape[0] for name, tensor in state_dict.items() if ".lora_A." in name and tensor.dim()), default=0
    )
    if max((peft_config.r, *peft_config.rank_pattern.values())) > most:
        raise ValueError(
            f"adapter_config.json asks for rank {peft_config.r} {peft_config.rank_pattern or ''}, the weights have "
            f"{most}: the files are damaged, or do not belong together."
        )
    broken = [name for name, tensor in state_dict.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(
            f"The assistant's weights {broken[:3]} hold NaN or infinite values: train or download it again."
        )
    try:
        assistant = add_lora(truncate_model(target, num_layers), peft_config, name)
    except Exception as error:  # PEFT has its own way with every setting that cannot be
        raise ValueError(
            f"The adapter that the assistant's adapter_config.json describes does not fit the target: {error}"
        ) from error
    expected = get_peft_model_state_dict(
        assistant, lora_weights(assistant), adapter_name=name, save_embedding_layers=False
    )
    wrong = {
        name
        for name in expected.keys() | state_dict.keys()
        if name not in expected or name not in state_dict or expected[name].shape != state_dict[name].shape
    }
    if wrong:
        raise ValueError(
            f"{len(wrong)} of the assistant's weights are missing or do not fit {num_layers} layers of the target, "
            f"e.g. {sorted(wrong)[:3]}: it was trained on another target, or the files are damaged."
        )
    if any(isinstance(weight, DTensor) for weight in assistant.parameters()):
        set_peft_model_state_dict(assistant, state_dict, adapter_name=name)  # knows how tensor parallelism splits LoRA
    else:
        # PEFT's way asks for the base's state_dict, which breaks 4-bit weights on a CPU (bitsandbytes 0.50).
        for weight_name, weight in expected.items():
            weight.copy_(state_dict[weight_name])
    return assistant.requires_grad_(False).eval()


def find_commit(name_or_path: str | os.PathLike, revision: str | None = None, **hub_kwargs: Any) -> str | None:
    """
    The commit that a revision of a repository stands for now.

    Args:
        name_or_path (`str` or `os.PathLike`):
            Hub id or folder.
        revision (`str`, *optional*):
            Branch, tag or commit.
        **hub_kwargs:
            `token`, `cache_dir`, `local_files_only` of its repository.

    Returns:
        `str` or `None`: The commit; for a folder the revision as it was given.

    Raises:
        OSError: If there is no such repository, or no config.json in it.
    """
    if os.path.isdir(name_or_path):
        return revision
    file = cached_file(name_or_path, "config.json", revision=revision, **hub_kwargs)
    return extract_commit_hash(file, None) or revision


def check_saved_target(
    config: ULDModelConfig,
    target: PreTrainedModel,
    name: str,
    allow_target_mismatch: bool = False,
    **hub_kwargs: Any,
) -> None:
    """
    Refuse a target other than the one that saved assistants were trained on.

    Args:
        config ([`ULDModelConfig`]):
            The saved configuration.
        target ([`~transformers.PreTrainedModel`]):
            The target at hand.
        name (`str`):
            Where the configuration was saved, for the message.
        allow_target_mismatch (`bool`, *optional*, defaults to `False`):
            Warn instead.
        **hub_kwargs:
            `token`, `cache_dir`, `local_files_only` of the target's repository, whose tokenizer is compared.

    Raises:
        ValueError: If the fingerprint is missing or differs, or the target has too few layers.
    """
    if not config.target_fingerprint:
        raise ValueError(
            f"{name} has no target_fingerprint in its config.json, so nothing says which target its assistant belongs "
            "to. Save the model again with save_pretrained."
        )
    num_layers = config.most_assistant_layers
    check_num_layers(num_layers, target.config)
    actual = fingerprint_target(target, num_layers)
    is_same_name = target.name_or_path == config.target_name_or_path
    if config.target_fingerprint.get("tokenizer") is not None:
        revision = config.target_revision if is_same_name else None
        actual["tokenizer"] = fingerprint_tokenizer_of(target.name_or_path, revision, **hub_kwargs)
        if actual["tokenizer"] is None and target.name_or_path:
            logger.warning(
                f"The tokenizer of {target.name_or_path} was not compared with the one that {name} was trained with: "
                "there is none beside the target, or it cannot be read (a private repository needs token=)."
            )
    trained_on = config.target_name_or_path or "a model without a name"
    if config.target_revision:
        trained_on += f" at revision {config.target_revision}"
    at_hand = f"{target.name_or_path} as it is here" if is_same_name else target.name_or_path
    try:
        check_fingerprint(config.target_fingerprint, actual, f"{name}, made for {trained_on}", at_hand)
    except ValueError as error:
        if not allow_target_mismatch:
            raise
        logger.warning(f"allow_target_mismatch=True: {error}")


def adopt_assistant(
    target: PreTrainedModel, name: str, assistant: PeftModel, allow_target_mismatch: bool = False
) -> PeftModel:
    """
    The assistant itself if it is made of the target's tensors, else its LoRA weights on them.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The target.
        name (`str`):
            Name of the assistant.
        assistant ([`~peft.PeftModel`]):
            A trained assistant.
        allow_target_mismatch (`bool`, *optional*, defaults to `False`):
            Warn instead of refusing an assistant of another target.

    Returns:
        [`~peft.PeftModel`]: The assistant, with one adapter named `name`.

    Raises:
        RuntimeError: If it is disabled, merged or rescaled.
        TypeError: If it is not a PEFT model.
        ValueError: If it has several adapters, or was trained on another target.
    """
    if not isinstance(assistant, PeftModel):
        raise TypeError(f"The assistant must be a PeftModel (see build_assistant), got {type(assistant).__name__}.")
    adapters = list(assistant.peft_config)
    if adapters not in ([ADAPTER_NAME], [name]):
        raise ValueError(
            f"The assistant must have one adapter named {ADAPTER_NAME!r}, got {adapters}: use build_assistant or "
            "ULDTrainer."
        )
    check_lora_config(assistant.peft_config[adapters[0]])
    # One that is merged would write into the target's weights what it knows.
    Watch({adapters[0]: assistant}).check({adapters[0]: assistant})
    num_layers = assistant.config.get_text_config(decoder=True).num_hidden_layers
    check_num_layers(num_layers, target.config)
    shared = shares_tensors(assistant, target)
    if not shared:  # trained on a copy, or on a load of the first K layers alone
        base = assistant.get_base_model()
        expected = fingerprint_target(base, num_layers, target_config=target.config)
        actual = fingerprint_target(target, num_layers)
        try:
            check_fingerprint(expected, actual, f"made for {base.name_or_path}", target.name_or_path)
        except ValueError as error:
            if not allow_target_mismatch:
                raise
            logger.warning(f"allow_target_mismatch=True: {error}")
    if shared and adapters == [name]:
        return assistant
    state_dict = get_peft_model_state_dict(
        assistant, lora_weights(assistant), adapter_name=adapters[0], save_embedding_layers=False
    )
    return attach_assistant(target, num_layers, assistant.peft_config[adapters[0]], state_dict, name)


def _read_assistant(
    name_or_path: str | os.PathLike, name: str, files: dict[str, dict[str, Any]], **hub_kwargs: Any
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """The files of an assistant, if they are those that were saved. safetensors only: a pickle could run code."""
    content = {}
    for file in ADAPTER_FILES:
        if os.path.isdir(name_or_path) and not (Path(name_or_path) / name / file).is_file():
            raise FileNotFoundError(
                f"{name_or_path}/{name}/{file} is not there: the assistant was deleted, or not copied with the rest of "
                "the folder. Copy or download it again, or train the assistant again."
            )
        path = cached_file(name_or_path, file, subfolder=name, **hub_kwargs)
        content[file] = read_as_saved(Path(path), files.get(f"{name}/{file}"))
    where = f"{name_or_path}/{name}"
    try:
        attributes = json.loads(content["adapter_config.json"])
        peft_config = PeftConfig.from_peft_type(**LoraConfig.check_kwargs(**attributes))
        check_lora_config(peft_config)
    except Exception as error:  # PEFT takes what it is given apart before it looks at it
        raise DamagedFileError(
            f"{where}/adapter_config.json is not the configuration of an assistant: {error} Download it or save the "
            "model again."
        ) from error
    try:
        return peft_config, safetensors.load(content["adapter_model.safetensors"])
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise DamagedFileError(
            f"{where}/adapter_model.safetensors is damaged ({error}): download it or train the assistant again."
        ) from error


def read_unlearned_model(
    name_or_path: str | os.PathLike, revision: str | None = None, **hub_kwargs: Any
) -> tuple[ULDModelConfig, dict[str, tuple[LoraConfig, dict[str, torch.Tensor]]]]:
    """
    Read a saved unlearned model, every file as it was saved and of one commit; its target is not loaded.

    Args:
        name_or_path (`str` or `os.PathLike`):
            Hub id or folder.
        revision (`str`, *optional*):
            Revision of its repository.
        **hub_kwargs:
            `token`, `cache_dir`, `local_files_only` of its repository.

    Returns:
        `tuple[ULDModelConfig, dict[str, tuple[LoraConfig, dict[str, torch.Tensor]]]]`: Its configuration, and the
        adapter of each assistant by name.

    Raises:
        OSError: If there is none.
        ValueError: If a file is damaged, or it is another kind of model.
    """
    revision = find_commit(name_or_path, revision, **hub_kwargs)
    for again in (True, False):
        config = load_config(name_or_path, revision=revision, **hub_kwargs)
        try:
            adapters = {
                name: _read_assistant(name_or_path, name, config.files, revision=revision, **hub_kwargs)
                for name in config.assistants
            }
        except (DamagedFileError, OSError):
            if not again or not os.path.isdir(name_or_path):
                raise
            wait_for_save(Path(name_or_path))  # another process may have been at it
        else:
            return config, adapters


def load_config(name_or_path: str | os.PathLike, **hub_kwargs: Any) -> ULDModelConfig:
    """
    Load the configuration of a saved unlearned model.

    Args:
        name_or_path (`str` or `os.PathLike`):
            Hub id or folder.
        **hub_kwargs:
            `revision`, `token`, `cache_dir`, ... of its repository.

    Returns:
        [`ULDModelConfig`]: The configuration.

    Raises:
        OSError: If there is none.
        ValueError: If it is that of another model, or damaged.
    """
    try:
        content, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub_kwargs)
        model_type = content.get("model_type")
    except OSError as error:
        if os.path.isdir(name_or_path):
            raise
        raise OSError(f"There is no folder '{name_or_path}' here, and it was not read from the Hub: {error}") from error
    except ValueError:
        raise
    except Exception as error:  # whatever else a file may hold than a JSON object
        raise DamagedFileError(
            f"The config.json of {name_or_path} is damaged: {type(error).__name__}: {error}. Download or save it again."
        ) from error
    if model_type != ULDModelConfig.model_type:
        kind = "it has no config.json" if not content else f"its config.json is of type {model_type!r}"
        raise ValueError(
            f"{name_or_path} is not an unlearned model, {kind}. Give the "
            "folder or repository that ULDTrainer, or `uld train` with --method uld or offset, wrote. (What other "
            "methods and `uld bake` write is an ordinary model or adapter: AutoModelForCausalLM loads it, and `uld "
            "eval` measures it, as one of --others, or as the model, with --target.)"
        )
    try:
        check_checksum(content)
        return ULDModelConfig.from_dict(content)
    except ValueError as error:
        raise DamagedFileError(f"{name_or_path}: {error}") from error


def check_target_name(config: ULDModelConfig, source: str | os.PathLike) -> None:
    """
    Refuse a configuration that names a target outside of the Hub, unless it was saved on this machine.

    Args:
        config ([`ULDModelConfig`]):
            The saved configuration.
        source (`str` or `os.PathLike`):
            Hub id or folder that it comes from.

    Raises:
        ValueError: If the target's name is neither a hub id nor, in a folder, an absolute path.
    """
    name = config.target_name_or_path
    if name is None or (isinstance(name, str) and os.path.isabs(name) and os.path.isdir(source)):
        return
    try:
        validate_repo_id(name)
        is_hub_id = not os.path.isabs(name)
    except (HFValidationError, TypeError):
        is_hub_id = False
    if not is_hub_id:
        raise ValueError(
            f"The config.json of {source} names {name!r} as its target, which is no hub id: a saved model may not "
            "reach into other folders. Load the target yourself and pass it: "
            "ULDForCausalLM.from_pretrained(name, target=target)."
        )


def is_gone(name_or_path: Any) -> bool:
    """
    Whether a target's name is a folder's that is not there.

    Args:
        name_or_path (`Any`):
            The name, as a configuration has it, damaged or not.

    Returns:
        `bool`: `False` for a hub id, or for no name at all.
    """
    return isinstance(name_or_path, str) and os.path.isabs(name_or_path) and not os.path.isdir(name_or_path)


def load_target(config: ULDModelConfig, **kwargs: Any) -> PreTrainedModel:
    """
    Load the target that a saved assistant was trained on.

    Args:
        config ([`ULDModelConfig`]):
            The saved configuration.
        **kwargs:
            Passed to [`~transformers.AutoModelForCausalLM.from_pretrained`]. Code of its repository is run with
            `trust_remote_code=True` only.

    Returns:
        [`~transformers.PreTrainedModel`]: The target.

    Raises:
        ValueError: If the configuration names no target, or its repository has code that must be run.
        OSError: If the target is not where the configuration says.
    """
    if config.target_name_or_path is None:
        raise ValueError(
            "The saved config.json names no target (it was trained on a model without a name). Load the target "
            "yourself and pass it: ULDForCausalLM.from_pretrained(folder, target=target)."
        )
    if is_gone(config.target_name_or_path):
        raise FileNotFoundError(
            f"The target {config.target_name_or_path!r} of this assistant is not there. If it has moved, load it from "
            "where it is and save the unlearned model anew, which notes the place: ULDForCausalLM.from_pretrained("
            "folder, target=AutoModelForCausalLM.from_pretrained(target)).save_pretrained(new_folder). `uld generate`, "
            "`eval`, `sweep` and `compare` take --target instead."
        )
    # A name out of a downloaded file must not make us open a pickle, nor transformers ask on stdin whether to run code.
    kwargs = {
        "use_safetensors": True,
        "trust_remote_code": False,
        "revision": config.target_revision or "main",
        **kwargs,
    }
    try:
        source = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
        content, _ = PreTrainedConfig.get_config_dict(config.target_name_or_path, **source)
        if content.get("model_type") == ULDModelConfig.model_type:
            raise ValueError(
                f"The target {config.target_name_or_path!r} is an unlearned model itself: the config.json is damaged, "
                "or the target was overwritten. Load the target yourself and pass it as target=."
            )
        return AutoModelForCausalLM.from_pretrained(config.target_name_or_path, **kwargs)
    except OSError as error:
        raise OSError(
            f"The target {config.target_name_or_path!r} of this assistant cannot be loaded. If you have it elsewhere, "
            "load it and pass it: ULDForCausalLM.from_pretrained(folder, target=target), or `uld generate --target`. "
            f"If it has no safetensors, say use_safetensors=False. ({str(error).splitlines()[0]})"
        ) from error


def check_layout(folder: Path) -> None:
    """
    Refuse a folder that holds another model, or in which transformers would find an adapter and ignore our
    configuration.

    Args:
        folder (`Path`):
            Where an unlearned model is to be saved.

    Raises:
        DamagedFileError: If its `config.json` cannot be read.
        ValueError: If there is an `adapter_config.json`, or the `config.json` of another model.
    """
    config_file = folder / CONFIG_FILE
    if config_file.exists():
        content = read_json_object(config_file)
        if content is None:
            raise DamagedFileError(
                f"{config_file} is damaged: it holds no JSON object, so nothing says whose folder this is. Save to "
                f"another folder; or, if only an unlearned model was saved there, delete {folder} and save again."
            )
        if content.get("model_type") != ULDModelConfig.model_type:
            raise ValueError(
                f"{folder} holds another model, perhaps the target, whose config.json would be overwritten. Save to "
                "another folder."
            )
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds an adapter_config.json: transformers would load that adapter onto the whole target, "
            "which recites the forget set. Save to another folder."
        )


def copy_unlearned_model(folder: Path, destination: Path) -> ULDModelConfig:
    """
    Copy a saved unlearned model for the Hub: whole files only, no card, no name of a local folder.

    Args:
        folder (`Path`):
            Folder of the saved model.
        destination (`Path`):
            Where it is copied to.

    Returns:
        [`ULDModelConfig`]: The configuration of the copy.

    Raises:
        OSError: If there is no saved model.
        ValueError: If a file of it is damaged.
    """
    config, _ = read_unlearned_model(folder)
    target = config.target_name_or_path
    if target is not None and (os.path.isabs(target) or os.path.isdir(target)):
        config.target_name_or_path = None
    config.target_config.name_or_path = ""
    # By name, and not what config.json lists: somebody else may have written that.
    of_assistants = [f"{name}/{file}" for name in config.assistants for file in ADAPTER_FILES]
    for file in (*of_assistants, "generation_config.json"):
        (destination / file).parent.mkdir(exist_ok=True)
        shutil.copy(folder / file, destination / file)
    config.save_pretrained(destination)
    sign_config(destination)
    return config


def record_evaluation(folder: str | os.PathLike, figures: Mapping[str, float | str]) -> None:
    """
    Put results of an evaluation into a saved unlearned model's configuration and card.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of the saved model.
        figures (`Mapping[str, float | str]`):
            Results by name; they replace those of an earlier evaluation.

    Raises:
        OSError: If there is no saved model.
        ValueError: If its config.json is damaged.
    """
    load_config(folder)  # before anything is made in a folder that holds no model

    def write(staging: Path) -> None:
        config = load_config(folder)  # under the lock: a save may have come in between
        for name in config.assistants:
            measured = {"evaluation": dict(figures), "evaluated": config.subtraction}
            config.training[name] = {**config.training.get(name, {}), **measured}
        model_card(config).save(staging / "README.md")
        config.save_pretrained(staging)
        sign_config(staging)

    write_together(Path(folder), write)


def save_unlearned_model(
    save_directory: str | os.PathLike,
    config: ULDModelConfig,
    assistants: Mapping[str, PeftModel],
    generation_config: GenerationConfig,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """
    Write an unlearned model: its configuration and its assistants' LoRA. The target is referred to, not copied.

    The files of assistants that an earlier save in the folder has and this one does not are deleted. Figures of an
    evaluation are left out where something else was subtracted.

    Args:
        save_directory (`str` or `os.PathLike`):
            Folder to write to; made if absent.
        config ([`ULDModelConfig`]):
            Configuration to save.
        assistants (`Mapping[str, PeftModel]`):
            The assistants by name.
        generation_config ([`~transformers.GenerationConfig`]):
            The target's generation defaults.
        state_dict (`dict[str, torch.Tensor]`, *optional*):
            Gathered weights of the only assistant, where they are sharded over processes.

    Raises:
        OSError: If the files cannot be written. What was there before is as it was.
        ValueError: If the folder holds an `adapter_config.json`, or another model.
    """
    folder = Path(save_directory)
    check_layout(folder)
    config = copy.deepcopy(config)
    for training in config.training.values():
        if training.get("evaluated") != config.subtraction:  # the card would show figures of another model
            training.pop("evaluation", None)
            training.pop("evaluated", None)

    def write(staging: Path) -> None:
        for name, assistant in assistants.items():
            # An adapter whose name is not "default" is written to a subfolder of that name.
            weights = lora_weights(assistant) if state_dict is None else state_dict
            assistant.save_pretrained(
                staging, selected_adapters=[name], save_embedding_layers=False, state_dict=weights
            )
        generation_config.save_pretrained(staging)
        model_card(config).save(staging / "README.md")
        config.files = {
            f"{name}/{file}": describe_file(staging / name / file) for name in assistants for file in ADAPTER_FILES
        }
        config.save_pretrained(staging)
        sign_config(staging)
        # Before the old config.json goes: a save that is cut off here is an error, and the next one deletes the rest.
        delete_stale_files(folder, config.files)

    try:
        write_together(folder, write)
    except SafetensorError as error:  # which is how it says that the disk is full
        raise OSError(f"The assistant cannot be written to {folder}: {error}. Free space, then save again.") from error
