"""`uld push`: a saved unlearned model to the Hub, privately unless told otherwise in words."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from huggingface_hub import HfApi

from ..publish import push_unlearned_model
from . import output
from .parsing import CommandParser


DESCRIPTION = """Upload a saved unlearned model to the Hub: its layout and tokenizer, and nothing else in the folder.

  uld push forget-alice me/forget-alice

The assistant is a concentrated copy of the forget set: whoever can download it can make it recite. The repository is
private; --public publishes it, and the model card says so. The target is not uploaded.
"""


@dataclass
class PushArguments:
    """
    What `uld push` takes.

    Args:
        folder (`str`):
            Folder of a saved unlearned model.
        repo_id (`str`):
            Repository.
        public (`bool`, *optional*, defaults to `False`):
            Publish the assistant, and with it the forget set.
        revision (`str`, *optional*):
            Branch to push to; made if absent.
        create_pr (`bool`, *optional*, defaults to `False`):
            Open a pull request instead of pushing.
        commit_message (`str`, *optional*, defaults to `"Upload unlearned model"`):
            Message of the commit.
        token (`str`, *optional*):
            Hub token.
    """

    folder: str = field(metadata={"help": "folder of a saved unlearned model (what `uld train` wrote)"})
    repo_id: str = field(metadata={"help": "repository, e.g. me/forget-alice"})
    public: bool = field(default=False, metadata={"help": "publish the assistant, and with it the forget set"})
    revision: str | None = field(default=None, metadata={"help": "branch to push to; made if absent"})
    create_pr: bool = field(default=False, metadata={"help": "open a pull request instead of pushing"})
    commit_message: str = field(default="Upload unlearned model", metadata={"help": "message of the commit"})
    token: str | None = field(default=None, metadata={"help": "hub token, instead of that of `hf auth login`"})


def build_parser() -> CommandParser:
    """The command line of `uld push`."""
    return CommandParser((PushArguments,), "uld push", DESCRIPTION, words=("folder", "repo_id"), has_json=True)


def main(argv: Sequence[str]) -> None:
    """
    Run `uld push`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld push`.

    Raises:
        ValueError: If there is no such folder, or what is in it is no whole unlearned model.
    """
    (arguments,) = build_parser().parse(argv)
    if not os.path.isdir(arguments.folder):
        raise ValueError(f"There is no folder {arguments.folder!r}: give the one that `uld train` wrote.")
    commit = push_unlearned_model(
        arguments.folder,
        arguments.repo_id,
        private=not arguments.public,
        commit_message=arguments.commit_message,
        token=arguments.token,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
    )
    private = None
    with suppress(OSError):  # it is pushed, whatever comes of this question
        private = HfApi(token=arguments.token).repo_info(commit.repo_url.repo_id).private  # one that was there may be
    seen_by = {True: " (private)", False: " (public)", None: ""}[private]
    output.result(f"Pushed to {commit.commit_url}{seen_by}", {"commit_url": commit.commit_url, "private": private})
