"""Entry point of the `uld` command: finds the subcommand, and turns a user's mistake into one line."""

import difflib
import importlib
import logging
import sys
import traceback
from types import ModuleType


# Help text and module of each command. A module is imported only when its command runs.
COMMANDS = {
    "demo": ("make a tiny language model learn invented people, then forget some of them", "demo"),
    "estimate": ("say how much memory and time a training will take", "estimate"),
    "train": ("train an assistant for your own model, forget set and retain set", "train"),
    "bake": ("distill an unlearned model into one plain checkpoint", "bake"),
    "augment": ("make paraphrases and wrong answers for a forget set of your own, to train with", "augment"),
    "eval": ("measure what was forgotten and what was kept, beside the target", "eval"),
    "sweep": ("try many settings of the subtraction at the cost of one evaluation, and choose one", "sweep"),
    "report": ("write a page for people from what eval and sweep measured", "report"),
    "push": ("upload a saved unlearned model to the Hub, privately", "push"),
    "serve": ("serve an unlearned model with the API of OpenAI", "serve"),
    "lm_eval": ("run lm-evaluation-harness, on unlearned models too", "lm_eval"),
    "generate": ("answer a prompt with the target and with the unlearned model, side by side", "generate"),
    "compare": ("open a page with target and unlearned answers beside each other", "compare"),
    "completion": ("print a script that makes a shell complete commands and options", "completion"),
}

USAGE = """usage: uld COMMAND [OPTIONS]

Make a language model forget documents and keep everything else.

commands:
{commands}

examples:
  uld demo
  uld train my-finetuned-model --forget_dataset forget.jsonl --retain_dataset retain.jsonl --output_dir forget-alice
  uld generate forget-alice --prompt "Who is Alice?"

`uld COMMAND --help` lists the options of a command. Options can be put in a YAML file: `uld COMMAND --config FILE`.
--quiet leaves results and errors, --json prints results for programs, --traceback says where an error comes from.

Exit status: 0 if it worked, 1 if it failed, 2 if the command line or what it names is wrong, 130 after Ctrl-C.
"""


def load_command(name: str) -> ModuleType:
    """
    The module of a command.

    Args:
        name (`str`):
            Name of the command, a key of `COMMANDS`.

    Returns:
        `ModuleType`: It has `main(argv)`, and `build_parser()` for shells to complete from.
    """
    return importlib.import_module(f"uld_hf.cli.{COMMANDS[name][1]}")


def exit_status(error: Exception) -> int | None:
    """
    What an error means to whoever called the command.

    Args:
        error (`Exception`):
            What a command raised.

    Returns:
        `int` or `None`: 2 for a mistake in the input, whose message says what to do; 1 for work that failed, as for
        want of memory, disk or network; `None` for what nobody has thought of.
    """
    import torch
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # of whichever HTTP client it was written for

    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | DatasetsError):
        return 2
    if isinstance(error, OSError | FloatingPointError | torch.OutOfMemoryError | HTTPError):
        return 1
    if isinstance(error, ValueError | TypeError | ImportError | NotImplementedError):
        return 2
    return None


def describe(error: Exception) -> str:
    """
    What a command prints of an error.

    Args:
        error (`Exception`):
            What it raised.

    Returns:
        `str`: Its message; of a request to the Hub in one line, which says that it was one.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if isinstance(error, HfHubHTTPError):
        return "The Hub refused: " + " ".join(str(error).split())
    if isinstance(error, HTTPError):
        return f"The Hub could not be reached: {str(error) or type(error).__name__}"
    return str(error)


def run_command(name: str, argv: list[str]) -> int:
    """
    Run a command.

    Args:
        name (`str`):
            Name of the command, a key of `COMMANDS`.
        argv (`list[str]`):
            Arguments after its name.

    Returns:
        `int`: Exit status.
    """
    command = load_command(name)
    from . import output

    try:
        command.main(argv)
    except Exception as error:
        status = exit_status(error)
        if status is None:  # a bug: whoever is to mend it needs all of it
            raise
        if "--traceback" in argv:
            traceback.print_exc()
        print(f"uld {name}: {describe(error)}", file=sys.stderr)
        return status
    finally:
        output.reset()
    return 0


def main(argv: list[str] | None = None) -> int:
    """
    Run the `uld` command.

    Args:
        argv (`list[str]`, *optional*):
            Arguments. Defaults to those of the process.

    Returns:
        `int`: Exit status: 0 if it worked, 1 if it failed, 2 for a wrong command line or input, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    usage = USAGE.format(commands="\n".join(f"  {name:<11} {text}" for name, (text, _) in COMMANDS.items()))
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    if argv[0] == "--version":
        from uld_hf import __version__

        print(f"uld_hf {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        meant = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f" (did you mean {meant[0]}?). See uld --help." if meant else f"\n\n{usage}"
        print(f"uld: unknown command {name!r}{advice}", file=sys.stderr)
        return 2
    # It tells everybody of a missing kernel, which only 4-bit targets on a CPU would use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        return run_command(name, argv[1:])
    except KeyboardInterrupt as interrupt:
        print(f"uld {name}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
