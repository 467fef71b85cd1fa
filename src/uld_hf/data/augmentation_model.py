"""Paraphrases and wrong answers by a chat model, through transformers' text-generation pipeline."""

import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import TextGenerationPipeline, set_seed

from . import augmentation_prompts as prompts
from .augmentation import (
    ANSWER,
    PASSAGE,
    QUESTION,
    WRONG_ANSWER,
    Augmentation,
    Rows,
    Variants,
    assemble,
    check_counts,
    number_to_make,
    read_rows,
)
from .augmentation_documents import sentences
from .work_file import WorkFile


# Longest part of a document to rewrite at once: more, and small models begin to sum it up.
PASSAGE_CHARACTERS = 1200

_BULLET = re.compile(
    r"^\s*(?:[-*•–]|\(?\d{1,2}[.):]|[a-z][.)])\s+|^\s*(?:Question|Answer|Wrong answer|Q|A)\s*\d*\s*:\s*"
)


@dataclass(frozen=True)
class Sampling:
    """
    How the chat model is asked.

    Args:
        batch_size (`int`, *optional*, defaults to `8`):
            Rows at once. Finished ones are kept batch by batch.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest reply, in tokens.
        temperature (`float`, *optional*, defaults to `0.9`):
            Temperature of sampling.
        top_p (`float`, *optional*, defaults to `0.95`):
            Share of probability to sample from.
        attempts (`int`, *optional*, defaults to `3`):
            How often a row is asked for what is still missing.
    """

    batch_size: int = 8
    max_new_tokens: int = 512
    temperature: float = 0.9
    top_p: float = 0.95
    attempts: int = 3

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_new_tokens", "attempts"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name}={vars(self)[name]} must be at least 1.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0: equal replies would be of no use.")


def augment_by_model(
    forget: Dataset,
    generator: TextGenerationPipeline,
    retain: Dataset | None = None,
    paraphrases: int = 2,
    wrong_answers: int = 2,
    seed: int = 0,
    sampling: Sampling = Sampling(),
    work_file: str | os.PathLike | None = None,
    held_out: int = 0,
) -> Augmentation:
    """
    The paper's augmentation (section 3.4) by a chat model; what it writes is checked, and dropped if it is no use.

    Args:
        forget ([`~datasets.Dataset`]):
            Rows to forget: question and answer, prompt and completion, messages, or text.
        generator ([`~transformers.TextGenerationPipeline`]):
            `pipeline("text-generation", model=...)` of a model with a chat template.
        retain ([`~datasets.Dataset`], *optional*):
            Rows to keep, in the same format. No wrong answer is one of theirs. They are not shown to the model.
        paraphrases (`int`, *optional*, defaults to `2`):
            Paraphrases of question and answer, or of a document's parts, for each row at most.
        wrong_answers (`int`, *optional*, defaults to `2`):
            Wrong answers for each row at most; documents have none.
        seed (`int`, *optional*, defaults to `0`):
            Seed. Every batch has its own, so that a run that was cut off goes on as it would have.
        sampling ([`Sampling`], *optional*):
            How the model is asked.
        work_file (`str` or `os.PathLike`, *optional*):
            JSONL file for finished batches. What is in it already is not made again.
        held_out (`int`, *optional*, defaults to `0`):
            Wrong answers beyond these, and a paraphrase of the answer beyond those, that join neither set: an
            evaluation asks with them, see `questions` of the result. Documents have none.

    Returns:
        [`Augmentation`]: The two sets, what was made of each row, and a report.

    Raises:
        ValueError: If the sets cannot be augmented, see [`read_rows`], the model has no chat template, or the work file
            belongs to other data or settings.
    """
    check_counts(paraphrases, wrong_answers, held_out)
    if generator.tokenizer.chat_template is None:
        raise ValueError(
            f"{generator.model.name_or_path} has no chat template, so it cannot be told what to write. Use a chat "
            "model, or augment by rules."
        )
    if generator.tokenizer.pad_token_id is None:
        generator.tokenizer.pad_token = generator.tokenizer.eos_token
    rows = read_rows(forget, retain)
    settings = {
        "model": generator.model.name_or_path,
        "commit": vars(generator.model.config).get("_commit_hash"),
        "prompts": hashlib.sha256(Path(prompts.__file__).read_bytes()).hexdigest(),
        "paraphrases": paraphrases,
        "wrong_answers": wrong_answers,
        "held_out": held_out,
        "seed": seed,
        "sampling": asdict(sampling),
        "rows": hashlib.sha256(json.dumps([rows.forget, rows.retain]).encode()).hexdigest(),
    }
    # A batch's replies depend on its rows, so only whole batches are kept.
    work = WorkFile(work_file, settings)
    variants = [Variants(**each) for batch in work.batches for each in batch]
    ask = _ask_about_documents if rows.kind == "text" else _ask_about_pairs
    wanted = number_to_make(rows, paraphrases, wrong_answers, held_out)
    with tqdm(total=len(rows.forget), initial=len(variants), desc="Asking the model", leave=False) as progress:
        while len(variants) < len(rows.forget):
            indices = range(len(variants), min(len(variants) + sampling.batch_size, len(rows.forget)))
            replies = _Asker(generator, sampling, f"{seed} {indices[0]}")
            made = ask(rows, indices, replies, *wanted)
            work.append([asdict(each) for each in made])
            variants += made
            progress.update(len(indices))
    return assemble(rows, variants, paraphrases, wrong_answers)


_CHATTER = re.compile(
    r"(?:sure|certainly|of course|okay|ok|here(?:'s| is| are)|let me know|i hope this"
    r"|i(?:'m| am) (?:sorry|unable|afraid)|i (?:can(?:no|')t|apologi[sz]e)|unfortunately, i|sorry"
    r"|as an ai|as a language model)\b",
    re.IGNORECASE,
)


class _Asker:
    """Puts prompts to the model, each batch with a seed of its own."""

    def __init__(self, generator: TextGenerationPipeline, sampling: Sampling, name: str):
        self.generator, self.sampling, self.name = generator, sampling, name
        rendered = generator.tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True
        )
        # Some templates begin the thoughts, and the reply has no tag of its own then.
        self.begun = "<think>" if rendered.rstrip().endswith("<think>") else ""

    def __call__(self, texts: Sequence[str], step: str) -> list[str]:
        set_seed(random.Random(f"{self.name} {step}").getrandbits(32))
        outputs = self.generator(
            [[{"role": "user", "content": text}] for text in texts],
            batch_size=len(texts),
            do_sample=True,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_new_tokens=self.sampling.max_new_tokens,
            return_full_text=False,
        )
        return [self.begun + output[0]["generated_text"] for output in outputs]


def _ask_about_pairs(
    rows: Rows, indices: Sequence[int], ask: _Asker, paraphrases: int, wrong_answers: int
) -> list[Variants]:
    made = [Variants() for _ in indices]
    checks = rows.checks

    def check(kind: str, index: int, variants: Variants) -> Callable[[str], str | None]:
        if kind == QUESTION:
            return lambda text: checks.question(index, text)
        if kind == ANSWER:
            return lambda text: checks.answer(index, text)
        return lambda text: checks.wrong_answer(index, text, variants.questions)

    # Wrong answers come last: they must not be right ones of the new questions either.
    for kind, prompt, number in (
        (QUESTION, prompts.PARAPHRASE_QUESTION, paraphrases),
        (ANSWER, prompts.PARAPHRASE_ANSWER, paraphrases),
        (WRONG_ANSWER, prompts.WRONG_ANSWER, wrong_answers),
    ):
        for attempt in range(ask.sampling.attempts):
            short = [turn for turn, variants in enumerate(made) if len(variants.texts(kind)) < number]
            if not short:
                break
            texts = [prompt.format(number=number, **checks.pairs[indices[turn]]._asdict()) for turn in short]
            for turn, reply in zip(short, ask(texts, f"{kind} {attempt}"), strict=True):
                made[turn].add(kind, parse_lines(reply), number, check(kind, indices[turn], made[turn]))
    return made


def _ask_about_documents(
    rows: Rows, indices: Sequence[int], ask: _Asker, paraphrases: int, wrong_answers: int
) -> list[Variants]:
    made = [Variants() for _ in indices]
    for turn, index in enumerate(indices):
        parts = passages(rows.checks.pairs[index].answer)
        # A document of several passages is rewritten as often as one of a single passage.
        for part in range(len(parts) * paraphrases):
            original = parts[part % len(parts)]
            for attempt in range(ask.sampling.attempts):
                before = len(made[turn].passages)
                (reply,) = ask(
                    [prompts.REWRITE_PASSAGE.format(passage=original)], f"{PASSAGE} {index} {part} {attempt}"
                )
                rewritten = _rewritten(reply)
                made[turn].add(
                    PASSAGE,
                    [rewritten or reply],
                    before + 1,
                    lambda text, index=index, original=original, rewritten=rewritten: (
                        rows.checks.rewritten_part(index, original, text) if rewritten else "is no text, but about one"
                    ),
                )
                if len(made[turn].passages) > before:
                    break
    return made


def passages(text: str, characters: int = PASSAGE_CHARACTERS) -> list[str]:
    """
    A document in parts of whole sentences.

    Args:
        text (`str`):
            The document.
        characters (`int`, *optional*, defaults to `1200`):
            Longest part, unless a sentence is longer.

    Returns:
        `list[str]`: The parts, in order.
    """
    parts = [""]
    for sentence in sentences(text):
        if parts[-1] and len(parts[-1]) + len(sentence) > characters:
            parts.append("")
        parts[-1] += sentence
    return [part.strip() for part in parts if part.strip()]


def parse_lines(reply: str) -> list[str]:
    """
    The texts that a chat model wrote, one on a line, whatever it put around them.

    Args:
        reply (`str`):
            The model's reply.

    Returns:
        `list[str]`: The lines, without numbers, bullets and quotation marks around the whole of them; lines that
        introduce others ("Here are ...:") or speak for the model ("I'm sorry, ..."), and its thoughts, are left out.
    """
    lines = []
    for line in _lines_after_thoughts(reply):
        text = _BULLET.sub("", line)
        text = _BULLET.sub("", text).strip().strip("*").strip()
        if len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2:
            text = text[1:-1].strip()
        if text and not text.endswith(":") and not _is_chatter(text):
            lines.append(text)
    return lines


def _rewritten(reply: str) -> str:
    """The passage of a reply. The model speaks for itself before or after it: inside, "Sure" is somebody else's."""
    lines = _lines_after_thoughts(reply)
    if lines and (_is_chatter(lines[0]) or lines[0].endswith(":")):
        del lines[0]
    if len(lines) > 1 and _is_chatter(lines[-1]):
        del lines[-1]
    return " ".join(lines)


def _lines_after_thoughts(reply: str) -> list[str]:
    """The lines of a reply but for a reasoning model's thoughts; none, if it was cut off while it thought."""
    if "<think>" in reply and "</think>" not in reply:
        return []
    lines = (" ".join(line.split()) for line in reply.rpartition("</think>")[2].splitlines())
    return [line for line in lines if line]


def _is_chatter(line: str) -> bool:
    return _CHATTER.match(line.replace("\u2019", "'")) is not None
