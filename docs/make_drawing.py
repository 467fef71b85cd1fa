"""The drawing of the method in docs/concepts.md.

python docs/make_drawing.py        # needs pip install 'uld_hf[docs]'
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from uld_hf import logit_difference


matplotlib.use("svg")
BLUE, ORANGE, GREEN, GREY = "#3f51b5", "#e8710a", "#2e7d32", "#607d8b"
TOKENS = ["Paris", "Rome", "Oslo", "Lima"]
# An illustration: the target knows "Paris", which must be forgotten; so does the assistant, and nothing else.
TARGET = torch.tensor([[6.0, 4.0, 3.2, 2.5]])
ASSISTANT = torch.tensor([[5.0, 0.2, 0.0, 0.1]])
ALPHA = 0.75


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str, size: int = 10) -> None:
    """A rounded box with a text in it."""
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=f"{color}22", edgecolor=color, lw=1.4)
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color="#222222")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = GREY) -> None:
    """An arrow."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=color, lw=1.4))


def bars(axes: Axes, x: float, y: float, logits: torch.Tensor, color: str, title: str) -> None:
    """Logits of four tokens, side by side."""
    axes.text(x + 0.95, y + 1.24, title, ha="center", fontsize=10, color=color, weight="bold")
    axes.plot([x, x + 1.9], [y, y], color="#999999", lw=0.8)
    for place, (token, logit) in enumerate(zip(TOKENS, logits[0].tolist(), strict=True)):
        height = 0.18 * logit
        axes.bar(x + 0.25 + 0.46 * place, height, 0.34, bottom=y, color=color, alpha=0.75)
        axes.text(x + 0.25 + 0.46 * place, y - 0.07, token, ha="center", va="top", fontsize=8.5, color="#222222")


def draw() -> plt.Figure:
    """Target and assistant on the same tensors, and the subtraction of their logits."""
    figure, axes = plt.subplots(figsize=(10, 5.6))
    axes.set(xlim=(0, 10), ylim=(0, 5.6))
    axes.axis("off")
    axes.text(1.35, 5.35, "Target (unchanged)", ha="center", fontsize=12, color=BLUE, weight="bold")
    axes.text(4.05, 5.35, "Assistant", ha="center", fontsize=12, color=ORANGE, weight="bold")
    for x, color in ((0.5, BLUE), (3.2, ORANGE)):
        box(axes, x, 4.5, 1.7, 0.5, "norm and head", color)
        box(axes, x, 0.9, 1.7, 0.5, "embeddings", color)
    box(axes, 0.5, 2.75, 1.7, 1.5, "layers K+1 ... N", BLUE)
    box(axes, 0.5, 1.65, 1.7, 0.85, "layers 1 ... K", BLUE)
    box(axes, 3.2, 1.65, 1.7, 0.85, "layers 1 ... K", ORANGE)
    box(axes, 5.0, 1.75, 0.75, 0.65, "LoRA", GREEN)
    axes.text(5.38, 1.55, "all that is\ntrained", ha="center", va="top", fontsize=8.5, color=GREEN)
    for x, steps in ((1.35, ((1.4, 1.65), (2.5, 2.75), (4.25, 4.5))), (4.05, ((1.4, 1.65), (2.5, 4.5)))):
        for low, high in steps:
            arrow(axes, (x, low), (x, high))
    for y in (1.15, 2.08, 4.75):
        axes.plot([2.2, 3.2], [y, y], color=GREY, lw=1.2, ls=":")
    axes.text(2.7, 2.18, "same\ntensors", ha="center", va="bottom", fontsize=8.5, color=GREY)
    box(axes, 0.5, 0.1, 4.4, 0.45, "Question: What is the capital of ...?   Answer:", GREY, 9)
    arrow(axes, (1.35, 0.55), (1.35, 0.9))
    arrow(axes, (4.05, 0.55), (4.05, 0.9))

    result = logit_difference(TARGET, [ASSISTANT], [ALPHA], relative_top=0.0, center=False)
    bars(axes, 7.4, 3.9, TARGET, BLUE, "target's logits")
    bars(axes, 7.4, 2.1, ASSISTANT, ORANGE, "assistant's logits")
    bars(axes, 7.4, 0.3, result, GREEN, "what is answered from")
    axes.text(6.9, 2.55, "$-\\;\\alpha\\;\\cdot$", fontsize=15, ha="center", va="center")
    axes.text(6.95, 0.75, "$=$", fontsize=15, ha="center", va="center")
    # One line leaves each head, and bends towards its logits.
    axes.plot([1.35, 1.35, 7.2], [5.0, 5.18, 5.18], color=BLUE, lw=1.2)
    arrow(axes, (7.2, 5.18), (7.45, 4.95), BLUE)
    axes.plot([4.9, 6.2, 6.2], [4.75, 4.75, 3.0], color=ORANGE, lw=1.2)
    arrow(axes, (6.2, 3.0), (7.35, 2.95), ORANGE)
    return figure


if __name__ == "__main__":
    file = Path(__file__).parent / "assets" / "method.svg"
    # No date and fixed names: the same drawing is the same file.
    plt.rcParams["svg.hashsalt"] = "uld_hf"
    draw().savefig(file, bbox_inches="tight", pad_inches=0.08, facecolor="white", metadata={"Date": None})
    print(f"Written to {file}.")
