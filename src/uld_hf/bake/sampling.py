"""Text drawn from a model: the teacher's own answers, and the student's (arXiv 2306.13649)."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..context import context_length
from ..plain_generation import plain_generation


def prompt_of(input_ids: Sequence[int], labels: Sequence[int]) -> list[int]:
    """
    What comes before the answer of a row; of a text, which is all answer, its first half.

    Args:
        input_ids (`Sequence[int]`):
            The row's tokens.
        labels (`Sequence[int]`):
            Its labels, -100 for tokens that do not count in the loss.

    Returns:
        `list[int]`: Tokens, at least one.
    """
    first = next(index for index, label in enumerate(labels) if label != -100)
    return list(input_ids[: first if first > 0 else max(1, len(input_ids) // 2)])


def answer_row(prompt: Sequence[int], answer: Sequence[int], is_retain: bool) -> dict[str, Any]:
    """
    A row of a prompt and an answer that was drawn to it.

    Args:
        prompt (`Sequence[int]`):
            Tokens of the prompt.
        answer (`Sequence[int]`):
            Tokens of the answer, the only ones that count in the loss.
        is_retain (`bool`):
            Whether the prompt is of what must be kept.

    Returns:
        `dict[str, Any]`: `input_ids`, `labels` and `is_retain`.
    """
    return {
        "input_ids": [*prompt, *answer],
        "labels": [*[-100] * len(prompt), *answer],
        "is_retain": is_retain,
    }


@torch.no_grad()
def draw_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    synced_gpus: bool = False,
) -> Iterator[list[int]]:
    """
    Draw one answer to each prompt from a model's own distribution, not bent by its generation defaults.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        prompts (`Sequence[Sequence[int]]`):
            Tokens of the prompts.
        eos_token_ids (`Sequence[int]`):
            Tokens that end an answer.
        pad_token_id (`int`):
            Token to pad with.
        max_new_tokens (`int`):
            Longest answer, in tokens; less where the model's context ends.
        temperature (`float`):
            Temperature of the draws.
        batch_size (`int`):
            Prompts per call of `generate()`.
        synced_gpus (`bool`, *optional*, defaults to `False`):
            Whether all processes draw as many batches, and each goes on until the last is done: where FSDP has divided
            the weights among them.

    Yields:
        `list[int]`: The answer's tokens, its end included; empty where the context has no room.
    """
    longest = context_length(model.config)
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(map(len, batch))
        room = max_new_tokens if longest is None else min(max_new_tokens, longest - width)
        if synced_gpus:  # as many tokens everywhere, or those with less room would run beyond it
            least = torch.tensor(room, device=model.device)
            torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
            room = int(least)
        if room < 1:
            yield from ([] for _ in batch)
            continue
        padded = [[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in batch]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch]
        # Between draws its own again: the caller may go on with the model before the last of them.
        with plain_generation(model):
            generated = model.generate(
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                generation_config=GenerationConfig(
                    do_sample=True,
                    temperature=temperature,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=room,
                    use_cache=True,
                    pad_token_id=pad_token_id,
                    eos_token_id=list(eos_token_ids) or None,
                ),
                synced_gpus=synced_gpus,
            )
        for answer in generated[:, width:].tolist():
            end = next((index for index, token in enumerate(answer) if token in eos_token_ids), len(answer) - 1)
            yield answer[: end + 1]
