"""The reversed objective: remember the forget tokens, be uniform on the retain tokens (paper section 3.2).

Both terms come from one forward pass. Logits are made one tile of tokens at a time and never for the whole batch: the
head is frozen, so the gradient of the hidden states is all that is needed, and it is computed tile by tile in the
forward pass.
"""

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .padding_free import attention_set_to


# Most tokens of a tile of logits, and most bytes of it in float32. More tokens are not faster, on two CPU cores or on
# paper on a GPU: a tile is then bound by arithmetic and no longer by reading the head's weights.
CHUNK_SIZE = 256
TILE_BYTES = 2**27

# From some tokens' logits, which tokens these are and their weights, to losses, something to keep, and a gradient.
Score = Callable[[torch.Tensor, slice, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def tile_tokens(vocab_size: int) -> int:
    """
    Tokens of a tile of logits.

    Args:
        vocab_size (`int`):
            Columns of the tile.

    Returns:
        `int`: 256, or as many as 128 MiB hold in float32.
    """
    return max(1, min(CHUNK_SIZE, TILE_BYTES // (4 * vocab_size)))


def token_losses(
    logits: torch.Tensor, labels: torch.LongTensor, retain_mask: torch.BoolTensor, weights: torch.Tensor
) -> torch.Tensor:
    """
    Loss of each token: cross-entropy to its label (forget), or to the uniform distribution (retain).

    Args:
        logits (`torch.Tensor` of shape `(num_tokens, vocab_size)`):
            The assistant's logits, in float32. They are overwritten with the gradient of the weighted sum of losses:
            `softmax(z)` less the label's or the uniform distribution, times the weight.
        labels (`torch.LongTensor` of shape `(num_tokens,)`):
            Next tokens.
        retain_mask (`torch.BoolTensor` of shape `(num_tokens,)`):
            `True` for tokens of the retain set.
        weights (`torch.Tensor` of shape `(num_tokens,)`):
            Weight of each token's loss, in float32.

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`: `logsumexp(z) - z[label]` on forget tokens, `logsumexp(z) - mean(z)` on
        retain tokens. The latter is `KL(uniform || p) + log V`.
    """
    highest = logits.amax(dim=-1)
    label_logits = logits.gather(-1, labels[:, None]).squeeze(-1)
    expected = torch.where(retain_mask, logits.mean(dim=-1), label_logits)
    # In place from here on: at a large vocabulary every copy of a tile is more than all that the layers need.
    total = logits.sub_(highest[:, None]).exp_().sum(dim=-1)
    logits.mul_((weights / total)[:, None])
    logits.sub_(torch.where(retain_mask, weights / logits.shape[-1], 0.0)[:, None])
    logits.scatter_add_(-1, labels[:, None], torch.where(retain_mask, 0.0, -weights)[:, None])
    return total.log() + (highest - expected)


class _ChunkedLoss(torch.autograd.Function):
    """Weighted sum of tokens' losses, with the gradients computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: torch.Tensor,
        weights: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        score: Score,
        chunk_size: int,
        *parameters: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Frozen hidden states (nothing below the head trains) leave the head's own gradient, and the other way round.
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[5:]]
        losses, others, gradients = [], [], []
        trained = [parameter for parameter, need in zip(parameters, needed[1:], strict=True) if need]
        # Also where sharding makes 16-bit copies: a sum over many tiles would lose its small parts.
        sums = [torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in trained]
        # Divided out until backward(): in a step of many tokens each one's own gradient is below float16's range.
        ctx.scale = weights.max().clamp(min=torch.finfo(weights.dtype).tiny)
        weights_of_one = weights / ctx.scale
        for start in range(0, len(hidden), chunk_size):
            where = slice(start, start + chunk_size)
            with torch.set_grad_enabled(any(needed)):
                tile = hidden[where].detach().requires_grad_(needed[0])
                logits = head(tile)
            # The memory of the logits itself: a head does not need its output to pass a gradient on.
            loss, other, gradient = score(logits.detach(), where, weights_of_one[where])
            losses.append(loss)
            others.append(other)
            if any(needed):
                inputs = [tensor for tensor, need in zip((tile, *parameters), needed, strict=True) if need]
                found = list(torch.autograd.grad(logits, inputs, gradient.to(logits.dtype)))
                if needed[0]:
                    gradients.append(found.pop(0))
                for total, part in zip(sums, found, strict=True):
                    total += part
            del logits, gradient  # or they would be held while the next tile is made
        losses, others = torch.cat(losses), torch.cat(others)
        ctx.needed = needed
        ctx.save_for_backward(*([torch.cat(gradients)] if needed[0] else []), *sums)
        ctx.mark_non_differentiable(losses, others)
        return (losses * weights).sum(), losses, others

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor, *_) -> tuple[torch.Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        # A float32 scalar does not change the tensor's dtype.
        hidden, *parameters = [next(saved) * (grad * ctx.scale) if need else None for need in ctx.needed]
        return hidden, None, None, None, None, *parameters


def chunked_loss(
    hidden: torch.Tensor,
    weights: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    score: Score,
    chunk_size: int,
    parameters: Sequence[torch.Tensor] = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Weighted sum of tokens' losses whose logits are made one tile of tokens at a time, also for the gradient.

    Args:
        hidden (`torch.Tensor` of shape `(num_tokens, hidden_size)`):
            Last hidden states.
        weights (`torch.Tensor` of shape `(num_tokens,)`):
            Weight of each token's loss.
        head (`Callable[[torch.Tensor], torch.Tensor]`):
            From hidden states to logits, see [`make_head`].
        score (`Callable[[torch.Tensor, slice, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]`):
            From the logits of a tile, which it may overwrite, which tokens these are and their weights, to their
            losses, something else to be kept of each token, and the gradient of the weighted sum of losses by the
            logits.
        chunk_size (`int`):
            Tokens per tile, see [`tile_tokens`].
        parameters (`Sequence[torch.Tensor]`, *optional*):
            Parameters of the head that are trained.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: The sum, with gradients; each token's loss and what else
        was kept of it, of shape `(num_tokens,)`, without.
    """
    return _ChunkedLoss.apply(hidden, weights, head, score, chunk_size, *parameters)


@dataclass
class ULDLossOutput(ModelOutput):
    """
    What a forward pass with `retain_mask` returns.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`):
            `forget_loss / num_forget + retain_weight * retain_loss / num_retain`.
        forget_loss (`torch.FloatTensor`):
            Sum over forget tokens of the cross-entropy to the label, in nats.
        forget_correct (`torch.LongTensor`):
            Number of forget tokens that the assistant predicts: none is more probable.
        retain_loss (`torch.FloatTensor`):
            Sum over retain tokens of the cross-entropy to the uniform distribution, in nats.
    """

    loss: torch.FloatTensor | None = None
    forget_loss: torch.FloatTensor | None = None
    forget_correct: torch.LongTensor | None = None
    retain_loss: torch.FloatTensor | None = None


def make_head(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    The function from last hidden states to logits: the head, and what the family does to its output.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model.

    Returns:
        `Callable[[torch.Tensor], torch.Tensor]`: From `(num_tokens, hidden_size)` to `(num_tokens, vocab_size)`.
    """
    # A family's config has what it uses of these, and no other family's.
    config = vars(model.config.get_text_config(decoder=True))
    scale = config.get("logit_scale") or config.get("lm_head_multiplier") or 1.0  # Cohere; Falcon-H1
    divisor = config.get("logits_scaling") or 1.0  # Granite
    softcap = config.get("final_logit_softcapping")  # Gemma

    def head(hidden: torch.Tensor) -> torch.Tensor:
        # Looked up on each call: FSDP and PEFT replace modules after the trainer is built. And its forward, not the
        # module: what surrounds a module's call happens once for all tiles, see `add_loss`.
        logits = model.get_output_embeddings().forward(hidden)
        if scale != 1.0 or divisor != 1.0:
            logits = logits * scale / divisor
        return softcap * torch.tanh(logits / softcap) if softcap else logits

    return head


def token_weights(retain_mask: torch.BoolTensor, num_items: torch.Tensor, retain_weight: float) -> torch.Tensor:
    """
    Weights that make of a sum over tokens the mean over the forget tokens plus a multiple of that over the retain ones.

    Args:
        retain_mask (`torch.BoolTensor` of shape `(num_tokens,)`):
            `True` for tokens of the retain set.
        num_items (`torch.Tensor` of shape `(2,)`):
            Number of forget and of retain tokens of the whole optimizer step.
        retain_weight (`float`):
            Weight of the retain term.

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`: The weights, in float32.
    """
    # A count of 0 means that the whole step has no such token; clamping keeps 0/0 out of it.
    forget_scale, retain_scale = 1.0 / num_items.to(retain_mask.device, torch.float32).clamp(min=1)
    return torch.where(retain_mask, retain_weight * retain_scale, forget_scale)


def uld_loss(
    hidden: torch.Tensor,
    labels: torch.LongTensor,
    retain_mask: torch.BoolTensor,
    num_items: torch.Tensor,
    retain_weight: float,
    head: Callable[[torch.Tensor], torch.Tensor],
    chunk_size: int,
) -> ULDLossOutput:
    """
    The assistant's loss: CE(forget) + retain_weight * CE(retain, uniform), each a mean over tokens (paper eq. 4).

    Only tokens with a label other than -100 count.

    Args:
        hidden (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`):
            Last hidden states.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Tokens, not shifted; -100 is ignored.
        retain_mask (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
            `True` for tokens of the retain set.
        num_items (`torch.Tensor` of shape `(2,)`):
            Number of forget and of retain tokens by which the sums are divided: those of the whole optimizer step.
        retain_weight (`float`):
            Weight of the retain term, the paper's beta.
        head (`Callable[[torch.Tensor], torch.Tensor]`):
            From hidden states to logits, see [`make_head`].
        chunk_size (`int`):
            Tokens per tile of logits, see [`tile_tokens`].

    Returns:
        [`ULDLossOutput`]: The loss and its parts.
    """
    counted = labels[:, 1:] != -100
    hidden, retain_mask, labels = hidden[:, :-1][counted], retain_mask[:, 1:][counted], labels[:, 1:][counted]
    if len(labels) == 0:  # a micro-batch without answers still has to reach backward()
        zero = hidden.sum() * 0.0
        return ULDLossOutput(zero, zero.detach(), zero.detach().long(), zero.detach())

    def score(
        logits: torch.Tensor, where: slice, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gradient = logits.float()
        # In a fifth of argmax's time on a CPU.
        correct = gradient.gather(-1, labels[where][:, None]).squeeze(-1) == gradient.amax(dim=-1)
        return token_losses(gradient, labels[where], retain_mask[where], weights), correct, gradient

    weights = token_weights(retain_mask, num_items, retain_weight)
    loss, per_token, correct = chunked_loss(hidden, weights, head, score, chunk_size)
    return ULDLossOutput(
        loss=loss,
        forget_loss=per_token[~retain_mask].sum(),
        forget_correct=(correct & ~retain_mask).sum(),
        retain_loss=per_token[retain_mask].sum(),
    )


def check_head(model: PreTrainedModel) -> None:
    """
    Refuse a family whose logits are not what [`make_head`] makes of the hidden states.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model.

    Raises:
        NotImplementedError: If the logits of a short random input differ.
    """
    device = model.get_input_embeddings().weight.device
    input_ids = torch.arange(8, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    was_training = model.training
    model.eval()
    # Flash attention runs on a GPU only, and the model may not be there yet.
    with torch.no_grad(), attention_set_to("eager", model):
        expected = model(input_ids=input_ids, use_cache=False).logits.float()
        actual = make_head(model)(model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state).float()
    model.train(was_training)
    if not torch.allclose(expected, actual.to(expected.device), rtol=1e-2, atol=1e-2):
        raise NotImplementedError(
            f"{type(model).__name__} changes the output of its head in a way that uld_hf does not know (off by "
            f"{(expected - actual.to(expected.device)).abs().max():.3g}): training would optimize another loss. Please "
            "report this model."
        )


def add_loss(model: PreTrainedModel, loss: Callable[..., ModelOutput]) -> None:
    """
    Make `model(..., retain_mask=...)` return a loss of the last hidden states; without `retain_mask` nothing changes.

    The loss is computed inside of one call of the head, which is inside of the model's. DistributedDataParallel, FSDP
    and DeepSpeed prepare parameters and gradients around these calls, together with the other processes, whose batch
    may have another number of tiles.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model, without PEFT's wrapper.
        loss (`Callable[..., ModelOutput]`):
            Called with the model, the hidden states, and by name `labels`, `retain_mask`, `num_items` and, where they
            are given, `targets`.
    """

    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        *args: Any,
        retain_mask: torch.BoolTensor | None = None,
        num_items: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        if retain_mask is None:
            return self.forward_without_loss(*args, **kwargs)
        given = {name: kwargs.pop(name) for name in ("labels", "targets") if name in kwargs}
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        given |= {"retain_mask": retain_mask, "num_items": num_items}
        return self.get_output_embeddings()(hidden, loss=functools.partial(loss, self, **given))

    def forward_of_head(
        self: nn.Module, hidden: torch.Tensor, loss: Callable[[torch.Tensor], ModelOutput] | None = None
    ) -> torch.Tensor | ModelOutput:
        return self.forward_without_loss(hidden) if loss is None else loss(hidden)

    # Bound methods on the instance, not closures over it, so that a deepcopy of the model runs the copy.
    for module, method in ((model, forward), (model.get_output_embeddings(), forward_of_head)):
        if "forward_without_loss" not in vars(module):  # as in a model that is trained again
            module.forward_without_loss = module.forward
        module.forward = types.MethodType(method, module)


def add_uld_loss(model: PreTrainedModel, retain_weight: float) -> None:
    """
    Make `model(..., retain_mask=...)` return the assistant's loss, see [`add_loss`].

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The assistant's base model.
        retain_weight (`float`):
            Weight of the retain term, the paper's beta.
    """

    def loss(model: PreTrainedModel, hidden: torch.Tensor, **given: Any) -> ULDLossOutput:
        chunk_size = tile_tokens(model.config.get_text_config(decoder=True).vocab_size)
        return uld_loss(hidden, retain_weight=retain_weight, head=make_head(model), chunk_size=chunk_size, **given)

    add_loss(model, loss)
