"""`uld generate`: what the target says, and what the unlearned model says, to the same prompts."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..compare.side_by_side import encode_prompt
from ..data.formatting import PROMPT_TEMPLATE, read_json_lines, read_text, template_options
from . import output
from .loading import load_tokenizer, load_unlearned
from .parsing import CommandParser, check_files, check_model_path, make_room
from .rows import check_is_json_lines


DESCRIPTION = """Answer prompts with the target and with the unlearned model, side by side.

  uld generate forget-alice --prompt "Who is Alice?"
  uld generate forget-alice --prompts_file questions.txt --output answers.jsonl
"""


@dataclass
class GenerateArguments:
    """
    What `uld generate` takes.

    Args:
        model (`str`):
            Folder or hub id of a saved unlearned model.
        prompt (`str`, *optional*):
            One prompt: a user's message where there is a chat template, else the text to continue.
        question (`str`, *optional*):
            One question, in the words of `uld train` for rows with `question` and `answer`.
        prompts_file (`str`, *optional*):
            File with one prompt per line, or a JSONL file with `prompt`, `question` or `messages`, the forget set's for
            one.
        system (`str`, *optional*):
            System message before a prompt that is a text.
        target (`str`, *optional*):
            Folder or hub id of the target, if it has moved since training.
        alpha (`float`, *optional*):
            Weight of the assistant's logits, in place of the saved one.
        gate (`float`, *optional*):
            Certainty below which an assistant is not subtracted, in place of the saved one.
        max_new_tokens (`int`, *optional*, defaults to `128`):
            Longest answer, in tokens.
        do_sample (`bool`, *optional*, defaults to `False`):
            Sample instead of taking the most probable token.
        seed (`int`, *optional*, defaults to `0`):
            Seed of sampling.
        output (`str`, *optional*):
            JSONL file to write the answers to as well.
    """

    model: str = field(metadata={"help": "folder or hub id of a saved unlearned model (what `uld train` wrote)"})
    prompt: str | None = field(
        default=None, metadata={"help": "one prompt: a user's message if there is a chat template, else as it is"}
    )
    question: str | None = field(
        default=None, metadata={"help": "one question, asked as `uld train` asks those of question-answer rows"}
    )
    prompts_file: str | None = field(
        default=None, metadata={"help": "one prompt per line, or JSONL rows with 'prompt', 'question' or 'messages'"}
    )
    system: str | None = field(default=None, metadata={"help": "system message before prompts that are texts"})
    target: str | None = field(
        default=None, metadata={"help": "folder or hub id of the target, if it has moved since training"}
    )
    alpha: float | None = field(default=None, metadata={"help": "weight of the subtraction, in place of the saved one"})
    gate: float | None = field(
        default=None, metadata={"help": "subtract only where the assistant is surer than this, in place of the saved"}
    )
    max_new_tokens: int = field(default=128, metadata={"help": "longest answer, in tokens"})
    do_sample: bool = field(default=False, metadata={"help": "sample instead of taking the most probable token"})
    seed: int = field(default=0, metadata={"help": "seed of sampling"})
    output: str | None = field(default=None, metadata={"help": "JSONL file to write the answers to as well"})


@dataclass(frozen=True)
class Prompt:
    """
    What is asked.

    Args:
        asked (`str` or `list[dict[str, str]]`):
            A text, or messages for the chat template.
        options (`dict[str, Any]`, *optional*):
            What the chat template is given besides.
    """

    asked: str | list[dict[str, str]]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text, or that of the last message."""
        return self.asked if isinstance(self.asked, str) else self.asked[-1]["content"]


def read_prompts(path: str, conversational: bool) -> list[Prompt]:
    """
    Read prompts from a file.

    Args:
        path (`str`):
            A text file with one prompt per line, or a JSONL file whose rows have `prompt`, `question` or `messages`.
        conversational (`bool`):
            Whether there is a chat template. If not, questions are asked as `uld train` asks them.

    Returns:
        `list[Prompt]`: The prompts; of messages, without the answer at their end.

    Raises:
        ValueError: If there are none, a JSONL row asks nothing, it has messages and there is no chat template, or the
            file is a table in another format, or no text in UTF-8.
    """
    check_is_json_lines(path)  # its lines would be taken for prompts
    if Path(path).suffix.lower() not in (".jsonl", ".json"):
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"{path} has no prompts.")
        return [Prompt(line) for line in lines]
    rows = enumerate(read_json_lines(path), start=1)
    return [_read_prompt(row, f"Row {number} of {path}", conversational) for number, row in rows]


def _read_prompt(row: Mapping[str, Any], source: str, conversational: bool) -> Prompt:
    messages = row.get("messages")
    is_trained = messages is not None
    if messages is None and isinstance(row.get("prompt"), list):
        messages = row["prompt"]
    if messages is not None:
        if not (isinstance(messages, list) and all(isinstance(each, dict) and "role" in each for each in messages)):
            raise ValueError(f"{source} has {messages!r}: write messages as a list of {{'role': ..., 'content': ...}}.")
        if is_trained and messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]  # the answer is what is asked for
        if not conversational:
            raise ValueError(f"{source} has messages, but the tokenizer has no chat template to render them with.")
        if not (messages and isinstance(messages[-1].get("content"), str)):
            raise ValueError(f"{source} asks nothing: its last message needs a text under 'content'.")
        return Prompt(messages, template_options(row))
    name = "prompt" if "prompt" in row else "question"
    if not isinstance(row.get(name), str):
        raise ValueError(f"{source} has no text under 'prompt' or 'question', and no 'messages'.")
    if conversational:
        return Prompt(row[name], template_options(row))
    return Prompt(row[name] if name == "prompt" else PROMPT_TEMPLATE.format(question=row[name]))


def after_system(prompt: Prompt, system: str) -> Prompt:
    """
    A prompt behind a system message.

    Args:
        prompt ([`Prompt`]):
            The prompt. Messages stay as they are.
        system (`str`):
            The message.

    Returns:
        [`Prompt`]: Messages.
    """
    if not isinstance(prompt.asked, str):
        return prompt
    said = [{"role": "system", "content": system}, {"role": "user", "content": prompt.asked}]
    return replace(prompt, asked=said)


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, arguments: GenerateArguments
) -> str:
    """
    One model's answer to one prompt, which goes through the chat template where there is one.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Target or unlearned model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompt ([`Prompt`]):
            The prompt.
        arguments ([`GenerateArguments`]):
            How to generate.

    Returns:
        `str`: The answer without the prompt.
    """
    inputs = encode_prompt(model, tokenizer, prompt.asked, **prompt.options)
    set_seed(arguments.seed)
    generated = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=arguments.do_sample)
    return tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def build_parser() -> CommandParser:
    """The command line of `uld generate`."""
    return CommandParser((GenerateArguments,), "uld generate", DESCRIPTION, words=("model",), has_json=True)


def main(argv: Sequence[str]) -> None:
    """
    Run `uld generate`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld generate`.

    Raises:
        ValueError: If an option, a file or a model is not what it must be.
    """
    (arguments,) = build_parser().parse(argv)
    given = [value for value in (arguments.prompt, arguments.question, arguments.prompts_file) if value is not None]
    if len(given) != 1:
        raise ValueError("Give one of --prompt, --question and --prompts_file.")
    check_files(arguments.prompts_file)
    make_room(arguments.output)
    check_model_path(arguments.model)
    if arguments.target is not None:
        check_model_path(arguments.target)
    model = load_unlearned(arguments.model, arguments.target, arguments.alpha, arguments.gate)
    tokenizer = load_tokenizer(model, arguments.model)
    conversational = tokenizer.chat_template is not None
    if arguments.prompts_file is not None:
        prompts = read_prompts(arguments.prompts_file, conversational)
    elif arguments.prompt is not None or conversational:
        prompts = [Prompt(given[0])]
    else:
        prompts = [Prompt(PROMPT_TEMPLATE.format(question=arguments.question))]
    if arguments.system is not None:
        if not conversational:
            raise ValueError("--system: the tokenizer has no chat template to render a system message with.")
        prompts = [after_system(prompt, arguments.system) for prompt in prompts]
    for prompt in prompts:  # what cannot be asked is said before the first answer
        encode_prompt(model, tokenizer, prompt.asked, **prompt.options)
    with ExitStack() as stack:
        file = stack.enter_context(open(arguments.output, "w", encoding="utf-8")) if arguments.output else None
        # Every answer is written and shown as soon as it is there: Ctrl-C loses one.
        for prompt in tqdm(prompts, desc="Answering", disable=len(prompts) < 2 or output.is_quiet()):
            row = {
                "prompt": prompt.text,
                "target": answer(model.target, tokenizer, prompt, arguments),
                "unlearned": answer(model, tokenizer, prompt, arguments),
            }
            if file is not None:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
            output.result(format_row(row), row)


def format_row(row: Mapping[str, str]) -> str:
    """
    A prompt and its answers, for a terminal.

    Args:
        row (`Mapping[str, str]`):
            Texts by what they are.

    Returns:
        `str`: Wrapped lines, and an empty one.
    """
    lines = [
        textwrap.fill(text, width=100, initial_indent=f"{name:<10} ", subsequent_indent=" " * 11)
        for name, text in row.items()
    ]
    return "\n".join([*lines, ""])
