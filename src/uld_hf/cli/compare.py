"""`uld compare`: a page in the browser with target and unlearned answers beside each other."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import output
from .loading import load_tokenizer, load_unlearned
from .parsing import CommandParser, check_model_path


DESCRIPTION = """Open a page on which target and unlearned model answer the same prompt beside each other.

  uld compare forget-alice
  uld compare forget-alice --also forget-bob forget-carol --port 7861

Forget sets can be ticked on and off, and the weight of each moved. The page is served to this machine only, unless
--host says otherwise: whoever can open it can read what the target knows. It needs `pip install 'uld_hf[compare]'`.
"""


@dataclass
class CompareArguments:
    """
    What `uld compare` takes.

    Args:
        model (`str`):
            Folder or hub id of a saved unlearned model.
        also (`list[str]`, *optional*):
            Further saved unlearned models of the same target.
        target (`str`, *optional*):
            Folder or hub id of the target, if it has moved since training.
        host (`str`, *optional*, defaults to `"127.0.0.1"`):
            Address to listen on.
        port (`int`, *optional*, defaults to `7860`):
            Port to listen on; 0 for one that is free.
    """

    model: str = field(metadata={"help": "folder or hub id of a saved unlearned model (what `uld train` wrote)"})
    also: list[str] | None = field(
        default=None, metadata={"help": "further saved unlearned models of the same target, to be ticked on the page"}
    )
    target: str | None = field(
        default=None, metadata={"help": "folder or hub id of the target, if it has moved since training"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0 lets everybody in"})
    port: int = field(default=7860, metadata={"help": "port to listen on; 0 for one that is free"})


def build_parser() -> CommandParser:
    """The command line of `uld compare`."""
    return CommandParser((CompareArguments,), "uld compare", DESCRIPTION, words=("model",))


def main(argv: Sequence[str]) -> None:
    """
    Run `uld compare`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld compare`.

    Raises:
        ImportError: If gradio is not installed.
    """
    (arguments,) = build_parser().parse(argv)
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("The page needs gradio, which is not installed: pip install 'uld_hf[compare]'.")
    for name in (arguments.model, arguments.target, *(arguments.also or ())):
        if name is not None:
            check_model_path(name)
    model = load_unlearned(arguments.model, arguments.target, None)
    for name in arguments.also or ():
        model.add_assistant(name)

    from ..compare.page import build_page, launch_page

    page = build_page(model, load_tokenizer(model, arguments.model), os.path.basename(os.path.abspath(arguments.model)))
    address = launch_page(page, arguments.host, arguments.port)
    output.note(f"The page is at {address} until Ctrl-C.")
    page.block_thread()
