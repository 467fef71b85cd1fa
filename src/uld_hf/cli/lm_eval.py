"""`uld lm_eval`: lm-evaluation-harness's own command, which then knows saved unlearned models."""

import sys
from collections.abc import Sequence

from .parsing import CommandParser


DESCRIPTION = """lm-evaluation-harness's own command, which knows saved unlearned models. Its options are its own:

  uld lm_eval --model hf --model_args pretrained=forget-alice --tasks mmlu
"""


def build_parser() -> CommandParser:
    """What shells complete: nothing of ours."""
    return CommandParser((), "uld lm_eval", DESCRIPTION)


def main(argv: Sequence[str]) -> None:
    """
    Run lm-evaluation-harness; importing uld_hf is what makes its `--model hf` find [`ULDForCausalLM`].

    Args:
        argv (`Sequence[str]`):
            Arguments of `lm_eval`, e.g. `--model hf --model_args pretrained=forget-alice --tasks mmlu`.

    Raises:
        ImportError: If lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ImportError("lm-evaluation-harness is not installed: pip install 'uld_hf[eval]'.") from error
    sys.argv = ["lm_eval", *argv]
    cli_evaluate()
