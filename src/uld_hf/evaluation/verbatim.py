"""Documents: does the model continue them word for word, and does it still read others as well as before?"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile

import numpy as np
import sacrebleu
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..context import context_length
from ..prompt_tokens import begin_token
from .tofu import generate_completions, rouge_l_recall
from .words import WORD, space_out


@dataclass(frozen=True)
class Continuations:
    """
    How a model continues passages of a document; one entry per passage.

    Args:
        continuations (`list[str]`):
            Greedy continuations.
        bleu (`numpy.ndarray` of shape `(num_passages,)`):
            Sentence BLEU, 0 to 100.
        rouge_l_recall (`numpy.ndarray` of shape `(num_passages,)`):
            ROUGE-L recall.
        longest_common_run (`numpy.ndarray` of shape `(num_passages,)`):
            Words of the longest run that both have.
    """

    continuations: list[str]
    bleu: np.ndarray
    rouge_l_recall: np.ndarray
    longest_common_run: np.ndarray


def split_passages(
    tokenizer: PreTrainedTokenizerBase, text: str, prefix_tokens: int, continuation_tokens: int
) -> tuple[list[str], list[str]]:
    """
    Cut a document into prefixes and what follows them, one after the other.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A tokenizer.
        text (`str`):
            The document.
        prefix_tokens (`int`):
            Tokens of each prefix.
        continuation_tokens (`int`):
            Tokens of each continuation.

    Returns:
        `tuple[list[str], list[str]]`: Prefixes, and continuations with the space that they begin with. A rest that is
            too short for both is left out.

    Raises:
        ValueError: If the document has no passage of that length.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    size = prefix_tokens + continuation_tokens
    starts = range(0, len(ids) - size + 1, size)
    if not starts:
        raise ValueError(f"The document has {len(ids)} tokens, fewer than a passage of {size}: use shorter passages.")
    passages = [tokenizer.decode(ids[start : start + size]) for start in starts]
    # Decoded by itself, what follows would lose its space with some tokenizers, and half of a character with others.
    ends = [
        _common_start(passage, tokenizer.decode(ids[start : start + prefix_tokens]))
        for passage, start in zip(passages, starts, strict=True)
    ]
    cut = list(zip(passages, ends, strict=True))
    return [passage[:end] for passage, end in cut], [passage[end:] for passage, end in cut]


def _common_start(first: str, second: str) -> int:
    """Characters that two texts begin with alike."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))


def longest_common_run(first: str, second: str) -> int:
    """
    Words of the longest run of words that two texts have in common.

    Args:
        first (`str`):
            A text.
        second (`str`):
            Another.

    Returns:
        `int`: Number of words.
    """
    words, others = WORD.findall(first), WORD.findall(second)
    return SequenceMatcher(None, words, others, autojunk=False).find_longest_match().size


def sentence_bleu(continuation: str, reference: str) -> float:
    """
    BLEU of one continuation, by sacrebleu.

    Args:
        continuation (`str`):
            Generated text.
        reference (`str`):
            Right text.

    Returns:
        `float`: 0 to 100.
    """
    return sacrebleu.sentence_bleu(space_out(continuation), [space_out(reference)]).score


def score_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prefixes: Sequence[str],
    references: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 32,
) -> Continuations:
    """
    Let a model continue prefixes of a document, and compare with the document.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prefixes (`Sequence[str]`):
            Passages to continue, see [`split_passages`].
        references (`Sequence[str]`):
            What follows each in the document.
        max_new_tokens (`int`):
            Longest continuation, in tokens.
        batch_size (`int`, *optional*, defaults to `32`):
            Passages per call of `generate()`.

    Returns:
        [`Continuations`]: The continuations and how close they are.
    """
    continuations = generate_completions(model, tokenizer, prefixes, max_new_tokens, batch_size)
    pairs = list(zip(continuations, references, strict=True))
    return Continuations(
        continuations=continuations,
        bleu=np.array([sentence_bleu(*pair) for pair in pairs]),
        rouge_l_recall=rouge_l_recall(continuations, references),
        longest_common_run=np.array([longest_common_run(*pair) for pair in pairs]),
    )


def word_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, window: int, stride: int | None = None
) -> float:
    """
    Perplexity of a document per word, which models with different tokenizers have in common.

    Windows roll over the document: each token is scored once, with at least `window - stride` tokens before it (but at
    the beginning, whose first token is not scored). Each window begins with the token that the tokenizer begins texts
    with, if it does: models are trained on texts behind it, and some know little without it.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        text (`str`):
            The document.
        window (`int`):
            Tokens of a window.
        stride (`int`, *optional*):
            Tokens by which it moves on. Defaults to half of the window.

    Returns:
        `float`: `exp` of the negative log-likelihood of all tokens, divided by the number of words.

    Raises:
        ValueError: If the window is longer than the model's context, the stride longer than the window, or the document
            shorter than two tokens.
    """
    return documents_perplexity(model, tokenizer, [text], window, stride)


def documents_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    window: int,
    stride: int | None = None,
) -> float:
    """
    Perplexity per word of several documents, each read by itself as [`word_perplexity`] reads it.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Any causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        texts (`Sequence[str]`):
            The documents.
        window (`int`):
            Tokens of a window.
        stride (`int`, *optional*):
            Tokens by which it moves on. Defaults to half of the window.

    Returns:
        `float`: `exp` of the negative log-likelihood of all tokens, divided by the number of all words.

    Raises:
        ValueError: If the window is longer than the model's context, the stride longer than the window, or a document
            shorter than two tokens.
    """
    stride = window // 2 if stride is None else stride
    longest = context_length(model.config)
    if not 1 <= stride < window or (longest is not None and window > longest):
        limit = "" if longest is None else f" <= {longest}"
        raise ValueError(f"window={window} and stride={stride} must satisfy 1 <= stride < window{limit}.")
    losses = [_read(model, tokenizer, text, window, stride) for text in texts]
    return float(np.exp(sum(losses) / sum(len(WORD.findall(text)) for text in texts)))


@torch.no_grad()
def _read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, window: int, stride: int) -> float:
    """The negative log-likelihood of a document's tokens, in nats."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"].to(model.device)
    if ids.shape[1] < 2:
        raise ValueError(f"The document {text!r} has fewer than two tokens: there is nothing to predict.")
    first = begin_token(tokenizer)
    begin = ids[:, :0] if first is None else ids.new_full((1, 1), first)
    room = window - begin.shape[1]
    total, scored = 0.0, 1
    with tqdm(total=ids.shape[1], desc="Reading", leave=False) as progress:
        while scored < ids.shape[1]:
            end = min(ids.shape[1], max(room, scored + stride))
            chunk = torch.cat([begin, ids[:, max(0, end - room) : end]], dim=1)
            log_probs = model(input_ids=chunk, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
            new = log_probs.gather(-1, chunk[:, 1:, None]).squeeze(-1)[0, -(end - scored) :]
            total -= new.sum(dtype=torch.float64).item()
            progress.update(end - scored)
            scored = end
    return total
