"""`ULDLogitsProcessor`: the subtraction as a processor, for a target whose `generate()` call is all one can change."""

import torch
from peft import PeftModel
from transformers import Cache, DynamicCache, LogitsProcessor
from transformers.cache_utils import DynamicLayer

from .assistant import ADAPTER_NAME, remembered_settings
from .cache_name import CACHE
from .configuration_uld import SETTINGS_OF_ONE, ULDModelConfig, given_settings
from .intact import NetEffect, Watch
from .subtraction import Outside, check_subtraction, logit_difference


def longest_common_prefix(previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    """
    Length of the longest common prefix of every pair of rows.

    Args:
        previous (`torch.LongTensor` of shape `(num_previous, previous_length)`):
            Rows of tokens.
        current (`torch.LongTensor` of shape `(num_current, current_length)`):
            Rows of tokens.

    Returns:
        `torch.LongTensor` of shape `(num_current, num_previous)`.
    """
    length = min(previous.shape[1], current.shape[1])
    equal = current[:, None, :length] == previous[None, :, :length]
    return equal.long().cumprod(dim=-1).sum(dim=-1)


class ULDLogitsProcessor(LogitsProcessor):
    r"""
    [`~transformers.LogitsProcessor`] that subtracts an assistant's logits from the target's at every step.

    It keeps the assistant's own cache and brings it in line with `input_ids` at every call, so beams may be reordered
    and candidates dropped. [`ULDForCausalLM`] is the main way; this is for code that cannot swap the model. The result
    equals the model's unless another processor changes the scores first. Make a new one when the assistant has changed.

    **Continuous batching** (`generate_batch`, `cache_implementation="paged"`) ignores logits processors without a word:
    the output is then the target's own. Use [`ULDForCausalLM`] there.

    Args:
        assistant ([`~peft.PeftModel`]):
            The trained assistant of the target that generates.
        alpha (`float`, *optional*):
            Weight of the assistant's logits. This and the following settings default to what the assistant was trained
            for; of one that was only built, to those of [`ULDModelConfig`].
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
            Certainty below which the assistant is not subtracted; `0` subtracts everywhere.
        by_certainty (`bool`, *optional*):
            Whether the assistant is subtracted in proportion to its certainty.
        attention_mask (`torch.LongTensor` of shape `(batch_size, prompt_length)`, *optional*):
            Mask of the prompts. Defaults to masking leading pad tokens, as the target's generation config names them:
            give the mask where the tokenizer pads with another token, or a prompt begins with that one.

    Raises:
        TypeError: If the assistant is not a PEFT model.
        ValueError: If a setting is out of range.

    Example:

    ```python
    >>> target.generate(**inputs, logits_processor=[ULDLogitsProcessor(assistant, alpha=1.25)])
    ```
    """

    def __init__(
        self,
        assistant: PeftModel,
        alpha: float | None = None,
        relative_top: float | None = None,
        outside: Outside | None = None,
        center: bool | None = None,
        clamp: bool | None = None,
        remove_top_k: int | None = None,
        gate: float | None = None,
        by_certainty: bool | None = None,
        attention_mask: torch.LongTensor | None = None,
    ):
        if not isinstance(assistant, PeftModel) or ADAPTER_NAME not in assistant.peft_config:
            raise TypeError(
                f"The assistant must be a PeftModel with an adapter named {ADAPTER_NAME!r} (ULDTrainer(...).model), "
                f"got {type(assistant).__name__}."
            )
        given = given_settings(
            alpha=alpha,
            relative_top=relative_top,
            outside=outside,
            center=center,
            clamp=clamp,
            remove_top_k=remove_top_k,
            gate=gate,
            by_certainty=by_certainty,
        )
        config = ULDModelConfig(**(remembered_settings(assistant) | given))
        self.assistant = assistant
        self._watch = Watch({ADAPTER_NAME: assistant})
        self.alpha = config.alpha
        self.relative_top = config.relative_top
        self.outside = config.outside
        self.center = config.center
        self.clamp = config.clamp
        self.remove_top_k = config.remove_top_k
        self.gate = config.gate
        self.by_certainty = config.by_certainty
        self._net_effect = NetEffect({ADAPTER_NAME: assistant})
        self._net_effect.check(config.alphas)
        self.attention_mask = attention_mask
        self._tokens: torch.Tensor | None = None  # what the cache holds, with -1 for masked positions
        self._cache: Cache | None = None

    def _full_mask(self, input_ids: torch.LongTensor) -> torch.Tensor:
        if self.attention_mask is not None:
            mask = self.attention_mask.to(input_ids.device)
            if input_ids.shape[0] % mask.shape[0] or input_ids.shape[1] < mask.shape[1]:
                raise ValueError(
                    f"attention_mask has shape {tuple(mask.shape)}, which is not that of the prompts behind input_ids "
                    f"of shape {tuple(input_ids.shape)}. Make a new ULDLogitsProcessor for every batch of prompts."
                )
            mask = mask.repeat_interleave(input_ids.shape[0] // mask.shape[0], dim=0)
            generated = mask.new_ones(input_ids.shape[0], input_ids.shape[1] - mask.shape[1])
            return torch.cat([mask, generated], dim=1)
        config = self.assistant.generation_config
        pad_token_id = config.pad_token_id
        if pad_token_id is None:  # generate() pads with the end token then
            pad_token_id = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
        if pad_token_id is None:
            return torch.ones_like(input_ids)
        return (input_ids != pad_token_id).long().cummax(dim=1).values

    def _synchronize(self, cache: Cache | None, tokens: torch.Tensor) -> tuple[Cache, int]:
        """A cache that holds a common prefix of all `tokens` rows, and that prefix's length."""
        if cache is not None:
            keep, source = self._common_prefix(tokens)
            drop = self._tokens.shape[1] - keep
            # What a sliding window has dropped, or a state has taken in, cropping cannot bring back.
            if keep > 0 and (drop == 0 or all(type(layer) is DynamicLayer for layer in cache.layers)):
                if source is not None:
                    cache.reorder_cache(source)
                if drop:
                    cache.crop(-drop)
                return cache, keep
        return DynamicCache(config=self.assistant.config), 0

    def _common_prefix(self, tokens: torch.Tensor) -> tuple[int, torch.Tensor | None]:
        """How much of the cache serves all rows, and the row of it that each goes on from; `None` if its own."""
        length = min(self._tokens.shape[1], tokens.shape[1])
        source = None
        if len(tokens) == len(self._tokens) and torch.equal(tokens[:, :length], self._tokens[:, :length]):
            keep = length  # nothing was reordered: every row need not be compared with every other one
        else:
            prefix = longest_common_prefix(self._tokens, tokens)
            keep, source = int(prefix.amax(dim=1).min()), prefix.argmax(dim=1)
        # The last position must be computed again to have its logits.
        return min(keep, tokens.shape[1] - 1), source

    @torch.no_grad()
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """
        Subtract the assistant's logits.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Tokens so far.
            scores (`torch.FloatTensor` of shape `(batch_size, vocab_size)`):
                The target's logits or log-probabilities of the next token.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, vocab_size)`: The unlearned model's log-probabilities.

        Raises:
            RuntimeError: If the assistant was disabled, merged or taken apart.
            ValueError: If there are no tokens (prompts given as `inputs_embeds`), the vocabularies differ, or a setting
                of the subtraction is out of range.
        """
        if input_ids.shape[1] == 0:
            raise ValueError(
                "ULDLogitsProcessor got no tokens: prompts given as inputs_embeds are not visible to a processor. Use "
                "input_ids, or ULDForCausalLM."
            )
        self._watch.check({ADAPTER_NAME: self.assistant})
        settings = {name: vars(self)[name] for name in SETTINGS_OF_ONE}
        check_subtraction(self.alpha, **settings)
        self._net_effect.check({ADAPTER_NAME: self.alpha})
        self.assistant.eval()  # training goes on between two evaluations
        mask = self._full_mask(input_ids)
        tokens = input_ids.masked_fill(mask == 0, -1)
        # Of a call that fails half-way (out of memory, Ctrl-C) the cache would hold other tokens in some layers.
        cache, self._cache = self._cache, None
        cache, start = self._synchronize(cache, tokens)
        position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = self.assistant(
            input_ids=input_ids[:, start:],
            attention_mask=mask,
            position_ids=position_ids[:, start:],
            **{CACHE: cache},
            use_cache=True,
        ).logits[:, -1]
        self._cache, self._tokens = cache, tokens
        difference = logit_difference(scores, [logits], [self.alpha], **settings)
        # Beam search hands over log-probabilities and does not normalize again.
        return torch.log_softmax(difference, dim=-1)
