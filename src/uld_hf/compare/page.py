"""The page of `uld compare`: a prompt, and the two answers to it. gradio draws it; nothing leaves the machine."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..modeling_uld import ULDForCausalLM
from ..truncated_config import ADAPTER_NAME
from .side_by_side import Answers, choose_assistants, stream_answers


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send


INTRODUCTION = """# Target and unlearned model

Both answer the same prompt. **Left is the target**: the model as it was, which still knows what was to be forgotten.
Right is the unlearned model: the target minus the assistants that are ticked below.
"""

# Nothing is fetched from anywhere else, whatever gradio's page asks for.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


class _OwnOriginOnly:
    """Tells the browser to talk to this server and to no other."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = _POLICY
            await send(message)

        await self.app(scope, receive, send_with_policy)


def build_page(model: ULDForCausalLM, tokenizer: PreTrainedTokenizerBase, name: str) -> gradio.Blocks:
    """
    The page.

    Args:
        model ([`ULDForCausalLM`]):
            The unlearned model, with every assistant that may be chosen.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        name (`str`):
            What the model is called, and an assistant of it that has no name of its own.

    Returns:
        `gradio.Blocks`: The page.
    """
    saved = model.config.alphas

    def answer(prompt: str, length: float, do_sample: bool, *chosen: Any) -> Iterator[tuple[str, str]]:
        ticked, sizes = chosen[: len(saved)], chosen[len(saved) :]
        if not prompt.strip():
            raise gradio.Error("Write a prompt first.")
        try:
            subtracted = choose_assistants(model, signed(saved, ticked, sizes))
        except ValueError as error:
            raise gradio.Error(str(error)) from error
        answers = Answers()
        yield answers.target, answers.unlearned
        for answers in stream_answers(subtracted, tokenizer, prompt, int(length), do_sample):
            yield answers.target, answers.unlearned

    with gradio.Blocks(title=f"uld compare: {name}", analytics_enabled=False) as page:
        gradio.Markdown(INTRODUCTION)
        with gradio.Row():
            with gradio.Column(scale=1):
                prompt = gradio.Textbox(label="Prompt", lines=4, elem_id="prompt", autofocus=True)
                with gradio.Row():
                    ask = gradio.Button("Ask both", variant="primary", elem_id="ask")
                    stop = gradio.Button("Stop", elem_id="stop")
            with gradio.Column(scale=1):
                target = gradio.Textbox(label="Target (still knows)", lines=10, interactive=False, elem_id="target")
            with gradio.Column(scale=1):
                unlearned = gradio.Textbox(label="Unlearned", lines=10, interactive=False, elem_id="unlearned")
        gradio.Markdown("### What is forgotten\nAlpha is the weight of the subtraction; the saved value is set.")
        ticks, sliders = [], []
        for index, (assistant, alpha) in enumerate(saved.items()):
            with gradio.Row():
                what, weight = ("forget", "alpha") if alpha > 0 else ("add", "-alpha")
                label = f"{what}: {name if assistant == ADAPTER_NAME else assistant}"
                ticks.append(gradio.Checkbox(True, label=label, elem_id=f"forget-{index}"))
                size, most = abs(alpha), max(3.0, 2 * abs(alpha))
                sliders.append(gradio.Slider(0.05, most, size, step=0.05, label=weight, elem_id=f"alpha-{index}"))
        with gradio.Accordion("How to answer", open=False):
            length = gradio.Slider(8, 1024, 128, step=8, label="longest answer, in tokens", elem_id="length")
            do_sample = gradio.Checkbox(False, label="sample (a small chance of the fact is still a chance)")
        inputs = [prompt, length, do_sample, *ticks, *sliders]
        running = gradio.on([ask.click, prompt.submit], answer, inputs, [target, unlearned])
        stop.click(None, cancels=[running])
    return page


def signed(saved: Mapping[str, float], ticked: Sequence[bool], sizes: Sequence[float]) -> dict[str, float]:
    """
    Weights of the assistants that are ticked: what was added is never subtracted, however large.

    Args:
        saved (`Mapping[str, float]`):
            Saved weights by name, negative of assistants that are added.
        ticked (`Sequence[bool]`):
            Which are wanted.
        sizes (`Sequence[float]`):
            What their sliders say.

    Returns:
        `dict[str, float]`: Weights by name.
    """
    chosen = zip(saved.items(), ticked, sizes, strict=True)
    return {name: math.copysign(size, alpha) for (name, alpha), is_on, size in chosen if is_on}


def launch_page(page: gradio.Blocks, host: str, port: int) -> str:
    """
    Serve the page, until its `close()` or the end of the program.

    Args:
        page (`gradio.Blocks`):
            What [`build_page`] made.
        host (`str`):
            Address to listen on.
        port (`int`):
            Port to listen on; 0 for one that is free.

    Returns:
        `str`: Where the page is.
    """
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none from the network
    _, address, _ = page.launch(
        server_name=host,
        server_port=port or None,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        quiet=True,
        footer_links=[],
        theme=gradio.themes.Default(**fonts),
        app_kwargs={"middleware": [Middleware(_OwnOriginOnly)]},
        prevent_thread_lock=True,
    )
    return address
