"""Command lines from typed dataclasses, with a `--help` that shows the options that matter."""

import argparse
import difflib
import os
import re
from collections.abc import Sequence
from typing import Any

import yaml
from transformers import PreTrainedConfig
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
    try:
        # TrlParser takes --config out of the arguments itself; the flag above is there for --help.
        return parser.parse_args_and_config(list(argv))[: len(dataclasses)]
    except yaml.YAMLError as error:
        raise ValueError(f"The file of --config is not YAML: {error}") from error
    except ValueError as error:
        # Its message is for developers: name the options and what they may have been meant to be.
        known = [option for action in parser._actions for option in action.option_strings]
        unknown = [f"--{word.lstrip('-')}" for word in re.findall(r"'(-*[A-Za-z]\w*)'", str(error))]
        unknown = [option for option in unknown if option not in known]
        if not unknown or not re.search("not used by|Unknown arguments", str(error)):
            raise
        hints = {option: difflib.get_close_matches(option, known, n=1) for option in unknown}
        named = [f"{option} (did you mean {hint[0]}?)" if hint else option for option, hint in hints.items()]
        raise ValueError(f"Unknown option {', '.join(named)}. See {prog} --help.") from error


def check_model_path(name: str, revision: str | None = None) -> None:
    """
    Refuse a model that is neither a folder here nor on the Hub, before anything long begins.

    Args:
        name (`str`):
            Folder or hub id.
        revision (`str`, *optional*):
            Revision on the Hub.

    Raises:
        ValueError: If its configuration can't be found.
    """
    if os.path.isdir(name):
        return
    try:
        PreTrainedConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"There is no folder {name!r} here, and no such model on the Hub ({reason})") from error
