"""The last layer on answer tokens alone, as far as it can be.

The loss looks at the hidden states that predict answers. Of a prompt (or of padding) the last layer's keys and values
are still needed, for answers attend to them. Its queries, the attention's output and the MLP are not.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from ..assistant import find_decoder_layers
from .padding_free import attention_set_to


# A part that prompts do need changes far more than rounding does, of sums whose terms are in another order.
_ROUNDING = 1e-6


def predicts_answer(labels: torch.LongTensor) -> torch.BoolTensor:
    """
    Which tokens predict an answer's.

    Args:
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Tokens, not shifted; -100 for those that are no answer.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, sequence_length)`: `True` where the next token is an answer's.
    """
    return F.pad(labels[:, 1:] != -100, (0, 1))


@contextmanager
def on_answers_alone(parts: list[nn.Module], labels: torch.LongTensor) -> Iterator[None]:
    """
    Let parts of the last layer compute the tokens that predict answers, and give zeros for all others.

    Args:
        parts (`list[nn.Module]`):
            What [`find_answer_parts`] has found.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Tokens of the batch, not shifted; -100 for those that are no answer. The backward pass belongs inside too:
            it may compute activations again.
    """
    rows, columns = predicts_answer(labels).nonzero(as_tuple=True)
    if len(rows) == 0:  # not every part can compute nothing
        yield
        return

    def select(part: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
        return args[0][rows.to(args[0].device), columns.to(args[0].device)][None]

    def put_back(part: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        whole = output.new_zeros(*labels.shape, output.shape[-1])
        whole[rows.to(output.device), columns.to(output.device)] = output[0]
        return whole

    with ExitStack() as hooks:
        for part in parts:
            hooks.callback(part.register_forward_pre_hook(select).remove)
            hooks.callback(part.register_forward_hook(put_back).remove)
        yield


def find_answer_parts(model: PreTrainedModel) -> list[nn.Module]:
    """
    Find the parts of a model's last layer that prompts need not go through, by trying.

    A part takes one tensor of a vector for each token, and returns one. Prompts need not go through it if other vectors
    in their places, before and behind it, leave the last hidden states that predict answers as they are.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model, without PEFT's wrapper.

    Returns:
        `list[nn.Module]`: The parts, none within another; for Llama the queries' and the output's projection and the
        MLP. Empty for a layer that has none.
    """
    holder, name = find_decoder_layers(model)
    layer = holder.get_submodule(name)[-1]
    device = model.get_input_embeddings().weight.device
    labels = torch.tensor([[-100, -100, -100, 3, 4, -100, 5], [-100, -100, 3, 4, 5, 6, 7]], device=device)
    input_ids = torch.arange(labels.numel(), device=device).view_as(labels) + 3
    input_ids = input_ids % model.get_input_embeddings().weight.shape[0]
    places = predicts_answer(labels)
    takes_tokens: list[nn.Module] = []

    def note(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tensors = [each for each in (*args, *kwargs.values(), output) if isinstance(each, torch.Tensor)]
        if len(args) == 1 and not kwargs and len(tensors) == 2:
            given, made = (each.shape for each in tensors)
            if len(given) == len(made) == 3 and given[:2] == made[:2] == labels.shape:
                takes_tokens.append(part)

    def some_vector(like: torch.Tensor) -> torch.Tensor:
        return torch.arange(like.shape[-1], device=like.device).cos().to(like.dtype)

    def as_if_trained(part: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if len(args) != 1 or not isinstance(output, torch.Tensor):  # LoRA on experts
            return output
        # What a layer's weights do not let through yet, LoRA may.
        projected = (args[0] * some_vector(args[0])).sum(dim=-1, keepdim=True) / args[0].shape[-1] ** 0.5
        return output + projected * some_vector(output)

    def without_prompts(states: torch.Tensor) -> torch.Tensor:
        return torch.where(places.to(states.device)[..., None], states, some_vector(states))

    def last_hidden_states() -> torch.Tensor:
        states = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return states[places.to(states.device)].float()

    # LoRA's factors go with the layer that they are added to.
    adapted = [part for part in layer.modules() if isinstance(part, BaseTunerLayer)]
    inner = {id(each) for part in adapted for each in part.modules()} - {id(part) for part in adapted}
    # Those with a matrix: to leave tokens out of others saves nothing.
    candidates = [
        part
        for part in layer.modules()
        if id(part) not in inner and any(weight.dim() > 1 for weight in part.parameters())
    ]
    found: list[nn.Module] = []
    was_training = model.training
    model.eval()
    try:
        # Flash attention runs on a GPU only, and the model may not be there yet.
        with torch.no_grad(), attention_set_to("eager", model), ExitStack() as always:
            for part in adapted:
                always.callback(part.register_forward_hook(as_if_trained).remove)
            with ExitStack() as hooks:
                for part in candidates:
                    hooks.callback(part.register_forward_hook(note, with_kwargs=True).remove)
                expected = last_hidden_states()
            for part in candidates:  # outer ones come first
                within = any(part is each for outer in found for each in outer.modules())
                if within or takes_tokens.count(part) != 1:
                    continue
                with ExitStack() as hooks:
                    before = part.register_forward_pre_hook(lambda part, args: without_prompts(args[0]))
                    hooks.callback(before.remove)
                    behind = part.register_forward_hook(lambda part, args, output: without_prompts(output))
                    hooks.callback(behind.remove)
                    difference = last_hidden_states() - expected
                if difference.norm() <= _ROUNDING * expected.norm():
                    found.append(part)
    finally:
        model.train(was_training)
    return found
