"""The student: the target's weights as they begin, what of them is trained, and the plain model that comes out."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..assistant import INITS_THAT_KEEP_THE_BASE, check_no_adapter, keeps_the_base, shared_with
from ..hub import fingerprint_tokenizer, fingerprint_tokenizer_of
from ..modeling_uld import ULDForCausalLM


@dataclass
class Blueprint:
    """
    What a model was before it was trained, apart from its weights.

    Args:
        name (`str`):
            Hub id or folder; may be empty.
        dtypes (`dict[str, torch.dtype]`):
            Type of each parameter.
        config ([`~transformers.PreTrainedConfig`]):
            Its configuration.
        generation_config ([`~transformers.GenerationConfig`]):
            Its generation defaults.
    """

    name: str
    dtypes: dict[str, torch.dtype]
    config: PreTrainedConfig
    generation_config: GenerationConfig

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Blueprint":
        """
        The blueprint of a model.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                The model.

        Returns:
            [`Blueprint`]: Of copies: what happens to the model later does not change it.
        """
        return cls(
            name=model.name_or_path,
            dtypes={name: parameter.dtype for name, parameter in model.named_parameters()},
            config=copy.deepcopy(model.config),
            generation_config=copy.deepcopy(model.generation_config),
        )


def check_student(student: PreTrainedModel, teacher: ULDForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Refuse a student that cannot learn the teacher's distribution, or whose training would change the teacher.

    Args:
        student ([`~transformers.PreTrainedModel`]):
            A model of the user's own.
        teacher ([`ULDForCausalLM`]):
            The teacher.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The teacher's tokenizer.

    Raises:
        TypeError: If it is not a plain model.
        ValueError: If it is quantized, its vocabulary is another, or it holds tensors of the teacher's target.
    """
    if not isinstance(student, PreTrainedModel) or isinstance(student, ULDForCausalLM):
        raise TypeError(f"The student must be a plain transformers model, got {type(student).__name__}.")
    check_no_adapter(student)
    if "quantization_config" in vars(student.config):
        raise ValueError("The student is quantized, and its weights are trained: load it without quantization_config.")
    sizes = [model.get_input_embeddings().weight.shape[0] for model in (student, teacher.target)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"The student has a vocabulary of {sizes[0]} tokens, the teacher one of {sizes[1]}: their distributions "
            "cannot be compared. Use a student with the target's tokenizer and vocabulary."
        )
    of_student = fingerprint_tokenizer_of(student.name_or_path)
    if of_student is not None and of_student != fingerprint_tokenizer(tokenizer):
        raise ValueError(
            f"The student {student.name_or_path} has another tokenizer than the teacher: the same number would be "
            "another word. Use a student with the target's tokenizer."
        )
    owned = {id(parameter) for parameter in teacher.target.parameters()}
    if any(id(parameter) in owned for parameter in student.parameters()):
        raise ValueError(
            "The student holds tensors of the teacher's own target: training it would change the teacher. Leave "
            "student= out, which trains a copy."
        )


def check_adapter(peft_config: PeftConfig) -> None:
    """
    Refuse adapters that cannot be merged, or that would change tensors that the teacher has too.

    Args:
        peft_config ([`~peft.PeftConfig`]):
            Configuration of the student's adapter.

    Raises:
        ValueError: If it is not LoRA on all tokens, trains biases, or takes what it begins with out of the base.
    """
    if not isinstance(peft_config, LoraConfig) or peft_config.alora_invocation_tokens:
        raise ValueError(
            f"peft_config is a {type(peft_config).__name__}; it must be a peft.LoraConfig without "
            "alora_invocation_tokens, which can be merged into the weights."
        )
    if not keeps_the_base(peft_config):
        raise ValueError(
            f"peft_config has init_lora_weights={peft_config.init_lora_weights!r} and bias={peft_config.bias!r}: "
            f"with others than {INITS_THAT_KEEP_THE_BASE} and 'none' it would change weights that the teacher has too."
        )


def build_student(
    teacher: ULDForCausalLM,
    student: PreTrainedModel | None,
    peft_config: PeftConfig | None,
    noise: float,
    seed: int,
    share: bool = True,
) -> PreTrainedModel | PeftModel:
    """
    The model that is trained.

    With LoRA it is made of new modules that hold the target's own tensors, as an assistant is, or copies of them: the
    teacher's modules never have the student's adapter. Without, it is a copy in float32.

    Args:
        teacher ([`ULDForCausalLM`]):
            The teacher.
        student ([`~transformers.PreTrainedModel`], *optional*):
            A model to train in place of the target's copy.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train; `None` trains all weights.
        noise (`float`):
            How much of the weights is replaced by fresh ones, see [`add_noise`].
        seed (`int`):
            Seed of adapter and noise.
        share (`bool`, *optional*, defaults to `True`):
            Whether a student with LoRA may hold the target's own tensors: what divides the student among processes
            would take them away from the teacher.

    Returns:
        [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]: The student.
    """
    set_seed(seed)
    if peft_config is not None:
        if student is None:
            student = copy.deepcopy(teacher.target, shared_with(teacher.target) if share else {})
        return get_peft_model(student, copy.deepcopy(peft_config))
    if student is None:
        student = copy.deepcopy(teacher.target)
    student = student.float().requires_grad_(True)
    if noise > 0:
        add_noise(student, noise)
    return student


@torch.no_grad()
def add_noise(model: PreTrainedModel, share: float) -> None:
    """
    Mix weights with fresh ones of the family's own initialization, in place (UNDO, arXiv 2506.06278).

    What is only hidden, not gone, then has to be learned anew.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The student.
        share (`float`):
            Share of the fresh weights: 0 leaves the model as it is, 1 begins from scratch.
    """
    # With a seed drawn from the seed: a target that was trained from scratch with the same one began as what that
    # gives, and would be mixed with its own past.
    torch.manual_seed(int(torch.randint(2**31, ())))
    fresh = dict(AutoModelForCausalLM.from_config(copy.deepcopy(model.config)).named_parameters())
    for name, parameter in model.named_parameters():
        parameter.lerp_(fresh[name].to(parameter), share)


def make_skeleton(trained: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """
    A copy of the student without weights, of which [`plain_model`] makes a model whatever training does to the student.

    Args:
        trained ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The student, before a trainer has it.

    Returns:
        [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]: Its modules, with parameters on the meta device.
    """
    memo = {id(parameter): nn.Parameter(parameter.detach().to("meta")) for parameter in trained.parameters()}
    memo |= {id(buffer): buffer.detach().to("cpu", copy=True) for buffer in trained.buffers()}
    skeleton = copy.deepcopy(trained, memo)
    base = skeleton.get_base_model() if isinstance(skeleton, PeftModel) else skeleton
    for module in (base, base.get_output_embeddings()):
        for name in ("forward", "forward_without_loss"):  # the loss of an earlier training
            vars(module).pop(name, None)
    return skeleton


@torch.no_grad()
def plain_model(
    skeleton: PreTrainedModel | PeftModel, weights: Mapping[str, torch.Tensor], blueprint: Blueprint
) -> PreTrainedModel:
    """
    What was trained as an ordinary model on the CPU: adapters merged, types, configuration and defaults as they were.

    Args:
        skeleton ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The student's modules, see [`make_skeleton`].
        weights (`Mapping[str, torch.Tensor]`):
            The student's parameters, by name.
        blueprint ([`Blueprint`]):
            What it was before.

    Returns:
        [`~transformers.PreTrainedModel`]: The model, with tensors of its own.
    """
    # In float32, so that an adapter is merged with one rounding.
    memo = {
        id(parameter): nn.Parameter(weights[name].detach().to("cpu", torch.float32, copy=True), requires_grad=False)
        for name, parameter in skeleton.named_parameters()
    }
    model = copy.deepcopy(skeleton, memo)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload(safe_merge=True)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(blueprint.dtypes[name])
    model.config = copy.deepcopy(blueprint.config)
    model.generation_config = copy.deepcopy(blueprint.generation_config)
    return model.eval()
