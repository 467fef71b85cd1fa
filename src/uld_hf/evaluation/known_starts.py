"""How much of a greedy answer scoring has found already: its tokens need not be generated one by one.

Scoring the right answer tells of each of its tokens whether it is the model's first choice. As long as all of them are,
the greedy answer is the right one, and a model that knows an answer to its end need not be asked at all. Scores and
`generate()` see the same text in other batches: where two tokens are as good as equally probable, rounding chooses, as
it does between two batch sizes.
"""

import inspect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationMixin, PreTrainedModel

from .answer_logits import depends_on_length
from .scoring import TokenScores


# Fields of a generation config that do not say which token comes next in a greedy answer of a given length.
WITHOUT_EFFECT = frozenset(
    {
        *("bos_token_id", "eos_token_id", "pad_token_id"),
        *("max_length", "max_new_tokens"),  # what is given to generate() counts
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        *("use_cache", "disable_compile", "trust_remote_code", "transformers_version"),
    }
)
# Values with which others change nothing, as older checkpoints write them out. Whatever else is set may change it.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "cache_implementation": ("dynamic", "static", "hybrid", "sliding_window", "offloaded", "offloaded_static"),
    "diversity_penalty": (0.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "length_penalty": (1.0,),
    "min_length": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1.0,),
    **dict.fromkeys(
        (
            *("early_stopping", "is_assistant", "low_memory", "remove_invalid_values", "renormalize_logits"),
            *("output_attentions", "output_hidden_states", "output_logits", "output_scores"),
            *("return_dict_in_generate", "token_healing"),
        ),
        (False,),
    ),
}


@dataclass(frozen=True)
class KnownStart:
    """
    What is known of a greedy answer before it is generated.

    Args:
        ids (`list[int]`):
            Its first tokens; empty if nothing is known.
        is_whole (`bool`):
            Whether nothing follows them.
        expected_rest (`int`):
            How many tokens follow if it is as long as the right answer; at least 1, and no more than may be generated.
    """

    ids: list[int]
    is_whole: bool
    expected_rest: int


def end_tokens(model: PreTrainedModel) -> list[int]:
    """
    Tokens that end an answer by a model's generation config.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.

    Returns:
        `list[int]`: The tokens; empty if there are none.
    """
    ends = None if model.generation_config is None else model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def plain_ends(model: PreTrainedModel) -> frozenset[int] | None:
    """
    Tokens that end a greedy answer, if `generate()` takes nothing but the most probable token every time.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.

    Returns:
        `frozenset[int]` or `None`: `None` if it may take another one: it is not transformers' own `generate()`, the
        generation config has a setting that is not known to change nothing (penalties, forbidden or forced tokens,
        beams, ...), or positions are turned otherwise in a longer text.
    """
    is_own = inspect.ismethod(model.generate) and model.generate.__func__ is GenerationMixin.generate
    if not is_own or model.generation_config is None or depends_on_length(model):
        return None
    for name, value in vars(model.generation_config).items():
        is_neutral = value is None or name in WITHOUT_EFFECT or value in NEUTRAL.get(name, ())
        if not (is_neutral or name.startswith("_")):  # what begins so is transformers' own
            return None
    return frozenset(end_tokens(model))


def known_starts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    scores: Sequence[TokenScores],
    max_new_tokens: int,
    ends: Collection[int] = (),
) -> list[KnownStart]:
    """
    What the scores of right answers tell of greedy answers.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model that was scored.
        prompts (`Sequence[Sequence[int]]`):
            Tokens of the prompts, as `generate()` is given them. The beginning of the right answer may be in them.
        scores (`Sequence[TokenScores]`):
            What the model makes of the right answer to each.
        max_new_tokens (`int`):
            Longest greedy answer, in tokens.
        ends (`Collection[int]`, *optional*):
            Tokens that end an answer, besides those of the model's generation config.

    Returns:
        `list[KnownStart]`: One for each prompt.
    """
    own_ends = plain_ends(model)
    starts = []
    for prompt_ids, row in zip(prompts, scores, strict=True):
        ids = [] if own_ends is None else row.first_choices(prompt_ids)[:max_new_tokens]
        ended = [place for place, token in enumerate(ids) if token in own_ends or token in ends]
        if ended:
            ids = ids[: ended[0] + 1]
        right_length = len(row.input_ids) - len(prompt_ids)
        starts.append(
            KnownStart(
                ids=ids,
                is_whole=bool(ended) or len(ids) == max_new_tokens,
                expected_rest=max(1, min(right_length, max_new_tokens) - len(ids)),
            )
        )
    return starts


def batches_to_generate(
    lengths: Sequence[int], starts: Sequence[KnownStart], max_new_tokens: int, batch_size: int, context: int | None
) -> Iterator[list[int]]:
    """
    Rows that are not known as a whole, in batches of which all rows are likely to end soon after one another.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each prompt.
        starts (`Sequence[KnownStart]`):
            What is known of each answer.
        max_new_tokens (`int`):
            Longest greedy answer, in tokens. A prompt and that many fit into the context.
        batch_size (`int`):
            Most rows of a batch.
        context (`int`, *optional*):
            Most tokens that the model can be given. All rows of a batch are run until its last one ends: a long prompt
            of which the answer is nearly known may not fit beside an answer that has just begun.

    Returns:
        `Iterator[list[int]]`: Indices of rows.
    """
    waiting = [index for index, start in enumerate(starts) if not start.is_whole]
    waiting.sort(key=lambda index: (starts[index].expected_rest, lengths[index]), reverse=True)
    batch: list[int] = []
    for index in waiting:
        longest = max(lengths[each] + len(starts[each].ids) for each in (*batch, index))
        most = max(max_new_tokens - len(starts[each].ids) for each in (*batch, index))
        if len(batch) == batch_size or (batch and context is not None and longest + most > context):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
