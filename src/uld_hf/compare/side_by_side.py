"""Two answers to one prompt, token by token beside each other: the target's and the unlearned model's."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from ..modeling_uld import ULDForCausalLM
from ..prompt_tokens import prompt_tokens


@dataclass(frozen=True)
class Answers:
    """
    What has been said so far.

    Args:
        target (`str`):
            By the target: what the model says without unlearning.
        unlearned (`str`):
            By the unlearned model.
    """

    target: str = ""
    unlearned: str = ""


def choose_assistants(model: ULDForCausalLM, alphas: Mapping[str, float]) -> ULDForCausalLM:
    """
    The same target with some of the assistants, on the same tensors.

    Args:
        model ([`ULDForCausalLM`]):
            The model with all of them. It is not changed.
        alphas (`Mapping[str, float]`):
            Weights of those to subtract, by name.

    Returns:
        [`ULDForCausalLM`]: The model.

    Raises:
        ValueError: If there is none: both answers would be the target's.
    """
    if not alphas:
        raise ValueError("Choose at least one forget set: without any, both answers are the target's own.")
    assistants = {name: model.assistants[name] for name in alphas}
    return ULDForCausalLM(model.config, target=model.target, assistant=assistants, alpha=dict(alphas))


class _Stop(StoppingCriteria):
    """Ends a generation once nobody listens any more."""

    def __init__(self, stopped: threading.Event):
        self.stopped = stopped

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor, **kwargs: object) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self.stopped.is_set(), device=input_ids.device)


class _Turns:
    """Lets two threads run by turns: target and unlearned model share modules, and one of them runs at a time."""

    def __init__(self) -> None:
        self.running = [True, True]
        self.turn = 0
        self.changed = threading.Condition()

    def wait(self, place: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.turn == place)

    def pass_on(self, place: int) -> None:
        with self.changed:
            other = 1 - place
            self.turn = other if self.running[other] else place
            self.changed.notify_all()

    def leave(self, place: int) -> None:
        with self.changed:
            self.running[place] = False
            self.turn = 1 - place
            self.changed.notify_all()


class _Streamer(TextIteratorStreamer):
    """A text streamer that passes the turn on after every token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: _Turns, place: int):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.turns = turns
        self.place = place

    def put(self, value: torch.Tensor) -> None:
        super().put(value)
        self.turns.pass_on(self.place)
        self.turns.wait(self.place)


def encode_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Mapping[str, str]],
    **template_options: Any,
) -> dict[str, Any]:
    """
    What `generate()` takes to answer a prompt.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model that is going to answer.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. The prompt goes through its chat template, if there is one.
        prompt (`str` or `Sequence[Mapping[str, str]]`):
            The prompt, or messages for the chat template.
        **template_options:
            What the chat template is given besides.

    Returns:
        `dict[str, Any]`: Keyword arguments: `input_ids` and `attention_mask` of shape `(1, length)` on the model's
            device, and `pad_token_id`.

    Raises:
        ValueError: If there is not one token.
    """
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt", **template_options}
        inputs = tokenizer.apply_chat_template(messages, **options)
    else:
        (tokens,) = prompt_tokens(tokenizer, [prompt])
        if not tokens:
            raise ValueError(
                f"The prompt {prompt!r} has no token, and the tokenizer puts none before a text: write something to go "
                "on from."
            )
        input_ids = torch.tensor([tokens])
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    return {
        **{name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")},
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    }


def stream_answers(
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int = 128,
    do_sample: bool = False,
) -> Iterator[Answers]:
    """
    Answer a prompt with the target and the unlearned model, a token of each in turn.

    Args:
        model ([`ULDForCausalLM`]):
            The unlearned model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. The prompt goes through its chat template, if there is one.
        prompt (`str`):
            The prompt.
        max_new_tokens (`int`, *optional*, defaults to `128`):
            Longest answer, in tokens.
        do_sample (`bool`, *optional*, defaults to `False`):
            Sample instead of taking the most probable token.

    Yields:
        [`Answers`]: What has been said so far, whenever there is more. Who stops listening stops both models.
    """
    inputs = encode_prompt(model, tokenizer, prompt)
    turns, stopped = _Turns(), threading.Event()
    streamers = [_Streamer(tokenizer, turns, place) for place in (0, 1)]
    failures: list[Exception] = []

    def generate(place: int, speaker: PreTrainedModel) -> None:
        turns.wait(place)
        try:
            speaker.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=do_sample,
                streamer=streamers[place],
                stopping_criteria=StoppingCriteriaList([_Stop(stopped)]),
            )
        except Exception as error:  # raised where the answers are read
            failures.append(error)
            stopped.set()
        finally:
            streamers[place].end()  # also of a generation that failed
            turns.leave(place)

    threads = [
        threading.Thread(target=generate, args=(place, speaker), daemon=True)
        for place, speaker in enumerate((model.target, model))
    ]
    for thread in threads:
        thread.start()
    texts = ["", ""]
    try:
        while any(thread.is_alive() for thread in threads) or any(not s.text_queue.empty() for s in streamers):
            for place, streamer in enumerate(streamers):
                try:
                    text = streamer.text_queue.get(timeout=0.02)
                except Empty:
                    continue
                if text is not streamer.stop_signal and text:
                    texts[place] += text
                    yield Answers(*(text.lstrip() for text in texts))
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
