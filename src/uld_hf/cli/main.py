"""Entry point of the `uld` command: finds the subcommand, and turns a user's mistake into one line."""

import importlib
import logging
import sys

from datasets.exceptions import DatasetsError


# Help text and module of each command. A module is imported only when its command runs.
COMMANDS = {
    "demo": ("make a tiny language model learn invented people, then forget some of them", "demo"),
    "train": ("train an assistant for your own model, forget set and retain set", "train"),
    "bake": ("distill an unlearned model into one plain checkpoint", "bake"),
    "eval": ("measure what was forgotten and what was kept, beside the target", "eval"),
    "sweep": ("try many settings of the subtraction at the cost of one evaluation, and choose one", "sweep"),
    "report": ("write a page for people from what eval and sweep measured", "report"),
    "push": ("upload a saved unlearned model to the Hub, privately", "push"),
    "serve": ("serve an unlearned model with the API of OpenAI", "serve"),
    "lm_eval": ("run lm-evaluation-harness, on unlearned models too", "lm_eval"),
    "generate": ("answer a prompt with the target and with the unlearned model, side by side", "generate"),
}

USAGE = """usage: uld COMMAND [OPTIONS]

Make a language model forget documents and keep everything else.

commands:
{commands}

`uld COMMAND --help` lists the options of a command. Options can be put in a YAML file: `uld COMMAND --config FILE`.
"""


def main(argv: list[str] | None = None) -> int:
    """
    Run the `uld` command.

    Args:
        argv (`list[str]`, *optional*):
            Arguments. Defaults to those of the process.

    Returns:
        `int`: Exit status: 0 if it worked, 2 for a wrong command line or input.
    """
    argv = sys.argv[1:] if argv is None else argv
    usage = USAGE.format(commands="\n".join(f"  {name:<10} {text}" for name, (text, _) in COMMANDS.items()))
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    if argv[0] == "--version":
        from uld_hf import __version__

        print(f"uld_hf {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"uld: unknown command {argv[0]!r}\n\n{usage}", file=sys.stderr)
        return 2
    # It tells everybody of a missing kernel, which only 4-bit targets on a CPU would use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    command = importlib.import_module(f"uld_hf.cli.{COMMANDS[argv[0]][1]}")
    try:
        command.main(argv[1:])
    # A mistake in the input, with a message that says what to do.
    except (
        ValueError,
        TypeError,
        OSError,
        ImportError,
        NotImplementedError,
        FloatingPointError,
        DatasetsError,
    ) as error:
        print(f"uld {argv[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"uld {argv[0]}: interrupted", file=sys.stderr)
        return 130
    return 0
