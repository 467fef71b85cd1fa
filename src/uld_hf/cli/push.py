"""`uld push`: a saved unlearned model to the Hub, privately unless told otherwise in words."""

import argparse
from collections.abc import Sequence

from ..publish import push_unlearned_model


DESCRIPTION = """Upload a saved unlearned model to the Hub: its layout and tokenizer, and nothing else in the folder.

  uld push forget-alice me/forget-alice

The assistant is a concentrated copy of the forget set: whoever can download it can make it recite. The repository is
private; --public publishes it, and the model card says so. The target is not uploaded.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `uld push`."""
    parser = argparse.ArgumentParser(
        prog="uld push", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder of a saved unlearned model (what `uld train` wrote)")
    parser.add_argument("repo_id", help="repository, e.g. me/forget-alice")
    parser.add_argument("--public", action="store_true", help="publish the assistant, and with it the forget set")
    parser.add_argument("--revision", help="branch to push to; made if absent")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of pushing")
    parser.add_argument("--commit_message", default="Upload unlearned model", help="message of the commit")
    parser.add_argument("--token", help="hub token (default: that of `hf auth login`)")
    return parser


def main(argv: Sequence[str]) -> None:
    """
    Run `uld push`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld push`.
    """
    arguments = build_parser().parse_args(list(argv))
    commit = push_unlearned_model(
        arguments.folder,
        arguments.repo_id,
        private=not arguments.public,
        commit_message=arguments.commit_message,
        token=arguments.token,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
    )
    print(f"Pushed to {commit.commit_url} ({'public' if arguments.public else 'private'})")
