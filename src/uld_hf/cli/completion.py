"""`uld completion`: a script that makes a shell complete commands and their options."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

import shtab

from . import output
from .main import COMMANDS, load_command
from .parsing import CommandParser


DESCRIPTION = """Print a script that makes a shell complete the commands of uld, their options, and files.

  uld completion bash > ~/.local/share/bash-completion/completions/uld
  uld completion zsh > ~/.zfunc/_uld        # a folder of $fpath
"""


@dataclass
class CompletionArguments:
    """
    What `uld completion` takes.

    Args:
        shell (`str`):
            `"bash"`, `"zsh"`, or another that shtab knows.
    """

    shell: str = field(metadata={"help": "which shell", "choices": list(shtab.SUPPORTED_SHELLS)})


def build_parser() -> CommandParser:
    """The command line of `uld completion`."""
    return CommandParser((CompletionArguments,), "uld completion", DESCRIPTION, words=("shell",))


def build_whole_parser() -> argparse.ArgumentParser:
    """
    One parser with every command's options, those that `--help` shows.

    Returns:
        `argparse.ArgumentParser`: The parser.
    """
    whole = argparse.ArgumentParser("uld")
    commands = whole.add_subparsers()
    for name, (text, _) in COMMANDS.items():
        parser = load_command(name).build_parser().hide()
        commands.add_parser(name, help=text, parents=[parser], add_help=False, prog=f"uld {name}")
    return whole


def main(argv: Sequence[str]) -> None:
    """
    Run `uld completion`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld completion`.
    """
    (arguments,) = build_parser().parse(argv)
    script = shtab.complete(build_whole_parser(), shell=arguments.shell)
    output.result(script, None)
