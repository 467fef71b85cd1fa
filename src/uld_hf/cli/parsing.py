"""Command lines from typed dataclasses: words before the options, a YAML file, a `--help` with what matters."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import shtab
import yaml
from huggingface_hub import file_exists
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from transformers import PreTrainedConfig
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, find_adapter_config_file
from trl import TrlParser

from . import output


@dataclass
class OutputArguments:
    """
    What every command takes.

    Args:
        quiet (`bool`, *optional*, defaults to `False`):
            Print results and errors only.
        traceback (`bool`, *optional*, defaults to `False`):
            Show where in the code an error comes from.
    """

    quiet: bool = field(default=False, metadata={"help": "print results and errors only"})
    traceback: bool = field(default=False, metadata={"help": "show where in the code an error comes from"})


@dataclass
class JsonArguments:
    """
    What a command takes that has results.

    Args:
        json (`bool`, *optional*, defaults to `False`):
            Print the results as one JSON document on standard output, everything else on standard error.
    """

    json: bool = field(default=False, metadata={"help": "print the results as JSON on standard output, nothing else"})


# What shells complete after an option: by the option's name.
FOLDERS = ("model", "target", "drawn_by", "retrained", "others", "output_dir", "save_to", "folder", "results")
_FILES = ("config", "prompts_file", "output", "sweep")


# What trl and transformers say of these is not so here.
HELP = {
    "max_length": "longest row, in tokens: documents are split there, never cut, and longer answers are refused",
    "resume_from_checkpoint": "go on from a checkpoint's folder, or with 'true' from the last one in --output_dir",
    "bf16": "train in bf16 mixed precision; off on a CPU, on where the accelerator has it",
}


class _Parser(TrlParser):
    """TrlParser that ends its errors with an example, which has values for what is missing."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        lines = self.description.splitlines()
        start = next((number for number, line in enumerate(lines) if line.startswith(f"  {self.prog} ")), len(lines))
        end = next((number for number in range(start, len(lines)) if not lines[number].endswith("\\")), start)
        example = "\n".join(["", "example:", *lines[start : end + 1]]) if lines[start:] else ""
        self.exit(2, f"{self.prog}: error: {message}{example}\n")


class CommandParser:
    """
    The command line of one command.

    Args:
        dataclasses (`Sequence[type]`):
            Dataclasses to fill.
        prog (`str`):
            Name of the command, e.g. `"uld train"`.
        description (`str`):
            What the command does, and an example.
        shown (`Sequence[str]`, *optional*):
            Names of the options that `--help` lists; `--help-all` lists all. Defaults to all of them.
        words (`Sequence[str]`, *optional*):
            Options that may be given by their place instead of their name, before all others: `uld generate MODEL`.
        has_json (`bool`, *optional*, defaults to `False`):
            Whether the command has results, and with them `--json`.
        elsewhere (`Mapping[str, str]`, *optional*):
            Options that this command line lacks and another has, with what gives them, e.g. `"--method uld"`.
    """

    def __init__(
        self,
        dataclasses: Sequence[type],
        prog: str,
        description: str,
        shown: Sequence[str] | None = None,
        words: Sequence[str] = (),
        has_json: bool = False,
        elsewhere: Mapping[str, str] | None = None,
    ):
        self.elsewhere = {} if elsewhere is None else elsewhere
        self.words = tuple(words)
        self.num_own = len(dataclasses)
        self.has_json = has_json
        common = [OutputArguments, JsonArguments] if has_json else [OutputArguments]
        self.parser = _Parser(
            [*dataclasses, *common],
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # Commands look for some options before they are parsed, and do not know the beginnings of their names.
            allow_abbrev=False,
            usage=" ".join([prog, *(f"[{word.upper()}]" for word in words), "[OPTIONS]"]),
        )
        self.parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
        self.hidden: list[argparse.Action] = []
        if shown is not None:
            self.parser.add_argument("--help-all", action="help", help="list the options of transformers and trl too")
            visible = {*shown, *words, "config", "help", "help_all", "quiet", "traceback", "json"}
            self.hidden = [action for action in self.parser._actions if action.dest not in visible]
        for action in self.parser._actions:
            action.help = HELP.get(action.dest, action.help)
            if action.help and "%(default)" not in action.help and action.default not in (None, argparse.SUPPRESS, ""):
                action.help = f"{action.help} (default: {action.default})"
            if action.dest in FOLDERS:
                action.complete = shtab.DIRECTORY
            elif action.dest in _FILES or action.dest.endswith("_dataset"):
                action.complete = shtab.FILE

    def hide(self) -> argparse.ArgumentParser:
        """
        Leave the options that few need out of the help, and of what shells complete.

        Returns:
            `argparse.ArgumentParser`: The parser.
        """
        for action in self.hidden:
            action.help = argparse.SUPPRESS
        return self.parser

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """
        Parse a command line into dataclasses, and let the command print as it says.

        Args:
            argv (`Sequence[str]`):
                Arguments after the command's name.

        Returns:
            `tuple[Any, ...]`: An instance of each dataclass.

        Raises:
            ValueError: If an option is unknown or given twice, there are too many words, `--config` is given twice or
                without a file, the file is not YAML, or the folder to write to is a file.
        """
        argv = self._name_words(list(argv))
        if "--help-all" not in argv:
            self.hide()
        # TrlParser takes --config out of the arguments itself, where it is a word of its own; the flag above is there
        # for --help.
        words = [word for part in argv for word in (part.split("=", 1) if part.startswith("--config=") else [part])]
        if words.count("--config") > 1:
            raise ValueError("--config is given twice: put all options into one file.")
        if words[-1:] == ["--config"]:
            raise ValueError("--config is the last word: give a YAML file after it.")
        try:
            parsed = self.parser.parse_args_and_config(words)
        except yaml.YAMLError as error:
            raise ValueError(f"The file of --config is not YAML: {error}") from error
        except ValueError as error:
            raise self._explain(error, argv) from error
        for options in parsed[: self.num_own]:
            folder = vars(options).get("output_dir")
            if folder is not None and os.path.isfile(folder):
                raise ValueError(f"--output_dir {folder} is a file: give a folder.")
        common = parsed[self.num_own :]
        output.configure(common[0].quiet, self.has_json and common[1].json)
        return parsed[: self.num_own]

    def _name_words(self, argv: list[str]) -> list[str]:
        """The same command line with the words at its beginning named: `alice --alpha 1` is `--model alice ...`."""
        count = next((index for index, part in enumerate(argv) if part.startswith("-")), len(argv))
        if count > len(self.words):
            raise ValueError(
                f"{argv[len(self.words)]!r} is not understood: what comes first is "
                f"{' '.join(word.upper() for word in self.words) or 'an option'}. See {self.parser.prog} --help."
            )
        named = []
        for word, value in zip(self.words, argv[:count], strict=False):
            if any(part == f"--{word}" or part.startswith(f"--{word}=") for part in argv[count:]):
                raise ValueError(f"{word.upper()} is given twice: {value!r}, and with --{word}.")
            named += [f"--{word}", value]
        return [*named, *argv[count:]]

    def _explain(self, error: ValueError, argv: Sequence[str]) -> ValueError:
        """TrlParser's message is for developers: name the options and what they may have been meant to be."""
        known = [option for action in self.parser._actions for option in action.option_strings]
        unknown = [f"--{word.lstrip('-')}" for word in re.findall(r"'(-*[A-Za-z]\w*)'", str(error))]
        unknown = [option for option in unknown if option not in known]
        # The values of unknown options are listed too; keys of a YAML file are not in the command line at all.
        typed = {part.partition("=")[0] for part in argv if part.startswith("--")}
        unknown = [option for option in unknown if option in typed] or unknown
        if not unknown or not re.search("not used by|Unknown arguments", str(error)):
            return error
        named = [f"{option}{self._hint(option, known)}" for option in unknown]
        return ValueError(f"Unknown option {', '.join(named)}. See {self.parser.prog} --help.")

    def _hint(self, option: str, known: Sequence[str]) -> str:
        """What may have been meant by an unknown option, in brackets; empty where nobody can tell."""
        place = self.elsewhere.get(option.removeprefix("--"))
        if place is not None:
            return f" (it belongs to {place})"
        meant = difflib.get_close_matches(option, known, n=1)
        return f" (did you mean {meant[0]}?)" if meant else ""


def check_model_path(name: str, revision: str | None = None) -> None:
    """
    Refuse a model, or adapter, that is neither a folder here nor on the Hub, before anything long begins.

    Args:
        name (`str`):
            Folder or hub id.
        revision (`str`, *optional*):
            Revision on the Hub.

    Raises:
        ValueError: If its configuration can't be found, or the Hub can't be asked for it.
    """
    if os.path.isdir(name):
        return
    with suppress(OSError, ValueError):  # what is in the cache needs no hub
        PreTrainedConfig.get_config_dict(name, revision=revision, local_files_only=True)
        return
    with suppress(OSError):
        if find_adapter_config_file(name, revision=revision, local_files_only=True) is not None:
            return
    absent = f"There is no folder {name!r} here, and"
    try:
        # One question: transformers would go on asking for half a minute where there is no network.
        found = any(file_exists(name, file, revision=revision) for file in (CONFIG_NAME, ADAPTER_CONFIG_NAME))
    except HFValidationError as error:
        raise ValueError(f"{absent} no model on the Hub can be called that ({error})") from error
    except HfHubHTTPError as error:
        raise ValueError(f"{absent} the Hub refused to show it: {' '.join(str(error).split())}") from error
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{absent} the Hub could not be reached to look there: {reason}") from error
    if not found:
        raise ValueError(f"{absent} no such model on the Hub; a private one needs `hf auth login`.")


def check_files(*paths: str | None) -> None:
    """
    Refuse files that are not there, before anything long begins.

    Args:
        *paths (`str`, *optional*):
            Files; `None` is passed over.

    Raises:
        FileNotFoundError: If one is absent.
    """
    for path in paths:
        if path is not None and not os.path.isfile(path):
            raise FileNotFoundError(f"There is no file {path!r}.")


def make_room(path: str | None) -> None:
    """
    Make the folder of a file that is going to be written, and refuse one that is there, before anything long begins.

    Args:
        path (`str`, *optional*):
            The file; `None` is passed over.

    Raises:
        ValueError: If it is there already.
    """
    if path is None:
        return
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder: give a file in it.")
    if os.path.isfile(path):  # and not a device, such as /dev/stdout
        raise ValueError(f"{path} is there already: give another file, or delete it.")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
