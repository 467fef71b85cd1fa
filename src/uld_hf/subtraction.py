"""The formula: target logits minus alpha times assistant logits, as pure functions on tensors.

Every path that scores or generates text (the model's forward, the logits processor) goes through
`logit_difference`, so likelihoods and generations come from one distribution.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch


Outside = Literal["keep", "mask"]
# Less is lost in the rounding of the target's logits; more overflows where they meet.
SMALLEST_ALPHA, LARGEST_ALPHA = 1e-4, 1e4
# Of what an assistant has learned it is surer than that; a higher gate would leave the target's own output.
LARGEST_GATE = 0.5


def clamp_or_default(clamp: bool | None, center: bool) -> bool:
    """
    Whether to clamp, where that may be left open.

    Args:
        clamp (`bool`, *optional*):
            What was asked for.
        center (`bool`):
            Whether the assistant's logits are centred: raw ones have no zero to clamp at.

    Returns:
        `bool`: `clamp`, or `center` where it is `None`.
    """
    return center if clamp is None else clamp


def check_subtraction(
    alpha: float,
    relative_top: float,
    outside: str,
    center: bool = True,
    clamp: bool = False,
    remove_top_k: int = 0,
    gate: float = 0.0,
    by_certainty: bool = False,
    replace: bool = False,
) -> None:
    """
    Refuse settings under which nothing would be subtracted, or something undefined would.

    Args:
        alpha (`float`):
            Weight of the assistant's logits.
        relative_top (`float`):
            Threshold of the plausibility filter, relative to the most probable token.
        outside (`str`):
            What happens to the tokens that the filter leaves out.
        center (`bool`, *optional*, defaults to `True`):
            Whether the assistant's logits are centred.
        clamp (`bool`, *optional*, defaults to `False`):
            Whether they are then clamped at 0.
        remove_top_k (`int`, *optional*, defaults to `0`):
            Number of tokens to rule out instead of subtracting.
        gate (`float`, *optional*, defaults to `0.0`):
            Certainty below which an assistant is not subtracted.
        by_certainty (`bool`, *optional*, defaults to `False`):
            Whether an assistant is subtracted in proportion to its certainty.
        replace (`bool`, *optional*, defaults to `False`):
            Whether assistants that are added take the target's place where another is subtracted.

    Raises:
        ValueError: If `alpha`, `relative_top` or `gate` is no number, if `alpha` is NaN or so small or large that
            nothing, or nothing else, is left, if `relative_top` is not between 0 and 1 or `gate` not between 0 and 0.5,
            if `outside` is neither `"keep"` nor `"mask"`, if raw logits, which have no zero of their own, are to be
            clamped, if all tokens could be ruled out, if certainty would have nothing to weigh, or if the target is to
            be replaced everywhere, or where it says so itself.
    """
    for name, value, example in (("alpha", alpha, 1.25), ("relative_top", relative_top, 0.01), ("gate", gate, 0.1)):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be a number, e.g. {name}={example}.")
    if not SMALLEST_ALPHA <= abs(alpha) <= LARGEST_ALPHA:  # also refuses NaN
        raise ValueError(
            f"alpha={alpha} would give the target's own output, or none: its size must lie between {SMALLEST_ALPHA} "
            f"and {LARGEST_ALPHA:g}, e.g. alpha=1.25; for the target itself call the target."
        )
    if not 0 <= relative_top <= 1:  # also refuses NaN
        raise ValueError(f"relative_top={relative_top} must lie between 0 (filter off) and 1, e.g. 0.01.")
    if outside == "mask" and relative_top == 1:
        raise ValueError(
            "outside='mask' with relative_top=1 leaves the target's first choice and nothing else: nothing would be "
            "forgotten. Use relative_top=0.01, or 0 to turn the filter off."
        )
    if outside not in ("keep", "mask"):
        raise ValueError(f"outside={outside!r} must be 'keep' or 'mask'.")
    if clamp and not center:
        raise ValueError(
            "clamp=True needs center=True: 0 means a uniform guess only in centred logits. Use clamp=False too."
        )
    if type(remove_top_k) is not int or remove_top_k < 0:
        raise ValueError(
            f"remove_top_k={remove_top_k!r} must be 0 (subtract) or a number of tokens to rule out, e.g. 20."
        )
    if not 0 <= gate <= LARGEST_GATE:  # also refuses NaN
        raise ValueError(
            f"gate={gate} must lie between 0 (subtract everywhere) and {LARGEST_GATE}, e.g. 0.1: above, an assistant "
            "would not be sure enough of what it learned, and the output would be the target's own."
        )
    if remove_top_k and outside == "mask":
        raise ValueError(
            "remove_top_k with outside='mask' could rule out every token. Use outside='keep', or relative_top=0."
        )
    for name, value in (("by_certainty", by_certainty), ("replace", replace)):
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be True or False.")
    if by_certainty and remove_top_k:
        raise ValueError(
            f"by_certainty=True has no meaning with remove_top_k={remove_top_k}, which rules tokens out instead of "
            "subtracting. Leave one of them out."
        )
    if replace and (gate == 0 or relative_top != 0 or remove_top_k != 0):
        raise ValueError(
            f"replace=True needs gate above 0, else nothing of the target would be left, and relative_top=0 and "
            f"remove_top_k=0, which go by the target (gate={gate}, relative_top={relative_top}, "
            f"remove_top_k={remove_top_k})."
        )


def check_replacement(alphas: Sequence[float]) -> None:
    """
    Refuse to replace the target by nothing.

    Args:
        alphas (`Sequence[float]`):
            Weight of each assistant.

    Raises:
        ValueError: If none is subtracted or none is added.
    """
    if not min(alphas) < 0 < max(alphas):
        raise ValueError(
            f"replace=True needs an assistant that is subtracted and one that is added in the target's place, got the "
            f"weights {list(alphas)}. Add one (model.add_assistant(..., alpha=-1.5)) before you set replace."
        )


def center_logits(logits: torch.Tensor) -> torch.Tensor:
    """
    Shift logits so that a uniform distribution becomes exactly zero: log-probability + log of the vocabulary size.

    Tokens at `-inf` (padded vocabulary rows) stay there and do not count in the vocabulary size.

    Args:
        logits (`torch.Tensor` of shape `(..., vocab_size)`):
            Unnormalized logits.

    Returns:
        `torch.Tensor` of the same shape: `log p + log V`.
    """
    impossible = logits == -torch.inf
    vocab_size = (~impossible).sum(dim=-1, keepdim=True)
    centered = torch.log_softmax(logits, dim=-1) + vocab_size.to(logits.dtype).log()
    return centered.masked_fill(impossible, -torch.inf)  # a row of nothing but -inf would be NaN


def certainty(logits: torch.Tensor) -> torch.Tensor:
    """
    How far a distribution is from knowing nothing: one less its entropy, as a share of the uniform one's.

    Args:
        logits (`torch.Tensor` of shape `(..., vocab_size)`):
            Unnormalized logits. Tokens at `-inf` do not count.

    Returns:
        `torch.Tensor` of shape `(..., 1)`: 0 for the uniform distribution, 1 for a single token.
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    possible = log_probs != -torch.inf
    entropy = -(log_probs.exp() * log_probs.masked_fill(~possible, 0.0)).sum(dim=-1, keepdim=True)
    # Rounding may lead beyond.
    return (1 - entropy / possible.sum(dim=-1, keepdim=True).to(logits.dtype).log()).clamp(0.0, 1.0)


def certainties_of(
    assistant_logits: Sequence[torch.Tensor], alphas: Sequence[float], target: torch.Tensor
) -> list[torch.Tensor | None]:
    """
    How sure each assistant is that is subtracted.

    Args:
        assistant_logits (`Sequence[torch.Tensor]`, each of shape `(..., vocab_size)`):
            Logits of each assistant.
        alphas (`Sequence[float]`):
            Weight of each assistant.
        target (`torch.Tensor` of shape `(..., vocab_size)`):
            The target's logits, of the device and type to compute with.

    Returns:
        `list[torch.Tensor | None]`: Of each assistant its [`certainty`], of shape `(..., 1)`; `None` for one that is
        added.
    """
    # Of all tokens: how sure an assistant is does not depend on what the target, or a processor before it, rules out.
    return [
        certainty(logits.to(device=target.device, dtype=target.dtype)) if alpha > 0 else None
        for logits, alpha in zip(assistant_logits, alphas, strict=True)
    ]


def open_gates(certainties: Sequence[torch.Tensor | None], gate: float) -> list[torch.Tensor | None]:
    """
    Where each assistant is sure enough to be subtracted.

    Args:
        certainties (`Sequence[torch.Tensor | None]`, each of shape `(..., 1)`):
            How sure each assistant is, see [`certainties_of`].
        gate (`float`):
            Certainty that is enough; `0` for no gate.

    Returns:
        `list[torch.BoolTensor | None]`: Of each assistant, of shape `(..., 1)`; `None` for one that has no gate of its
        own, because there is none or it is added.
    """
    # NaN opens: logits that are NaN must show in what comes out, a shut gate would give the target's own output.
    return [None if each is None or not gate else ~(each <= gate) for each in certainties]


def any_open(gates: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """
    Where any assistant is subtracted.

    Args:
        gates (`Sequence[torch.BoolTensor | None]`, each of shape `(..., 1)`):
            Where each assistant is sure enough, see [`open_gates`].

    Returns:
        `torch.BoolTensor | None`: Of shape `(..., 1)`; `None` if no assistant has a gate.
    """
    own_gates = [each for each in gates if each is not None]
    return torch.stack(own_gates).any(dim=0) if own_gates else None


def rule_out(target: torch.Tensor, scores: torch.Tensor, candidates: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """
    Rule out the tokens of the highest scores (Divergence Decoding's rank variant, arXiv 2605.31293).

    Args:
        target (`torch.Tensor` of shape `(..., vocab_size)`):
            The target's logits.
        scores (`torch.Tensor` of shape `(..., vocab_size)`):
            How much each token belongs to what must be forgotten.
        candidates (`torch.BoolTensor` of shape `(..., vocab_size)`):
            Tokens that may be ruled out.
        num_tokens (`int`):
            Number of tokens to rule out at each position.

    Returns:
        `torch.Tensor` of shape `(..., vocab_size)`: The target's logits, `-inf` at these tokens. One possible token is
        always left.

    Raises:
        ValueError: If there are no more tokens than are to be ruled out.
    """
    if num_tokens >= target.shape[-1]:
        raise ValueError(f"remove_top_k={num_tokens} would rule out the whole vocabulary of {target.shape[-1]} tokens.")
    highest = scores.masked_fill(~candidates, -torch.inf).topk(num_tokens, dim=-1).indices
    removed = torch.zeros_like(candidates).scatter(-1, highest, True) & candidates
    # Padded rows of the vocabulary do not count as something that is left.
    possible = target != -torch.inf
    is_left = (possible & ~removed).any(dim=-1, keepdim=True)
    lowest = scores.masked_fill(~possible, torch.inf).amin(dim=-1, keepdim=True)
    return target.masked_fill(removed & (is_left | (scores > lowest)), -torch.inf)


def logit_difference(
    target_logits: torch.Tensor,
    assistant_logits: Sequence[torch.Tensor],
    alphas: Sequence[float],
    *,
    relative_top: float = 0.01,
    outside: Outside = "keep",
    center: bool = True,
    clamp: bool | None = None,
    remove_top_k: int = 0,
    gate: float = 0.0,
    by_certainty: bool = False,
    replace: bool = False,
) -> torch.Tensor:
    """
    Logits of the unlearned model: target - sum_i alpha_i * assistant_i (paper section 3.1 and 3.4).

    The subtraction applies to the tokens that the target finds plausible, i.e. whose target probability is at least
    `relative_top` times that of its most probable token; `outside` says what happens to the others.

    Args:
        target_logits (`torch.Tensor` of shape `(..., vocab_size)`):
            Logits (or log-probabilities) of the target.
        assistant_logits (`Sequence[torch.Tensor]`, each of the shape of `target_logits`):
            Logits of each assistant.
        alphas (`Sequence[float]`):
            Weight of each assistant. Negative weights add an assistant's logits.
        relative_top (`float`, *optional*, defaults to `0.01`):
            Threshold of the plausibility filter; `0` turns it off.
        outside (`"keep"` or `"mask"`, *optional*, defaults to `"keep"`):
            Tokens that the filter leaves out keep the target's logits, or get `-inf`. With `"mask"` no `alpha` takes
            away what the target is certain of: nothing else passes the filter where its probability exceeds
            `1 / (1 + relative_top)`.
        center (`bool`, *optional*, defaults to `True`):
            Subtract `log p + log V` instead of the raw logits, so that a uniform assistant changes nothing, with or
            without the filter. `False` is the paper's formula to the letter.
        clamp (`bool`, *optional*, defaults to the value of `center`):
            Leave alone the tokens that the assistant finds less probable than a uniform guess, instead of lifting
            them: what comes out is then the target's own next choice. Not in the paper; needs `center=True`.
        remove_top_k (`int`, *optional*, defaults to `0`):
            Instead of subtracting, rule out so many tokens: those with the highest sum_i alpha_i * assistant_i, of the
            tokens that pass the filter (Divergence Decoding's rank variant, arXiv 2605.31293, which has no filter).
        gate (`float`, *optional*, defaults to `0.0`):
            Subtract an assistant only at positions where its [`certainty`] exceeds this, and add one (a negative
            weight) only where another is subtracted. At all other positions the target's logits are kept to the bit.
            Not in the paper.
        by_certainty (`bool`, *optional*, defaults to `False`):
            Multiply the weight of an assistant that is subtracted by its [`certainty`], position by position: `alpha`
            is then of a single token, and less of what is half known. Not in the paper.
        replace (`bool`, *optional*, defaults to `False`):
            Where the gate is open, leave the target out: what is added takes its place, and what is subtracted is
            subtracted from that. `clamp` is then of what is subtracted only. Not in the paper.

    Returns:
        `torch.Tensor` of shape `(..., vocab_size)`, in float32 (float64 for float64 input). Tokens at which the
        target is `-inf` stay at `-inf`.

    Raises:
        ValueError: If the number of weights, or a vocabulary, differs, all tokens would be ruled out, or nothing would
            take the target's place.
    """
    clamp = clamp_or_default(clamp, center)
    if replace:
        check_replacement(alphas)
    if len(assistant_logits) != len(alphas):
        raise ValueError(f"Got {len(assistant_logits)} assistants but {len(alphas)} alphas: give one alpha for each.")
    dtype = torch.promote_types(target_logits.dtype, torch.float32)
    target = target_logits.to(dtype)
    possible = target != -torch.inf

    broken = target.amax(dim=-1, keepdim=True) == torch.inf  # from an infinity nothing can be subtracted
    for logits in assistant_logits:
        if logits.shape != target.shape:
            raise ValueError(
                f"The assistant's logits have shape {tuple(logits.shape)}, the target's {tuple(target.shape)}: they "
                "must share one vocabulary. Train the assistant on this target."
            )
        # NaN, an infinity that takes all, or no token that is possible.
        broken = broken | ~logits.amax(dim=-1, keepdim=True).isfinite().to(target.device)
    sure = certainties_of(assistant_logits, alphas, target) if gate or by_certainty else [None] * len(alphas)
    gates = open_gates(sure, gate)
    is_open = any_open(gates)

    difference = torch.zeros_like(target) if remove_top_k else target
    if replace:
        difference = torch.zeros_like(target).masked_fill(~possible, -torch.inf)
    for logits, alpha, own_gate, own_certainty in zip(assistant_logits, alphas, gates, sure, strict=True):
        assistant = logits.to(device=target.device, dtype=dtype).masked_fill(~possible, -torch.inf)
        in_its_place = replace and alpha < 0
        if center:
            assistant = center_logits(assistant)
            if clamp and not in_its_place:
                assistant = assistant.clamp(min=0)
        # A token that the assistant rules out is left to the target: -inf - (-inf) would be NaN. In the target's place
        # its word counts.
        step = alpha * (assistant if in_its_place else assistant.masked_fill(assistant == -torch.inf, 0.0))
        if by_certainty and own_certainty is not None:
            # Of a single possible token certainty is NaN, as of logits that are: their step is NaN by itself.
            step = own_certainty.nan_to_num(nan=1.0) * step
        if is_open is not None:
            step = torch.where(is_open if own_gate is None else own_gate, step, 0.0)
        difference = difference - step

    plausible = possible
    if relative_top > 0:
        plausible = target >= target.amax(dim=-1, keepdim=True) + math.log(relative_top)
    if remove_top_k:
        difference = rule_out(target, -difference, plausible & possible, remove_top_k)
    elif relative_top > 0:
        excluded = -torch.inf if outside == "mask" else target
        difference = torch.where(plausible, difference, excluded)
    if is_open is not None:
        difference = torch.where(is_open, difference, target)
    # All of it: of the few plausible tokens that would be NaN by themselves, the most probable is the target's own.
    return difference.masked_fill(broken, torch.nan)
