"""`ULDForCausalLM`: a target and its assistants as one causal language model for `generate()` and `pipeline()`."""

import copy
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, Self

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .assistant import (
    ADAPTER_NAME,
    add_lora,
    check_target,
    check_trained,
    lora_weights,
    remember_settings,
    remembered_settings,
    remembered_training,
    truncate_model,
)
from .block_checking import can_check_blocks, generate_in_blocks
from .cache_name import CACHE
from .cache_views import PagedView, view_layers
from .configuration_uld import (
    SHARED_SETTINGS,
    SeveralAssistantsError,
    ULDModelConfig,
    check_assistants,
    check_name,
    given_settings,
    meant_setting,
)
from .hub import (
    adopt_assistant,
    attach_assistant,
    check_saved_target,
    check_target_name,
    find_commit,
    fingerprint_target,
    is_gone,
    load_target,
    read_unlearned_model,
    save_unlearned_model,
)
from .intact import NetEffect, Watch
from .kept_positions import positions_to_keep
from .lockstep import Lockstep, can_join, has_rows_of_several_texts, is_text_only, why_no_lockstep
from .publish import push_unlearned_model
from .subtraction import Outside, check_subtraction, logit_difference


logger = logging.get_logger(__name__)

EXECUTIONS = ("two passes", "lockstep", "blocks")


def place_of(target: PreTrainedModel) -> str | None:
    """
    Where a target was loaded from, as configurations name it.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The target.

    Returns:
        `str` or `None`: A hub id, or an absolute path; `None` for a model that was made in memory.
    """
    name = target.name_or_path
    return os.path.abspath(name) if os.path.isdir(name) else name or None


def check_known(name: str, assistants: Iterable[str]) -> str:
    """
    Refuse the name of an assistant that is not there.

    Args:
        name (`str`):
            Name of an assistant.
        assistants (`Iterable[str]`):
            Names of those that are.

    Returns:
        `str`: The name.

    Raises:
        ValueError: If it is not one of them.
    """
    if name not in assistants:
        raise ValueError(f"There is no assistant {name!r}, only {list(assistants)}.")
    return name


class ConfigSetting:
    """A setting of the configuration, on the model too: set there alone it would change nothing."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: "ULDForCausalLM | None", owner: type | None = None) -> Any:
        if model is None:
            return self
        try:
            return getattr(model.config, self.name)
        except SeveralAssistantsError as error:  # for an AttributeError modules have a message of their own
            raise ValueError(str(error)) from error

    def __set__(self, model: "ULDForCausalLM", value: Any) -> None:
        setattr(model.config, self.name, value)


class ULDForCausalLM(PreTrainedModel, GenerationMixin):
    """
    The unlearned model: the target's logits minus `alpha` times each assistant's (paper section 3.1).

    It is an ordinary causal language model to `generate()`, `pipeline()` and evaluation code, and inference only:
    train the assistant with [`ULDTrainer`]. The assistant holds the target's own tensors and costs its LoRA only.

    `model.execution` says how target and assistants run. `"lockstep"`, the default where the target allows it, takes
    their rows through the layers that they share together; `"two passes"` runs them one after the other. With
    `"blocks"`, greedy decoding and sampling let the target draft up to `model.max_block_size` tokens, which the
    assistants then check in one pass: the same text, in little more than the target's own time where it has nothing
    to do with the forget set. What one way cannot do takes the next: blocks need a growing cache and no beams,
    lockstep one that is neither offloaded nor quantized.

    Args:
        config ([`ULDModelConfig`], *optional*):
            Configuration. Alone, it builds a target and an assistant with random weights, as in transformers. Not
            needed with `target` and `assistant`.
        target ([`~transformers.PreTrainedModel`], *optional*):
            The model that must forget.
        assistant ([`~peft.PeftModel`] or `Mapping[str, PeftModel]`, *optional*):
            The trained assistant: `ULDTrainer(...).model`, or a result of [`build_assistant`]. Several by name.
        alpha (`float` or `Mapping[str, float]`, *optional*):
            Weight of the assistants' logits, of all or by name. This and the following settings default to the
            configuration's, or without one to what the assistant was trained for.
        relative_top (`float`, *optional*):
            Plausibility filter; `0` turns it off.
        outside (`"keep"` or `"mask"`, *optional*):
            What happens to the tokens outside of the filter.
        center (`bool`, *optional*):
            Whether a uniform assistant changes nothing.
        clamp (`bool`, *optional*):
            Whether tokens that the assistant finds improbable are left alone instead of lifted.
        remove_top_k (`int`, *optional*):
            How many tokens are ruled out instead of subtracting; `0` subtracts.
        gate (`float`, *optional*):
            Certainty below which an assistant is not subtracted; `0` subtracts everywhere.
        by_certainty (`bool`, *optional*):
            Whether an assistant is subtracted in proportion to its certainty.
        replace (`bool`, *optional*):
            Whether assistants that are added take the target's place where the gate is open.
        allow_target_mismatch (`bool`, *optional*, defaults to `False`):
            Only warn of an assistant that was trained on another target.

    Raises:
        ValueError: If the assistant was not trained on this target, a setting is out of range, or the assistants
            together take nothing away.
    """

    config_class = ULDModelConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    # What the attention may be is the target's affair: its own check has run by the time it gets here.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    alpha = ConfigSetting()
    relative_top = ConfigSetting()
    outside = ConfigSetting()
    center = ConfigSetting()
    clamp = ConfigSetting()
    remove_top_k = ConfigSetting()
    gate = ConfigSetting()
    by_certainty = ConfigSetting()
    replace = ConfigSetting()

    def __init__(
        self,
        config: ULDModelConfig | None = None,
        *,
        target: PreTrainedModel | None = None,
        assistant: PeftModel | Mapping[str, PeftModel] | None = None,
        alpha: float | Mapping[str, float] | None = None,
        relative_top: float | None = None,
        outside: Outside | None = None,
        center: bool | None = None,
        clamp: bool | None = None,
        remove_top_k: int | None = None,
        gate: float | None = None,
        by_certainty: bool | None = None,
        replace: bool | None = None,
        allow_target_mismatch: bool = False,
    ):
        if (target is None) != (assistant is None):
            missing = "target" if target is None else "assistant"
            raise ValueError(f"ULDForCausalLM needs a target and an assistant: {missing}= is missing.")
        if target is None:
            if config is None or config.target_config is None:
                raise ValueError("ULDForCausalLM needs a target and an assistant, or a config with a target_config.")
            target = AutoModelForCausalLM.from_config(config.target_config)
            assistant = {
                name: add_lora(truncate_model(target, entry["num_layers"]), name=name)
                for name, entry in config.assistants.items()
            }
        check_target(target)
        given = assistant if isinstance(assistant, Mapping) else {ADAPTER_NAME: assistant}
        for name in given:
            check_name(name)
        assistants = {name: adopt_assistant(target, name, given[name], allow_target_mismatch) for name in given}

        is_configured = config is not None
        config = copy.deepcopy(config) if is_configured else ULDModelConfig()
        # A copy, because the composite's attention setter would write through to the target's own configuration.
        config.target_config = copy.deepcopy(target.config)
        config.target_fingerprint = None  # of which target it is, nobody has looked at here
        config.files = {}
        saved = config.assistants
        unknown = set(given) - set(saved)
        if is_configured and unknown:
            raise ValueError(
                f"The configuration has settings for {list(saved)}, and none for {sorted(unknown)}: give the "
                "assistants its names, or leave the configuration out."
            )
        config.assistants = {
            name: {
                "num_layers": assistant.config.get_text_config(decoder=True).num_hidden_layers,
                "alpha": saved[name]["alpha"] if name in saved else ULDModelConfig().alpha,
            }
            for name, assistant in assistants.items()
        }
        settings = given_settings(
            relative_top=relative_top,
            outside=outside,
            center=center,
            clamp=clamp,
            remove_top_k=remove_top_k,
            gate=gate,
            by_certainty=by_certainty,
            replace=replace,
        )
        if not is_configured:  # then what the assistants were trained for counts
            trained = {name: remembered_settings(given[name]) for name in assistants}
            for name, of_one in trained.items():
                config.assistants[name]["alpha"] = of_one.pop("alpha", config.assistants[name]["alpha"])
                config.training[name] = remembered_training(given[name])
            for setting in SHARED_SETTINGS:
                values = {name: of_one[setting] for name, of_one in trained.items() if setting in of_one}
                if len(set(values.values())) > 1 and setting not in settings:
                    raise ValueError(
                        f"The assistants were trained for different settings of the subtraction, {setting}={values}, "
                        f"and share one here: give {setting}=..., and look at what each still forgets."
                    )
                for value in values.values():
                    setattr(config, setting, value)
        config.target_name_or_path = config.target_name_or_path or place_of(target)
        if alpha is not None:
            if not isinstance(alpha, Mapping) and len({weight > 0 for weight in config.alphas.values()}) > 1:
                raise ValueError(
                    f"alpha={alpha} for all: the assistants are added and subtracted, and would no longer be. In "
                    f"Python give alpha by name, such as alpha={config.alphas}."
                )
            alphas = alpha if isinstance(alpha, Mapping) else dict.fromkeys(assistants, alpha)
            for name in alphas:
                config.assistants[check_known(name, assistants)]["alpha"] = alphas[name]
        for name in settings:
            setattr(config, name, settings[name])
        check_assistants(config.assistants, config.target_config)
        config.check()
        config._attn_implementation = target.config._attn_implementation

        super().__init__(config)
        self.target = target
        self.assistants = nn.ModuleDict(assistants)
        self.generation_config = copy.deepcopy(target.generation_config)
        # How generate() decodes, see the class docstring. Settings of a running model, not of a saved one.
        self._execution = "lockstep"
        self._max_block_size = 8
        self._assistants_changed()
        self._net_effect.check(config.alphas)
        self._is_stateful = target._is_stateful
        self._can_compile_fullgraph = target._can_compile_fullgraph
        self.eval()

    @property
    def execution(self) -> str:
        """How target and assistants run: `"two passes"`, `"lockstep"` or `"blocks"`."""
        return self._execution

    @execution.setter
    def execution(self, execution: str) -> None:
        if execution not in EXECUTIONS:
            raise ValueError(f"execution={execution!r} must be one of {EXECUTIONS}.")
        if execution == "lockstep" and self._no_lockstep:
            raise ValueError(
                f"execution='lockstep' is not possible: {self._no_lockstep}. Use 'two passes' or 'blocks'."
            )
        self._execution = execution

    @property
    def max_block_size(self) -> int:
        """Most tokens that the target drafts before the assistants check them, with `execution="blocks"`."""
        return self._max_block_size

    @max_block_size.setter
    def max_block_size(self, size: int) -> None:
        if type(size) is not int or size < 1:
            raise ValueError(f"max_block_size={size!r} must be a whole number of tokens, 1 (plain steps) or more.")
        self._max_block_size = size

    def _assistants_changed(self) -> None:
        self._watch = Watch(dict(self.assistants.items()), self.target)
        self._net_effect = NetEffect(dict(self.assistants.items()))
        self._lockstep: Lockstep | None = None  # built when first needed
        self._no_lockstep = why_no_lockstep(self.target, self.assistants.values())
        if self._execution == "lockstep" and self._no_lockstep:
            self._execution = "two passes"
        self.destroy_cached_continuous_batching_manager()  # its pages hold what the assistants before made of prompts

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._lockstep = None  # it holds the buffers that `.to()` replaces
        return super()._apply(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As PyTorch's; with `assign=True` too, all executions take the new tensors."""
        self._lockstep = None
        return super().load_state_dict(*args, **kwargs)

    @property
    def assistant(self) -> PeftModel:
        """The only assistant; with several, use `assistants[name]`."""
        if len(self.assistants) != 1:
            raise ValueError(
                f"There are {len(self.assistants)} assistants: use model.assistants[name], one of "
                f"{list(self.assistants)}."
            )
        return next(iter(self.assistants.values()))

    def add_assistant(
        self,
        assistant: str | os.PathLike | PeftModel,
        *,
        name: str | None = None,
        alpha: float | None = None,
        revision: str | None = None,
        token: bool | str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        allow_target_mismatch: bool = False,
    ) -> str:
        """
        Forget something more: subtract another assistant of the same target as well.

        Caches of earlier calls do not hold its layers and can't be continued.

        Args:
            assistant (`str`, `os.PathLike` or [`~peft.PeftModel`]):
                Hub id or folder of a saved unlearned model with one assistant; or a trained assistant.
            name (`str`, *optional*):
                Name of the assistant here. Defaults to the last part of the hub id or folder.
            alpha (`float`, *optional*):
                Weight of its logits. Defaults to the saved one, or 1.25.
            revision (`str`, *optional*):
                Revision of its repository.
            token (`bool` or `str`, *optional*):
                Hub token.
            cache_dir (`str` or `os.PathLike`, *optional*):
                Cache of downloads.
            local_files_only (`bool`, *optional*, defaults to `False`):
                Do not ask the Hub.
            allow_target_mismatch (`bool`, *optional*, defaults to `False`):
                Only warn of an assistant that was trained on another target.

        Returns:
            `str`: Its name, for [`~ULDForCausalLM.set_alpha`] and [`~ULDForCausalLM.remove_assistant`].

        Raises:
            OSError: If there is no assistant at that place.
            ValueError: If it was trained on another target or never, there is one of that name already, or a setting is
                out of range.
        """
        if name is None:
            if isinstance(assistant, PeftModel):
                raise ValueError("An assistant given as a PeftModel needs a name=, e.g. 'forget-bob'.")
            name = os.path.basename(os.path.abspath(assistant))
        check_name(name)
        if name in self.assistants:
            raise ValueError(f"There is an assistant {name!r} already: remove it first, or give another name=.")
        if isinstance(assistant, PeftModel):
            trained = remembered_settings(assistant)
            entry = {"alpha": ULDModelConfig().alpha, **trained}
            training, fingerprint = remembered_training(assistant), None
            adopted = adopt_assistant(self.target, name, assistant, allow_target_mismatch)
        else:
            hub_kwargs = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
            saved, adapters = read_unlearned_model(assistant, revision=revision, **hub_kwargs)
            (saved_name,) = saved.assistants if len(saved.assistants) == 1 else (None,)
            if saved_name is None:
                raise ValueError(
                    f"{assistant} holds {len(saved.assistants)} assistants, {list(saved.assistants)}: load it with "
                    "from_pretrained and add the one assistant to it."
                )
            check_saved_target(saved, self.target, str(assistant), allow_target_mismatch, **hub_kwargs)
            entry, fingerprint = saved.assistants[saved_name], saved.target_fingerprint
            training, trained = saved.training.get(saved_name, {}), vars(saved)
            adopted = attach_assistant(self.target, entry["num_layers"], *adapters[saved_name], name)
        # A negative alpha that is given was chosen for this model's settings, as in docs/contrast.md.
        for setting in SHARED_SETTINGS if alpha is None or alpha > 0 else ():
            here = vars(self.config)[setting]
            if trained.get(setting, here) != here:
                logger.warning(
                    f"{name} was saved or trained with {setting}={trained[setting]!r}, this model subtracts with "
                    f"{setting}={here!r}: its alpha may not fit."
                )
        entry = {
            "num_layers": adopted.config.get_text_config(decoder=True).num_hidden_layers,
            "alpha": entry["alpha"] if alpha is None else alpha,
        }
        check_subtraction(entry["alpha"], 0.0, "keep")
        if entry["alpha"] > 0:  # one that is added may be untrained: Offset unlearning adds what the other began as
            check_trained({name: lora_weights(adopted)})
        assistants = {**self.assistants, name: adopted}
        NetEffect(assistants).check({**self.config.alphas, name: entry["alpha"]})
        if entry["num_layers"] > self.config.most_assistant_layers:
            self.config.target_fingerprint = fingerprint
        self.assistants[name] = adopted.eval()
        self.config.assistants[name] = entry
        self.config.training[name] = training
        self._assistants_changed()
        return name

    def set_alpha(self, name: str, alpha: float) -> None:
        """
        Change the weight of one assistant.

        Args:
            name (`str`):
                Name of the assistant.
            alpha (`float`):
                Weight of its logits.

        Raises:
            ValueError: If there is no such assistant, or nothing would be subtracted.
        """
        self.set_alphas({name: alpha})

    def set_alphas(self, alphas: Mapping[str, float]) -> None:
        """
        Change the weights of several assistants at once: what is refused is the outcome, not a step on the way.

        Args:
            alphas (`Mapping[str, float]`):
                Weight of the logits of each assistant that is to change.

        Raises:
            ValueError: If there is no such assistant, or nothing would be subtracted.
        """
        for name, alpha in alphas.items():
            check_known(name, self.assistants)
            check_subtraction(alpha, 0.0, "keep")
        self._net_effect.check({**self.config.alphas, **alphas})
        for name, alpha in alphas.items():
            self.config.assistants[name]["alpha"] = alpha

    def remove_assistant(self, name: str) -> None:
        """
        Take back a deletion: what this assistant made the model forget comes out again.

        Args:
            name (`str`):
                Name of the assistant.

        Raises:
            ValueError: If there is no such assistant, or those that are left would take nothing away.
        """
        check_known(name, self.assistants)
        if len(self.assistants) == 1:
            raise ValueError(
                f"{name!r} is the only assistant: without it the output would be the target's own. For that, call "
                "model.target."
            )
        self._net_effect.check({other: alpha for other, alpha in self.config.alphas.items() if other != name})
        depth = self.config.most_assistant_layers
        del self.assistants[name], self.config.assistants[name]
        self.config.training.pop(name, None)
        if self.config.most_assistant_layers != depth:
            self.config.target_fingerprint = None  # it reaches as far as the deepest assistant
        self._assistants_changed()

    def split_cache(self, cache: Cache) -> list[Cache]:
        """
        Views of one cache: the target's layers, and each assistant's after them.

        Args:
            cache ([`~transformers.Cache`]):
                A cache of N + K layers, as `generate()` and `DynamicCache(config=model.config)` build it.

        Returns:
            `list[Cache]`: The target's and the assistants' caches, which hold the same layer objects.

        Raises:
            ValueError: If the cache was built for another model, or is of a kind that cannot be split.
        """
        num_target = self.config.target_config.get_text_config(decoder=True).num_hidden_layers
        sizes = [num_target, *(entry["num_layers"] for entry in self.config.assistants.values())]
        if not isinstance(cache, Cache):
            raise ValueError(
                f"{CACHE} of type {type(cache).__name__} are not supported: the assistant would have no cache "
                "of its own. Use a transformers Cache, built from the unlearned model's config."
            )
        if cache.layer_class_to_replicate is not None and cache.get_seq_length() == 0:  # grows by itself: grow it now
            while len(cache.layers) < sum(sizes):
                cache.layers.append(cache.layer_class_to_replicate())
        if len(cache.layers) != sum(sizes):
            raise ValueError(
                f"{CACHE} has {len(cache.layers)} layers, but the unlearned model has "
                f"{' + '.join(map(str, sizes))}. Build it from the unlearned model: DynamicCache(config=model.config)."
            )
        ends = list(accumulate(sizes))
        views = [view_layers(cache, end - size, end) for size, end in zip(sizes, ends, strict=True)]
        # A compiled step must not branch on a length; the step before it, which fills the cache, is never compiled.
        lengths = [0] if torch.compiler.is_compiling() else [int(view.get_seq_length()) for view in views]
        if len(set(lengths)) != 1:
            raise ValueError(
                f"{CACHE} holds {lengths} tokens of target and assistants: it was not filled by the unlearned "
                "model. Begin with an empty one."
            )
        return views

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        shift_labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        cache: Cache | PagedAttentionCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """
        The unlearned model's logits, and its loss where there are labels.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Tokens.
            attention_mask (`torch.Tensor`, *optional*):
                1 for tokens, 0 for padding, of shape `(batch_size, sequence_length)`; or any mask the target takes.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Positions.
            past_key_values ([`~transformers.Cache`], *optional*):
                Cache of N + K layers.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                Embeddings, in place of `input_ids`.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Tokens to score; -100 is ignored.
            use_cache (`bool`, *optional*):
                Whether to return a cache. Defaults to the target's setting.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to `0`):
                Compute the logits of the last so many positions only; `0` computes all.
            shift_labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Tokens to score, each already at the position that predicts it, in place of those in `labels`.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Number of tokens by which the loss is divided. Defaults to those in `labels`.
            cache ([`~transformers.Cache`] or `PagedAttentionCache`, *optional*):
                `past_key_values` under the name that it has from transformers 5.24 on; or the pages of continuous
                batching.
            **kwargs:
                Passed to target and assistant alike.

        Returns:
            [`~transformers.modeling_outputs.CausalLMOutputWithPast`]: `logits` of shape `(batch_size,
            sequence_length, vocab_size)` in float32, `loss` and `past_key_values` (`cache` from transformers 5.24 on).

        Raises:
            RuntimeError: If an assistant was disabled, merged or taken apart.
            ValueError: If hidden states or attentions are asked for, the cache does not fit, or a setting of the
                subtraction is out of range.
        """
        self._check()
        refused = [name for name in ("output_hidden_states", "output_attentions") if kwargs.get(name)]
        if refused:
            raise ValueError(
                f"{refused[0]} is not supported: it would hand out the target's own, from which its output follows. "
                "Call model.target for the target's."
            )
        paged = cache if isinstance(cache, PagedAttentionCache) else None
        if cache is not None and paged is None:
            if past_key_values is not None:
                raise ValueError("Give cache or past_key_values, not both: they are two names of one thing.")
            past_key_values = cache
        if use_cache is None:
            # Some families' configurations have none, and their models cache.
            use_cache = getattr(self.target.config.get_text_config(decoder=True), "use_cache", True)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            **kwargs,
        }
        if self._supports_logits_to_keep():
            inputs["logits_to_keep"] = logits_to_keep
        target_logits, assistant_logits = self._run(past_key_values, inputs, paged)
        logits = self.subtract(target_logits, assistant_logits)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits,
                labels,
                vocab_size=logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
                shift_labels=shift_labels,
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: past_key_values})

    def _check(self) -> None:
        """Refuse settings and assistants with which something else would be subtracted, before every step."""
        self.config.check()
        self._check_intact()
        if list(self.config.assistants) != list(self.assistants):
            raise ValueError(
                f"config.assistants names {list(self.config.assistants)}, the model has {list(self.assistants)}: use "
                "add_assistant and remove_assistant."
            )
        self._net_effect.check(self.config.alphas)

    def _check_intact(self) -> None:
        if "_is_replica" in vars(self):
            raise NotImplementedError(
                "DataParallel is not supported: use device_map, or one process for each GPU (accelerate launch)."
            )
        self._watch.check(self.assistants, self.target)
        if not self.training and any(part.training for part in (self.target, *self.assistants.values())):
            self.eval()  # training one of them goes on between two calls, and dropout is no part of the formula

    def _get_candidate_generator(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> CandidateGenerator:
        if generation_config.assistant_early_exit is not None:
            raise ValueError(
                "assistant_early_exit is not supported: the drafts would come from inside of the target. Use "
                "prompt_lookup_num_tokens, assistant_model, or model.execution = 'blocks'."
            )
        if generation_config.assistant_ensemble_weight is not None:
            raise ValueError(
                f"assistant_ensemble_weight={generation_config.assistant_ensemble_weight} is not supported: part of "
                "what comes out would be the draft model's, from which nothing is subtracted. Leave it out: drafts are "
                "then proposals only."
            )
        return super()._get_candidate_generator(generation_config, *args, **kwargs)

    def _run(
        self, cache: Cache | None, inputs: dict[str, Any], paged: PagedAttentionCache | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits of the target and of each assistant, in lockstep where that is possible."""
        if "adapter_names" in inputs:
            raise ValueError("adapter_names is not supported: with it, PEFT would leave the assistant's adapter out.")
        if "logits_to_keep" in inputs:
            given = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
            inputs = {**inputs, "logits_to_keep": positions_to_keep(inputs["logits_to_keep"], given)}
        caches = [None] * (1 + len(self.assistants)) if cache is None else self.split_cache(cache)
        if (
            self._execution != "two passes"
            and self._no_lockstep is None
            and paged is None
            and can_join(cache)
            and not self.training
            and is_text_only(inputs)
            and not has_rows_of_several_texts(inputs, self.target.config._attn_implementation)
        ):
            # Another thread may be exchanging assistants.
            lockstep, assistants = self._lockstep, list(self.assistants.values())
            if lockstep is None or not lockstep.is_of(self.target, assistants):
                lockstep = self._lockstep = Lockstep(self.target, assistants)
            return lockstep(inputs, caches)
        if paged is not None:
            filled_by = vars(paged).setdefault("uld_assistants", list(self.assistants.values()))
            if list(map(id, filled_by)) != list(map(id, self.assistants.values())):
                raise ValueError(
                    "The assistants were exchanged while continuous batching went on: its pages are of those before. "
                    "Stop it, and begin anew."
                )
        logits, first = [], 0
        for module, cache in zip((self.target, *self.assistants.values()), caches, strict=True):
            pages = None if paged is None else PagedView(paged, first)
            of_module = {CACHE: cache} if pages is None else {"cache": pages}
            logits.append(module(**of_module, **inputs).logits)
            if pages is not None and not pages.updated:
                raise NotImplementedError(
                    f"Continuous batching is not supported for {type(self.target).__name__}: its attention does not "
                    "read the paged cache, so every answer would be wrong. Use generate()."
                )
            first += module.config.get_text_config(decoder=True).num_hidden_layers
        target_logits, *assistant_logits = logits
        return target_logits, assistant_logits

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> torch.LongTensor | GenerateDecoderOnlyOutput:
        """The loop of `generate()` for greedy decoding and sampling."""
        arguments = (input_ids, logits_processor, stopping_criteria, generation_config)
        if self.execution == "blocks" and not synced_gpus and can_check_blocks(generation_config, model_kwargs):
            return generate_in_blocks(self, *arguments, streamer, **model_kwargs)
        return super()._sample(*arguments, synced_gpus=synced_gpus, streamer=streamer, **model_kwargs)

    def component_logits(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        What the subtraction works on, to try several settings of it on one pass.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Tokens.
            attention_mask (`torch.Tensor`, *optional*):
                Mask of the padding, of what is in the cache too.
            past_key_values ([`~transformers.Cache`], *optional*):
                Cache of N + K layers to go on from, `DynamicCache(config=model.config)` at first. It grows by the
                tokens.
            **kwargs:
                Passed to target and assistants alike.

        Returns:
            `tuple[torch.Tensor, list[torch.Tensor]]`: Logits of shape `(batch_size, sequence_length, vocab_size)` of
            the target, **before** anything is subtracted, and of each assistant.

        Raises:
            RuntimeError: If an assistant was disabled, merged or taken apart.
            ValueError: If the cache does not fit, or a setting of the subtraction is out of range.
        """
        self._check()
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "inputs_embeds": None,
            "use_cache": past_key_values is not None,
        }
        return self._run(past_key_values, {**inputs, **kwargs})

    def subtract(self, target_logits: torch.Tensor, assistant_logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """
        The formula with this model's settings, see [`logit_difference`].

        Args:
            target_logits (`torch.Tensor` of shape `(..., vocab_size)`):
                The target's logits.
            assistant_logits (`Sequence[torch.Tensor]`, each of the shape of `target_logits`):
                Logits of each assistant.

        Returns:
            `torch.Tensor` of shape `(..., vocab_size)`: The unlearned model's logits.
        """
        config = self.config
        return logit_difference(
            target_logits,
            assistant_logits,
            list(config.alphas.values()),
            **{name: vars(config)[name] for name in SHARED_SETTINGS},
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, inputs_embeds: torch.FloatTensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The target's own preparation: positions, masks and slicing are those of its family."""
        # generate() looks for `inputs_embeds` in this signature to know that prompts may be given so.
        return self.target.prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        self.target._validate_model_kwargs(model_kwargs)  # `generate()` takes what it takes of the target

    def _supports_logits_to_keep(self) -> bool:
        return self.target._supports_logits_to_keep()

    def get_input_embeddings(self) -> nn.Module:
        """The target's input embeddings, which the assistant shares."""
        return self.target.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        """There is no single head: hidden states times the target's head would be the target's own output."""
        return

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> None:
        """
        Not possible here: target and assistant share their embeddings.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("Resize the target's embeddings first, then train an assistant on it.")

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """
        Save the configuration and the assistants' LoRA; the target is referred to by its name, not copied.

        Args:
            save_directory (`str` or `os.PathLike`):
                Folder to write to; made if absent.
            push_to_hub (`bool`, *optional*, defaults to `False`):
                Also push it to the private hub repository of the folder's name.
            **kwargs:
                Passed to [`~ULDForCausalLM.push_to_hub`]. `transformers`' options for sharding weights mean nothing
                here: there is one small file.

        Raises:
            OSError: If the files cannot be written. What was there before is as it was.
            RuntimeError: If an assistant was disabled, merged or taken apart.
            ValueError: If the folder holds another model or an `adapter_config.json` at its root, or the settings are
                those of no unlearned model.
        """
        self._check()  # what could not be loaded is not written
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        # What was loaded with an assistant stays with it: a quantized load could not say as much.
        config.target_fingerprint = config.target_fingerprint or fingerprint_target(
            self.target, config.most_assistant_layers
        )
        save_unlearned_model(save_directory, config, dict(self.assistants.items()), self.generation_config)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        commit_message: str = "Upload unlearned model",
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """
        Upload configuration and assistant to the Hub, privately unless asked otherwise.

        Args:
            repo_id (`str`):
                Repository, e.g. `"me/forget-alice"`.
            private (`bool`, *optional*, defaults to `True`):
                Whether a new repository is private. The assistant is a concentrated copy of the forget set: making
                it public publishes the data.
            commit_message (`str`, *optional*):
                Message of the commit.
            token (`bool` or `str`, *optional*):
                Hub token.
            revision (`str`, *optional*):
                Branch to push to.
            create_pr (`bool`, *optional*, defaults to `False`):
                Open a pull request instead of pushing.

        Returns:
            `str`: Address of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_unlearned_model(
                folder,
                repo_id,
                private=private,
                commit_message=commit_message,
                token=token,
                revision=revision,
                create_pr=create_pr,
            ).commit_url

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: ULDModelConfig | None = None,
        target: PreTrainedModel | None = None,
        alpha: float | Mapping[str, float] | None = None,
        relative_top: float | None = None,
        outside: Outside | None = None,
        center: bool | None = None,
        clamp: bool | None = None,
        remove_top_k: int | None = None,
        gate: float | None = None,
        by_certainty: bool | None = None,
        replace: bool | None = None,
        revision: str | None = None,
        token: bool | str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        allow_target_mismatch: bool = False,
        **target_kwargs: Any,
    ) -> Self:
        """
        Load a saved unlearned model: its target, wherever that is, and its assistant.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Hub id or folder of the saved unlearned model.
            config ([`ULDModelConfig`], *optional*):
                Configuration, in place of the saved one.
            target ([`~transformers.PreTrainedModel`], *optional*):
                The target, already loaded. Defaults to loading the one that the configuration names.
            alpha (`float` or `Mapping[str, float]`, *optional*):
                Weight of the assistants' logits, of all or by name, in place of the saved ones.
            relative_top (`float`, *optional*):
                Plausibility filter, in place of the saved one.
            outside (`"keep"` or `"mask"`, *optional*):
                What happens to the tokens outside of the filter, in place of the saved setting.
            center (`bool`, *optional*):
                Whether a uniform assistant changes nothing, in place of the saved setting.
            clamp (`bool`, *optional*):
                Whether tokens that the assistant finds improbable are left alone, in place of the saved setting.
            remove_top_k (`int`, *optional*):
                How many tokens are ruled out instead of subtracting, in place of the saved setting.
            gate (`float`, *optional*):
                Certainty below which an assistant is not subtracted, in place of the saved setting.
            by_certainty (`bool`, *optional*):
                Whether an assistant is subtracted in proportion to its certainty, in place of the saved setting.
            replace (`bool`, *optional*):
                Whether assistants that are added take the target's place, in place of the saved setting.
            revision (`str`, *optional*):
                Revision of the unlearned model's repository. The target's own is in the configuration.
            token (`bool` or `str`, *optional*):
                Hub token, for both repositories.
            cache_dir (`str` or `os.PathLike`, *optional*):
                Cache of downloads, for both repositories.
            local_files_only (`bool`, *optional*, defaults to `False`):
                Do not ask the Hub.
            allow_target_mismatch (`bool`, *optional*, defaults to `False`):
                Only warn of a target that is not the one that the assistant was trained on. A float16 load counts as
                another target.
            **target_kwargs:
                How to load the target: `dtype`, `device_map`, `quantization_config`, `attn_implementation`, ... It is
                loaded from safetensors, unless `use_safetensors=False` is among them. `force_download` and `proxies`
                are of both repositories, and a `generation_config` takes the saved one's place.

        Returns:
            [`ULDForCausalLM`]: The model, in evaluation mode.

        Raises:
            OSError: If the assistant or its target is not there.
            TypeError: If a setting is misspelt, or `target` is not a model.
            ValueError: If the assistant was trained on another target or never, its files are damaged, or a setting is
                out of range.
        """
        hub_kwargs = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        hub_kwargs |= {name: target_kwargs.pop(name) for name in ("force_download", "proxies") if name in target_kwargs}
        generation_config = target_kwargs.pop("generation_config", None)
        # What AutoModelForCausalLM says of this repository must not be taken for the target's.
        target_kwargs.pop("adapter_kwargs", None)
        if not target_kwargs.get("trust_remote_code"):
            target_kwargs.pop("trust_remote_code", None)
        if target_kwargs.pop("subfolder", ""):
            raise ValueError("subfolder= is not supported: give the folder of a saved unlearned model itself.")
        for name in target_kwargs:
            if (meant := meant_setting(name)) is not None:
                raise TypeError(f"from_pretrained() has no argument {name!r}: did you mean {meant!r}?")
        if isinstance(target, str | os.PathLike):
            raise TypeError(
                f"target={os.fspath(target)!r} must be a loaded model: target=AutoModelForCausalLM.from_pretrained(...)"
            )
        # All files of the assistant come first: they are small, and the target may be large.
        commit = find_commit(pretrained_model_name_or_path, revision, **hub_kwargs)
        saved, adapters = read_unlearned_model(pretrained_model_name_or_path, revision=commit, **hub_kwargs)
        config = saved if config is None else config
        if target is None:
            # AutoModelForCausalLM and pipeline() put these of their arguments into the configuration.
            for name, value in (
                ("attn_implementation", config._attn_implementation),
                ("experts_implementation", config._experts_implementation),
            ):
                if value is not None:
                    target_kwargs.setdefault(name, value)
            check_target_name(config, pretrained_model_name_or_path)
            target = load_target(config, **hub_kwargs, **target_kwargs)
        elif target_kwargs:
            raise ValueError(f"{sorted(target_kwargs)} say how to load the target, but target= is already loaded.")
        check_target(target)
        check_saved_target(saved, target, str(pretrained_model_name_or_path), allow_target_mismatch, **hub_kwargs)
        assistant = {
            name: attach_assistant(target, entry["num_layers"], *adapters[name], name)
            for name, entry in saved.assistants.items()
        }
        check_trained({name: lora_weights(each) for name, each in assistant.items()})
        model = cls(
            config,
            target=target,
            assistant=assistant,
            alpha=alpha,
            relative_top=relative_top,
            outside=outside,
            center=center,
            clamp=clamp,
            remove_top_k=remove_top_k,
            gate=gate,
            by_certainty=by_certainty,
            replace=replace,
        )
        model.config.target_fingerprint = saved.target_fingerprint
        if is_gone(saved.target_name_or_path):
            # It has moved: the next save names the place where it was found.
            model.config.target_name_or_path = place_of(target) or saved.target_name_or_path
        for name, entry in model.config.assistants.items():
            shared = {setting: vars(model.config)[setting] for setting in SHARED_SETTINGS}
            settings = {"alpha": entry["alpha"], **shared}
            remember_settings(model.assistants[name], settings, saved.training.get(name))
        # Older saves and plain targets may have none; what is there was saved with the model.
        with suppress(OSError):
            model.generation_config = generation_config or GenerationConfig.from_pretrained(
                pretrained_model_name_or_path, revision=commit, **hub_kwargs
            )
        return model


# AutoModelForCausalLM and pipeline() know the class from here on; ULDModelConfig sees to it that they get here.
AutoModelForCausalLM.register(ULDModelConfig, ULDForCausalLM)
