"""What the teacher said, on disk: its answers, and its most probable tokens at every token that counts.

    answers.json          answers drawn from the teacher, tokenized
    top-k/meta.json       fingerprint and sizes
    top-k/tokens.npy      int32, (num_tokens, k)
    top-k/log_probs.npy   float32, (num_tokens, k + 1): the last column is that of all other tokens together
    top-k/likelihoods.npy float32, (num_tokens,): that of the text's own next token, at temperature 1
    top-k/ends.npy        int64, (num_rows,): where each row's tokens end

Each part carries a fingerprint of teacher, data and settings, and is refused where another is expected. Both are
written beside their place and renamed, so that what is there is whole.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from .losses import TopKTargets, likelihoods


ANSWERS_FILE = "answers.json"
TOP_K_FOLDER = "top-k"


def compute_fingerprint(**content: Any) -> str:
    """
    Hash what a part of the cache depends on.

    Args:
        **content:
            What JSON can hold.

    Returns:
        `str`: SHA-256.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_fingerprint(place: Path, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(
            f"{place} was made with another teacher, other data or other settings, and would teach something else. "
            "Delete it, or give another teacher_cache_dir."
        )


def read_answers(folder: Path, fingerprint: str) -> list[list[list[int]]] | None:
    """
    Answers that were drawn before.

    Args:
        folder (`Path`):
            Folder of the cache.
        fingerprint (`str`):
            What they must have been made with.

    Returns:
        `list[list[list[int]]]` or `None`: Answers to each prompt; `None` if there are none.

    Raises:
        ValueError: If they were made with something else.
    """
    file = folder / ANSWERS_FILE
    if not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    _check_fingerprint(file, content["fingerprint"], fingerprint)
    return content["answers"]


def write_answers(folder: Path, fingerprint: str, answers: Sequence[Sequence[Sequence[int]]]) -> None:
    """
    Keep answers for another run.

    Args:
        folder (`Path`):
            Folder of the cache.
        fingerprint (`str`):
            What they were made with.
        answers (`Sequence[Sequence[Sequence[int]]]`):
            Answers to each prompt, tokenized.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(prefix=".making-", dir=folder)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump({"fingerprint": fingerprint, "answers": answers}, stream)
    os.replace(unfinished, folder / ANSWERS_FILE)


class TopKCache:
    """
    The teacher's most probable tokens, mapped from disk.

    Args:
        folder (`Path`):
            Folder of the cache.
        fingerprint (`str`):
            What it must have been made with.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it was made with something else.
    """

    def __init__(self, folder: Path, fingerprint: str):
        place = folder / TOP_K_FOLDER
        meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
        _check_fingerprint(place, meta["fingerprint"], fingerprint)
        self._tokens = np.load(place / "tokens.npy", mmap_mode="r")
        self._log_probs = np.load(place / "log_probs.npy", mmap_mode="r")
        self._likelihoods = np.load(place / "likelihoods.npy", mmap_mode="r")
        self._ends = np.load(place / "ends.npy")
        self.num_bytes: int = sum(file.stat().st_size for file in place.iterdir())

    @classmethod
    def write(
        cls,
        folder: Path,
        fingerprint: str,
        k: int,
        next_tokens: Sequence[torch.LongTensor],
        rows: Iterator[torch.Tensor],
        temperature: float,
    ) -> "TopKCache":
        """
        Write a cache, all of it or none.

        Args:
            folder (`Path`):
                Folder of the cache.
            fingerprint (`str`):
                What it is made with.
            k (`int`):
                Number of tokens to keep.
            next_tokens (`Sequence[torch.LongTensor]`, each of shape `(num_tokens,)`):
                The compared tokens of each row.
            rows (`Iterator[torch.Tensor]`):
                For each row the teacher's log-probabilities, of shape `(num_tokens, vocab_size)`.
            temperature (`float`):
                At this temperature.

        Returns:
            [`TopKCache`]: The cache.
        """
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
        ends = np.cumsum([len(tokens) for tokens in next_tokens])
        total = int(ends[-1])
        tokens = open_memmap(staging / "tokens.npy", mode="w+", dtype=np.int32, shape=(total, k))
        log_probs = open_memmap(staging / "log_probs.npy", mode="w+", dtype=np.float32, shape=(total, k + 1))
        of_given = open_memmap(staging / "likelihoods.npy", mode="w+", dtype=np.float32, shape=(total,))
        try:
            for end, given, row in zip(ends, next_tokens, rows, strict=True):
                where = slice(end - len(given), end)
                top = row.topk(k, dim=-1)
                others = row.scatter(-1, top.indices, -torch.inf).logsumexp(dim=-1, keepdim=True)
                tokens[where] = top.indices.int().cpu().numpy()
                log_probs[where] = torch.cat([top.values, others], dim=-1).cpu().numpy()
                of_given[where] = likelihoods(row, given.to(row.device), temperature).cpu().numpy()
            for written in (tokens, log_probs, of_given):
                written.flush()
            np.save(staging / "ends.npy", ends)
            (staging / "meta.json").write_text(json.dumps({"fingerprint": fingerprint, "k": k}), encoding="utf-8")
            try:
                os.replace(staging, folder / TOP_K_FOLDER)
            except OSError:
                # Another machine that writes to this folder was first; whether it is of the same is looked at below.
                if not (folder / TOP_K_FOLDER / "meta.json").exists():
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return cls(folder, fingerprint)

    def lookup(self, rows: Sequence[int], device: torch.device) -> TopKTargets:
        """
        What was kept of some rows.

        Args:
            rows (`Sequence[int]`):
                Numbers of the rows.
            device (`torch.device`):
                Where it is needed.

        Returns:
            [`TopKTargets`]: Of all compared tokens of these rows, one row after another.
        """
        starts = [0 if row == 0 else self._ends[row - 1] for row in rows]
        spans = [slice(start, self._ends[row]) for start, row in zip(starts, rows, strict=True)]
        tokens, log_probs, of_given = (
            torch.from_numpy(np.concatenate([kept[span] for span in spans])).to(device)
            for kept in (self._tokens, self._log_probs, self._likelihoods)
        )
        return TopKTargets(tokens.long(), log_probs[:, :-1], log_probs[:, -1], of_given)


def open_or_write(
    folder: Path,
    fingerprint: str,
    k: int,
    next_tokens: Sequence[torch.LongTensor],
    rows: Callable[[], Iterator[torch.Tensor]],
    temperature: float,
) -> TopKCache:
    """
    The cache that is there, or else a new one.

    Args:
        folder (`Path`):
            Folder of the cache.
        fingerprint (`str`):
            What it is, or must have been, made with.
        k (`int`):
            Number of tokens to keep.
        next_tokens (`Sequence[torch.LongTensor]`, each of shape `(num_tokens,)`):
            The compared tokens of each row.
        rows (`Callable[[], Iterator[torch.Tensor]]`):
            Begins to make the log-probabilities, see [`TopKCache.write`]. Not called where there is a cache.
        temperature (`float`):
            Temperature at which they are.

    Returns:
        [`TopKCache`]: The cache.

    Raises:
        ValueError: If the one that is there was made with something else.
    """
    if (folder / TOP_K_FOLDER / "meta.json").exists():
        return TopKCache(folder, fingerprint)
    return TopKCache.write(folder, fingerprint, k, next_tokens, rows(), temperature)
