"""`uld serve`: transformers' OpenAI-compatible server, with an unlearned model and nothing else."""

import argparse
from collections.abc import Sequence

from transformers.utils.import_utils import is_serve_available

from ..hub import load_config
from ..modeling_uld import ULDForCausalLM
from .parsing import check_model_path


DESCRIPTION = """Serve an unlearned model with the API of OpenAI: /v1/chat/completions, /v1/completions.

  uld serve forget-alice --port 8000

Every request is answered by this model; one that names another is refused. The server is transformers' own.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `uld serve`."""
    parser = argparse.ArgumentParser(
        prog="uld serve", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder or hub id of a saved unlearned model (what `uld train` wrote)")
    parser.add_argument("--host", default="localhost", help="address to listen on (default: localhost)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--device", default="auto", help="device, e.g. cuda:0 or cpu (default: auto)")
    parser.add_argument("--dtype", default="auto", help="dtype of the target, e.g. bfloat16 (default: as saved)")
    parser.add_argument("--attn_implementation", help="attention of the target, e.g. flash_attention_2")
    parser.add_argument(
        "--continuous_batching", action="store_true", help="answer the requests of many clients in shared batches"
    )
    parser.add_argument("--log_level", default="warning", help="info, warning, ... (default: warning)")
    return parser


def start_server(arguments: argparse.Namespace, non_blocking: bool = False) -> "Serve":  # noqa: F821
    """
    Start transformers' server on an unlearned model.

    Args:
        arguments (`argparse.Namespace`):
            What [`build_parser`] parsed.
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
    check_model_path(arguments.model)
    load_config(arguments.model)  # anything else would be served as it is

    from transformers.cli.serve import Serve
    from transformers.cli.serving import model_manager

    # The server looks the class of config.json up in transformers itself.
    model_manager.transformers.ULDForCausalLM = ULDForCausalLM
    return Serve(
        force_model=arguments.model,
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
    start_server(build_parser().parse_args(list(argv)))
