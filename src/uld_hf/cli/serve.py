"""`uld serve`: transformers' OpenAI-compatible server, with an unlearned model and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers.utils.import_utils import is_serve_available

from ..hub import load_config
from ..modeling_uld import ULDForCausalLM
from .parsing import CommandParser, check_model_path


DESCRIPTION = """Serve an unlearned model with the API of OpenAI: /v1/chat/completions, /v1/completions.

  uld serve forget-alice --port 8000

Every request is answered by this model; one that names another is refused, and so are questions for probabilities
(/v1/systemone). The server is transformers' own.
"""


@dataclass
class ServeArguments:
    """
    What `uld serve` takes.

    Args:
        model (`str`):
            Folder or hub id of a saved unlearned model.
        revision (`str`, *optional*):
            Revision of its repository; clients that name the model name it as MODEL@REVISION.
        host (`str`, *optional*, defaults to `"localhost"`):
            Address to listen on.
        port (`int`, *optional*, defaults to `8000`):
            Port to listen on.
        device (`str`, *optional*, defaults to `"auto"`):
            Device of the target.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the target's weights; `"auto"` is as they were saved.
        attn_implementation (`str`, *optional*):
            Attention of the target.
        continuous_batching (`bool`, *optional*, defaults to `False`):
            Answer the requests of many clients in shared batches, all with the model's own generation settings: a
            request's temperature is of no effect.
        log_level (`str`, *optional*, defaults to `"warning"`):
            Least important messages to print.
    """

    model: str = field(metadata={"help": "folder or hub id of a saved unlearned model (what `uld train` wrote)"})
    revision: str | None = field(
        default=None, metadata={"help": "a branch, tag or commit of its repository; clients name MODEL@REVISION"}
    )
    host: str = field(default="localhost", metadata={"help": "address to listen on"})
    port: int = field(default=8000, metadata={"help": "port to listen on"})
    device: str = field(default="auto", metadata={"help": "device, e.g. cuda:0 or cpu"})
    dtype: str = field(default="auto", metadata={"help": "dtype of the target, e.g. bfloat16; auto is as it was saved"})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "attention of the target, e.g. flash_attention_2"}
    )
    continuous_batching: bool = field(
        default=False,
        metadata={
            "help": "answer the requests of many clients in shared batches, all with the model's own generation "
            "settings: a request's temperature is of no effect"
        },
    )
    log_level: str = field(default="warning", metadata={"help": "info, warning, ..."})


def build_parser() -> CommandParser:
    """The command line of `uld serve`."""
    return CommandParser((ServeArguments,), "uld serve", DESCRIPTION, words=("model",))


def start_server(arguments: ServeArguments, non_blocking: bool = False) -> "Serve":  # noqa: F821
    """
    Start transformers' server on an unlearned model.

    Args:
        arguments ([`ServeArguments`]):
            The command's.
        non_blocking (`bool`, *optional*, defaults to `False`):
            Return at once, and serve in a thread.

    Returns:
        `transformers.cli.serve.Serve`: The server.

    Raises:
        ImportError: If the packages of the server are not installed.
        ValueError: If the model is not a saved unlearned one.
    """
    if not is_serve_available():
        raise ImportError("The server needs packages that are not installed: pip install 'uld_hf[serve]'.")
    if "@" in arguments.model:
        raise ValueError(
            f"{arguments.model}: the server takes what stands behind an @ for a revision. Rename the folder, or say "
            "--revision."
        )
    check_model_path(arguments.model, arguments.revision)
    load_config(arguments.model, revision=arguments.revision)  # anything else would be served as it is

    from transformers.cli.serve import Serve
    from transformers.cli.serving import model_manager, systemone, utils

    from .pinned_model import NoDecisions, PinnedBatches, PinnedModelManager

    # The server looks the class of config.json up in transformers itself.
    model_manager.transformers.ULDForCausalLM = ULDForCausalLM
    model_manager.ModelManager = PinnedModelManager
    utils.CBGenerateManager = PinnedBatches
    systemone.SystemOneHandler = NoDecisions
    return Serve(
        force_model=arguments.model if arguments.revision is None else f"{arguments.model}@{arguments.revision}",
        device=arguments.device,
        dtype=arguments.dtype,
        attn_implementation=arguments.attn_implementation,
        continuous_batching=arguments.continuous_batching,
        host=arguments.host,
        port=arguments.port,
        log_level=arguments.log_level,
        non_blocking=non_blocking,
    )


def main(argv: Sequence[str]) -> None:
    """
    Run `uld serve`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld serve`.
    """
    (arguments,) = build_parser().parse(argv)
    start_server(arguments)
