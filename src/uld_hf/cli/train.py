"""`uld train`: an assistant for a target, or a rival method, from forget and retain data in files or on the Hub."""

import argparse
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig

from ..baselines.offset_trainer import OffsetConfig, OffsetTrainer
from ..baselines.unlearn_config import LOSS_TYPES, UnlearnConfig
from ..baselines.unlearn_trainer import UnlearnTrainer
from ..data.formatting import question_answer_to_prompt_completion, read_json_lines
from ..data.local import load_from_hub
from ..training.checkpoints import find_last_checkpoint, resolve_checkpoint
from ..training.forget_retain_trainer import holds_model
from ..training.target import how_to_load, read_target_config, select_source
from ..training.uld_config import ULDConfig, check_choice
from ..training.uld_trainer import ULDTrainer
from . import output
from .interrupt import train_until_done
from .parsing import CommandParser, check_model_path
from .questions import has_questions, read_rows
from .rows import check_columns, check_is_json_lines, check_one_format


DESCRIPTION = """Train an assistant that makes a model forget, and save it; or, with --method, change the model itself.

  uld train my-finetuned-model --forget_dataset forget.jsonl --retain_dataset retain.jsonl \\
      --output_dir forget-alice

Rows are {"prompt": ..., "completion": ...}, {"question": ..., "answer": ...}, {"messages": [...]} or {"text": ...}.
If the target has a chat template, prompts and questions are a user's messages in it. If not, a prompt is used as it is
and a question as "Question: ...\nAnswer:".
The target is not changed. Look at the result with: uld generate forget-alice --prompt "..."

Other methods change a copy of the model's weights and save an ordinary model (options: uld train --method npo --help):
  uld train my-finetuned-model --method npo --retain_loss_type kl --learning_rate 1e-4 \\
      --forget_dataset forget.jsonl --retain_dataset retain.jsonl --output_dir forgot-alice

Ctrl-C finishes the step and writes a checkpoint; the same command with
--resume_from_checkpoint True goes on from there.
"""

METHODS = ("uld", *LOSS_TYPES, "offset")
# Of methods other than those of UnlearnTrainer.
CLASSES = {"uld": (ULDConfig, ULDTrainer), "offset": (OffsetConfig, OffsetTrainer)}


@dataclass
class TrainArguments:
    """
    What `uld train` takes besides [`ULDConfig`] or [`UnlearnConfig`].

    Args:
        method (`str`, *optional*, defaults to `"uld"`):
            `"uld"` for an assistant, a `loss_type` of [`UnlearnConfig`], or `"offset"` for [`OffsetTrainer`].
        model (`str`):
            Folder or hub id of the target.
        forget_dataset (`str`, *optional*):
            JSONL file, or hub id, of what must be forgotten. Left out only with `objective="likelihood"`.
        retain_dataset (`str`, *optional*):
            JSONL file, or hub id, of a sample of what must be kept. Left out only with `objective="likelihood"` or
            `retain_loss_type="none"`.
        model_revision (`str`, *optional*):
            Revision of the target on the Hub.
        lora_r (`int`, *optional*, defaults to `32`):
            Rank of LoRA: of the assistant, or of the model with another method, where 0 trains all weights.
        lora_alpha (`int`, *optional*, defaults to `32`):
            Scale of LoRA.
        lora_dropout (`float`, *optional*, defaults to `0.0`):
            Dropout of LoRA.
    """

    model: str = field(metadata={"help": "folder or hub id of the target, the model that must forget"})
    forget_dataset: str | None = field(
        default=None,
        metadata={"help": "what must be forgotten: a JSONL file, or a hub id (owner/name, or owner/name:config)"},
    )
    retain_dataset: str | None = field(
        default=None,
        metadata={"help": "a sample of what must be kept, the wider the better: a JSONL file, or a hub id"},
    )
    method: str = field(
        default="uld",
        metadata={
            "help": "uld trains an assistant; the others change the model: gradient ascent, NPO, SimNPO, DPO with "
            "refusals, UNDIAL, RMU; offset trains an assistant with the --loss_type of one of these",
            "choices": list(METHODS),
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "revision of the target on the Hub"})
    lora_r: int = field(
        default=32, metadata={"help": "rank of LoRA; with a method other than uld, 0 trains all weights"}
    )
    lora_alpha: int = field(default=32, metadata={"help": "scale of LoRA"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout of LoRA"})


# Of the hundreds of options that transformers and trl bring, the ones a first run may want.
COMMON_OPTIONS = (
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "bf16",
    "use_cpu",
    "seed",
    "push_to_hub",
    "resume_from_checkpoint",
)


def load_rows(name_or_path: str, conversational: bool) -> Dataset:
    """
    Load a forget or retain set.

    Args:
        name_or_path (`str`):
            A JSONL file, or a hub id with an optional configuration after a colon.
        conversational (`bool`):
            Whether questions and prompts become chat messages, because the target has a chat template.

    Returns:
        [`~datasets.Dataset`]: Rows in a format of trl.

    Raises:
        FileNotFoundError: If it looks like a file that is not there.
        ValueError: If the file is empty, a line of it is not a JSON object, or its rows are of several formats.
    """
    check_is_json_lines(name_or_path)
    if os.path.isfile(name_or_path):
        rows = read_json_lines(name_or_path)
        check_one_format(rows, name_or_path)
        dataset = Dataset.from_list(rows)
    else:
        dataset = load_from_hub(name_or_path)
    if {"question", "answer"} <= set(dataset.column_names):
        return question_answer_to_prompt_completion(dataset, conversational=conversational)
    is_text = {"prompt", "completion"} <= set(dataset.column_names) and isinstance(dataset[0]["prompt"], str)
    if is_text and conversational:
        # The space between the two is the template's affair now.
        dataset = dataset.map(lambda row: {"completion": (row["completion"] or "").strip()})
        return question_answer_to_prompt_completion(dataset, True, "prompt", "completion")
    return dataset


def find_method(argv: Sequence[str]) -> str:
    """
    The method, before the options are parsed: which there are depends on it.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld train`.

    Returns:
        `str`: What `--method`, or the file of `--config`, says; `"uld"` if neither does.

    Raises:
        ValueError: If there is no such method, or another loss is asked for than its own.
    """
    method = _find_option(argv, "method") or "uld"
    check_choice("--method", method, METHODS)
    loss_type = _find_option(argv, "loss_type")
    if method in LOSS_TYPES and loss_type not in (None, method):
        raise ValueError(f"--loss_type {loss_type} and --method {method} differ: give --method only.")
    return method


def _find_option(argv: Sequence[str], name: str) -> str | None:
    """What the command line, or the file of --config, gives for an option."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", dest="value")
    parser.add_argument("--config")
    arguments, _ = parser.parse_known_args(argv)
    if arguments.value is None and arguments.config is not None:
        with suppress(OSError, yaml.YAMLError):  # the parser of all options says what is wrong with the file
            content = yaml.safe_load(Path(arguments.config).read_text(encoding="utf-8"))
            return content.get(name) if isinstance(content, dict) else None
    return arguments.value


def options_of_other_methods(method: str) -> dict[str, str]:
    """
    Options that a method lacks and others have.

    Args:
        method (`str`):
            The method.

    Returns:
        `dict[str, str]`: By the option's name, the methods that have it: `{"num_assistant_layers": "--method uld"}`.
    """
    classes = {name: CLASSES.get(name, (UnlearnConfig, UnlearnTrainer))[0] for name in METHODS}
    options = {name: {option.name for option in fields(config_class)} for name, config_class in classes.items()}
    others: dict[str, list[str]] = {}
    for name in METHODS:
        for option in sorted(options[name] - options[method]):
            others.setdefault(option, []).append(name)
    return {option: f"--method {' or '.join(names)}" for option, names in others.items()}


def build_parser(method: str = "uld") -> CommandParser:
    """The command line of `uld train` for a method."""
    config_class, _ = CLASSES.get(method, (UnlearnConfig, UnlearnTrainer))
    inherited = {option.name for option in fields(SFTConfig)}
    own = [option.name for option in (*fields(TrainArguments), *fields(config_class)) if option.name not in inherited]
    shown = (*own, *COMMON_OPTIONS, *(["loss_type"] if method == "offset" else []))
    return CommandParser(
        (TrainArguments, config_class),
        "uld train",
        DESCRIPTION,
        shown,
        words=("model",),
        has_json=True,
        elsewhere=options_of_other_methods(method),
    )


def main(argv: Sequence[str]) -> None:
    """
    Run `uld train`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld train`.

    Raises:
        KeyboardInterrupt: At Ctrl-C, after a checkpoint, saying how to go on.
        ValueError: If an option, a file or a model is not what it must be.
    """
    method = find_method(argv)
    _, trainer_class = CLASSES.get(method, (UnlearnConfig, UnlearnTrainer))
    arguments, config = build_parser(method).parse([*argv, "--loss_type", method] if method in LOSS_TYPES else argv)
    if arguments.model_revision is not None:
        config.model_init_kwargs = {**(config.model_init_kwargs or {}), "revision": arguments.model_revision}
    check_model_path(arguments.model, arguments.model_revision)
    if holds_model(config.output_dir) and config.resume_from_checkpoint is None:
        raise ValueError(f"{config.output_dir} holds a model already: give another --output_dir, or delete it.")
    unfinished = find_last_checkpoint(config.output_dir)
    begins_anew = unfinished and resolve_checkpoint(config.resume_from_checkpoint, config.output_dir) is None
    if begins_anew and config.process_index == 0:
        output.note(f"This training starts over; to go on from {unfinished}, add --resume_from_checkpoint True.")
    source = select_source(how_to_load(config))
    read_target_config(arguments.model, source)  # its mistakes are told before those of a tokenizer
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, **source)
    conversational = tokenizer.chat_template is not None
    sets = {
        f"{name}_dataset": None if source is None else load_rows(source, conversational)
        for name, source in (("forget", arguments.forget_dataset), ("retain", arguments.retain_dataset))
    }
    check_columns(sets, config.dataset_text_field)
    # What was trained as questions is asked as questions: another prompt, and the target does not know either.
    forget = arguments.forget_dataset
    # With a chat template everything is a question: a set of the Hub need not be loaded again for it.
    rows = read_rows(forget) if forget is not None and (not conversational or os.path.isfile(forget)) else []
    as_question = conversational or (bool(rows) and has_questions(rows))
    asking = '--question "..."' if as_question else '--prompt "..."'
    if rows and ("messages" in rows[0] or isinstance(rows[0].get("prompt"), list)) and os.path.isfile(forget):
        # With the system message and the turns that they were trained with.
        asking = f"--prompts_file {shlex.quote(forget)}"
    lora = None
    if method not in LOSS_TYPES or arguments.lora_r != 0:
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=arguments.lora_r,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            target_modules="all-linear",
        )
    trainer = trainer_class(model=arguments.model, args=config, processing_class=tokenizer, peft_config=lora, **sets)
    metrics = train_until_done(trainer, ["uld", "train", *argv])
    trainer.save_model()  # with --push_to_hub it pushes too
    advice = "It is an ordinary model: AutoModelForCausalLM loads it."
    if method not in LOSS_TYPES:
        advice = f"Compare target and unlearned model:\n  uld generate {shlex.quote(config.output_dir)} {asking}"
    if method == "uld" and config.alpha < 0:
        advice = "It is added to a model with an assistant of the forget set: model.add_assistant(...)."
    if trainer.is_world_process_zero():
        output.result(
            f"Saved to {config.output_dir}. {advice}",
            {"output_dir": config.output_dir, "steps": trainer.state.global_step, "metrics": metrics},
        )
