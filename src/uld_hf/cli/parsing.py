"""Command lines from typed dataclasses, with a `--help` that shows the options that matter."""

import argparse
from collections.abc import Sequence
from typing import Any

from trl import TrlParser


def parse_command_line(
    dataclasses: Sequence[type],
    argv: Sequence[str],
    prog: str,
    description: str,
    shown: Sequence[str] | None = None,
) -> tuple[Any, ...]:
    """
    Parse flags, and a YAML file given with `--config`, into dataclasses.

    Args:
        dataclasses (`Sequence[type]`):
            Dataclasses to fill.
        argv (`Sequence[str]`):
            Arguments.
        prog (`str`):
            Name of the command, e.g. `"uld train"`.
        description (`str`):
            What the command does, and an example.
        shown (`Sequence[str]`, *optional*):
            Names of the options that `--help` lists; `--help-all` lists all. Defaults to all of them.

    Returns:
        `tuple[Any, ...]`: An instance of each dataclass.
    """
    parser = TrlParser(
        list(dataclasses), prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    if shown is not None:
        parser.add_argument("--help-all", action="help", help="list every option, those of transformers and trl too")
        if "--help-all" not in argv:
            for action in parser._actions:
                if action.dest not in (*shown, "config", "help", "help_all"):
                    action.help = argparse.SUPPRESS
            parser.usage = f"{prog} [OPTIONS]"
    for action in parser._actions:
        if action.help and action.help is not argparse.SUPPRESS and action.default not in (None, argparse.SUPPRESS, ""):
            action.help = (
                f"{action.help} (default: {action.default})" if "%(default)" not in action.help else action.help
            )
    # TrlParser takes --config out of the arguments itself; the flag above is there for --help.
    return parser.parse_args_and_config(list(argv))[: len(dataclasses)]
