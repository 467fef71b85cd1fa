"""`uld completion`: a script that makes a shell complete commands and their options."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

import shtab

from . import output
from .main import COMMANDS, load_command
from .parsing import FOLDERS, CommandParser


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


def add_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """
    Let a shell complete what may be given by its place, as it completes the option of that name.

    Args:
        parser (`argparse.ArgumentParser`):
            Parser of a command, which gets a positional argument for each word.
        words (`Sequence[str]`):
            Names of the options that may be given by their place, in their order.
    """
    options = {action.dest: action for action in parser._actions}
    for word in words:
        option = options[word]
        place = parser.add_argument(word, nargs="?", choices=option.choices, help=option.help)
        if word in FOLDERS:
            place.complete = shtab.DIRECTORY


def build_whole_parser() -> argparse.ArgumentParser:
    """
    One parser with every command's options, those that `--help` shows.

    Returns:
        `argparse.ArgumentParser`: The parser.
    """
    whole = argparse.ArgumentParser("uld")
    commands = whole.add_subparsers()
    for name, (text, _) in COMMANDS.items():
        command = load_command(name).build_parser()
        parents = [command.hide()]
        parser = commands.add_parser(name, help=text, parents=parents, add_help=False, prog=f"uld {name}")
        add_words(parser, command.words)
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
