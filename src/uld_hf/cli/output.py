"""What commands print: results on standard output, everything else on standard error.

So results can be piped, `--json` gives them as JSON and nothing besides, and `--quiet` leaves nothing but results.
"""

import json
import math
import sys
from typing import Any, TextIO

import datasets
import transformers
from tqdm import tqdm


_TQDM_INIT = vars(tqdm)["__init__"]
_MAKE_BAR = tqdm.__init__  # the same to be called: a library may have put a partialmethod there


def _init_disabled(bar: tqdm, *args: Any, **kwargs: Any) -> None:
    """A progress bar's constructor with `disable=True`, whatever its caller says."""
    _MAKE_BAR(bar, *args, **{**kwargs, "disable": True})


class _Output:
    """How the running command prints: as its options say."""

    def __init__(self) -> None:
        self.quiet = False
        self.json = False
        self.results: TextIO | None = None  # standard output, once libraries print elsewhere


_output = _Output()


def configure(quiet: bool = False, as_json: bool = False) -> None:
    """
    Set how the running command prints.

    Args:
        quiet (`bool`, *optional*, defaults to `False`):
            Print nothing but results and errors.
        as_json (`bool`, *optional*, defaults to `False`):
            Print results as JSON.
    """
    reset()
    _output.quiet, _output.json = quiet, as_json
    # Whatever libraries print, the log of a training for one, is no result.
    _output.results, sys.stdout = sys.stdout, sys.stderr
    if quiet:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        tqdm.__init__ = _init_disabled


def reset() -> None:
    """Undo [`configure`], for whoever calls commands from Python."""
    if _output.results is not None:
        sys.stdout = _output.results
    if _output.quiet:
        transformers.logging.set_verbosity_warning()
        transformers.logging.enable_progress_bar()
        datasets.enable_progress_bars()
        tqdm.__init__ = _TQDM_INIT
    _output.quiet, _output.json, _output.results = False, False, None


def is_quiet() -> bool:
    """
    Whether the running command prints nothing but results and errors.

    Returns:
        `bool`: What [`configure`] was told.
    """
    return _output.quiet


def hush(trainer: transformers.Trainer) -> None:
    """
    Keep a trainer from printing its log where `--quiet` was given.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer.
    """
    if _output.quiet:
        for printing in (transformers.PrinterCallback, transformers.ProgressCallback):  # it has the one or the other
            trainer.remove_callback(printing)


def note(text: str) -> None:
    """
    Print what a person wants to know and a program does not, unless `--quiet` was given.

    Args:
        text (`str`):
            What to print.
    """
    if not _output.quiet:
        print(text, file=sys.stderr, flush=True)


def to_json(data: Any, indent: int | None = None) -> str:
    """
    JSON that every program reads: it has no infinity, which a perplexity is where a token was ruled out.

    Args:
        data (`Any`):
            What `json` takes.
        indent (`int`, *optional*):
            Spaces by which parts are indented. Defaults to one line.

    Returns:
        `str`: The text, with `null` for numbers that are not finite.
    """

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [finite(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(data), ensure_ascii=False, indent=indent)


def result(text: str, data: Any) -> None:
    """
    Print a result.

    Args:
        text (`str`):
            For a person.
        data (`Any`):
            The same for a program, printed in place of `text` where `--json` was given.
    """
    shown = to_json(data) if _output.json else text
    print(shown, file=_output.results, flush=True)
