"""Decoding in blocks: the target drafts, the assistants check, and the text is the unlearned model's, token for token.

The target alone writes a block of m tokens; each assistant then runs once over all of them. The target's logits are
already there, so the unlearned choice at every position is known: the longest prefix on which draft and choice agree is
kept, plus the choice at the first disagreement. Where the text has nothing to do with the forget set nearly every block
is kept, and m passes of the target cost one pass of each assistant instead of m.
"""

from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    Cache,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteriaList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    WatermarkLogitsProcessor,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutputWithPast

from .cache_name import CACHE


if TYPE_CHECKING:
    from .modeling_uld import ULDForCausalLM


# Those that remember nothing from call to call: drafts that are refused later may ask them as well. Any other
# (guidance, a grammar, a user's own) is asked as in plain decoding, once for every token of the text: drafts do
# without it.
STATELESS_PROCESSORS = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    WatermarkLogitsProcessor,
)


class BlockSize:
    """
    How many tokens to draft next: more while the assistants agree, one after a disagreement.

    A block of one token is a plain step. Wasted blocks make it more cautious: it then waits for more agreements in a
    row before it drafts ahead again.

    Args:
        largest (`int`):
            Most tokens to draft.
    """

    def __init__(self, largest: int):
        self.largest = largest
        self.size = 1
        self.agreements = 0
        self.needed = 1

    def update(self, agreed: bool) -> None:
        """
        Learn what became of a block.

        Args:
            agreed (`bool`):
                Whether every token of the block was the unlearned model's choice too.
        """
        if not agreed:
            self.needed = min(2 * self.needed, 16) if self.size > 1 else self.needed
            self.size, self.agreements = 1, 0
            return
        self.agreements += 1
        if self.size > 1 or self.agreements >= self.needed:
            self.size = min(2 * self.size, self.largest)
        if self.size == self.largest:
            self.needed = 1


class _Text:
    """What has been generated, one token at a time as in `generate()`, so that rows end where they do there."""

    def __init__(
        self,
        input_ids: torch.LongTensor,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None,
    ):
        self.input_ids = input_ids
        self.stopping_criteria = stopping_criteria
        self.pad_token_id = generation_config._pad_token_tensor
        self.streamer = streamer
        self.unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        returned = generation_config.return_dict_in_generate
        self.scores = () if returned and generation_config.output_scores else None
        self.logits = () if returned and generation_config.output_logits else None

    def append(self, tokens: torch.LongTensor, logits: torch.Tensor, scores: torch.Tensor) -> None:
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (logits,)
        if self.pad_token_id is not None:
            tokens = torch.where(self.unfinished, tokens, self.pad_token_id.to(tokens.device))
        self.input_ids = torch.cat([self.input_ids, tokens[:, None]], dim=-1)
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())
        self.unfinished = self.unfinished & ~self.stopping_criteria(self.input_ids, self.scores)

    @property
    def finished(self) -> bool:
        return not self.unfinished.any()


def can_check_blocks(generation_config: GenerationConfig, model_kwargs: dict[str, Any]) -> bool:
    """
    Whether a generation has a cache from which refused drafts can be taken back.

    Args:
        generation_config ([`~transformers.GenerationConfig`]):
            Settings of the generation.
        model_kwargs (`dict[str, Any]`):
            What `generate()` prepared for the model.

    Returns:
        `bool`: `False` for static, quantized and offloaded caches, no cache, and drafting for another model.
    """
    cache = model_kwargs.get(CACHE)
    return (
        isinstance(cache, Cache)
        and not generation_config.is_assistant
        # By exact type: a subclass may store what plain cropping does not reach.
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    )


@torch.no_grad()
def generate_in_blocks(
    model: "ULDForCausalLM",
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer: BaseStreamer | None,
    **model_kwargs: Any,
) -> torch.LongTensor | GenerateDecoderOnlyOutput:
    """
    The decoding loop of `generate()` for `execution="blocks"`.

    Greedy text equals that of plain decoding. Sampled text has exactly its distribution: draft and choice at a position
    take the same random numbers, so they differ only where the distributions do. A batch keeps what all of its
    unfinished rows agree on.

    Args:
        model ([`ULDForCausalLM`]):
            The unlearned model.
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Prompts.
        logits_processor ([`~transformers.LogitsProcessorList`]):
            Applied to the unlearned model's logits for choices and, as far as they remember nothing, to the target's
            for drafts.
        stopping_criteria ([`~transformers.StoppingCriteriaList`]):
            Asked after every token.
        generation_config ([`~transformers.GenerationConfig`]):
            Greedy or sampling.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*):
            Gets tokens as they are decided.
        **model_kwargs:
            What `generate()` prepared for the model.

    Returns:
        `torch.LongTensor` of shape `(batch_size, length)`, or what `return_dict_in_generate` asks for.
    """
    text = _Text(input_ids, stopping_criteria, generation_config, streamer)
    outputs = model._prefill(input_ids, generation_config, model_kwargs)
    cache = outputs[CACHE]
    cache.activate_past_recording()  # sliding windows then keep what cropping brings back
    target_cache, *assistant_caches = model.split_cache(cache)
    do_sample = generation_config.do_sample
    # By exact type: a subclass may remember.
    draft_processor = LogitsProcessorList(each for each in logits_processor if type(each) in STATELESS_PROCESSORS)

    def draw(ids: torch.LongTensor, logits: torch.Tensor) -> tuple[torch.LongTensor, torch.Tensor | None]:
        scores = draft_processor(ids, logits)
        noise = _draw_noise(scores, do_sample)
        return torch.cat([ids, _pick(scores, noise)[:, None]], dim=-1), noise

    logits = outputs.logits[:, -1].float()
    scores = logits_processor(input_ids, logits)
    text.append(_pick(scores, _draw_noise(scores, do_sample)), logits, scores)
    model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
    del outputs

    block = BlockSize(model.max_block_size)
    while not text.finished:
        model._check()
        length = text.input_ids.shape[1]
        size = max(1, min(block.size, generation_config.max_length - length))  # no draft beyond the end
        if size == 1:  # a plain step, in lockstep where that is possible
            kwargs = {**model_kwargs, CACHE: cache}
            inputs = model.prepare_inputs_for_generation(text.input_ids, next_sequence_length=1, **kwargs)
            step_logits, assistant_logits = model._run(inputs.pop(CACHE), {**inputs, "return_dict": True})
            target_logits = [step_logits[:, -1].float()]
            drafted, noise = draw(text.input_ids, target_logits[0])
            noises = [noise]
        else:
            # The target alone. Its last draft is not fed to it: the choice at that place is known without.
            drafted, kwargs = text.input_ids, {**model_kwargs, CACHE: target_cache}
            target_logits, noises = [], []
            for _ in range(size):
                fed, fed_kwargs = drafted, dict(kwargs)
                inputs = model.target.prepare_inputs_for_generation(drafted, next_sequence_length=1, **kwargs)
                outputs = model.target(**inputs, return_dict=True)
                target_logits.append(outputs.logits[:, -1].float().to(input_ids.device))
                drafted, noise = draw(drafted, target_logits[-1])
                noises.append(noise)
                kwargs = model.target._update_model_kwargs_for_generation(outputs, kwargs)

            # The assistants over the whole block.
            assistant_logits = []
            for assistant, assistant_cache in zip(model.assistants.values(), assistant_caches, strict=True):
                fed_kwargs[CACHE] = assistant_cache
                fed_kwargs.pop("logits_to_keep", None)  # generate() wants the last position only
                inputs = model.target.prepare_inputs_for_generation(fed, next_sequence_length=size, **fed_kwargs)
                assistant_logits.append(assistant(**inputs, return_dict=True).logits.to(input_ids.device))
        stacked = target_logits[0][:, None] if size == 1 else torch.stack(target_logits, dim=1)  # plain steps copy none
        choices = model.subtract(stacked, assistant_logits)

        agreed = True
        for position in range(size):
            scores = logits_processor(text.input_ids, choices[:, position])
            tokens = _pick(scores, noises[position])
            same = (tokens == drafted[:, length + position]) | ~text.unfinished
            text.append(tokens, choices[:, position], scores)
            agreed = bool(same.all())
            if not agreed or text.finished:
                break
        kept = text.input_ids.shape[1] - length
        cache.crop(kept - size)
        block.update(agreed)
        output = CausalLMOutputWithPast(**{CACHE: cache})
        model_kwargs = model._update_model_kwargs_for_generation(output, model_kwargs, num_new_tokens=kept)

    if streamer is not None:
        streamer.end()
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(
            sequences=text.input_ids, scores=text.scores, logits=text.logits, **{CACHE: cache}
        )
    return text.input_ids


def _draw_noise(scores: torch.Tensor, do_sample: bool) -> torch.Tensor | None:
    # argmax(p / e) with exponential e is a draw from p: the same e for draft and choice couples the two.
    return torch.empty_like(scores).exponential_() if do_sample else None


def _pick(scores: torch.Tensor, noise: torch.Tensor | None) -> torch.LongTensor:
    if noise is None:
        return scores.argmax(dim=-1)
    if scores.isnan().any():  # as torch.multinomial does
        raise RuntimeError(
            "The logits are NaN: an assistant is broken, or has overflowed. Load both anew, in bfloat16 if in float16."
        )
    return (scores.softmax(dim=-1) / noise).argmax(dim=-1)
