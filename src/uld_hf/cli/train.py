"""`uld train`: an assistant for a target, from forget and retain data in files or on the Hub."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, PrinterCallback
from trl import SFTConfig

from ..data.formatting import question_answer_to_prompt_completion, read_json_lines
from ..data.local import load_from_hub
from ..training.uld_config import ULDConfig
from ..training.uld_trainer import ULDTrainer
from . import output
from .interrupt import SaveOnInterrupt
from .parsing import CommandParser, check_model_path


DESCRIPTION = """Train an assistant that makes a model forget, and save it.

  uld train my-finetuned-model --forget_dataset forget.jsonl --retain_dataset retain.jsonl \\
      --output_dir forget-alice

Rows are {"prompt": ..., "completion": ...}, {"question": ..., "answer": ...}, {"messages": [...]} or {"text": ...}.
If the target has a chat template, prompts and questions are a user's messages in it. If not, a prompt is used as it is
and a question as "Question: ...\nAnswer:".
The target is not changed. Look at the result with: uld generate forget-alice --prompt "..."

Ctrl-C finishes the step and writes a checkpoint; the same command with
--resume_from_checkpoint True goes on from there.
"""


@dataclass
class TrainArguments:
    """
    What `uld train` takes besides [`ULDConfig`].

    Args:
        model (`str`):
            Folder or hub id of the target.
        forget_dataset (`str`):
            JSONL file, or hub id, of what must be forgotten.
        retain_dataset (`str`):
            JSONL file, or hub id, of a sample of what must be kept.
        model_revision (`str`, *optional*):
            Revision of the target on the Hub.
        lora_r (`int`, *optional*, defaults to `32`):
            Rank of the assistant's LoRA.
        lora_alpha (`int`, *optional*, defaults to `32`):
            Scale of the assistant's LoRA.
        lora_dropout (`float`, *optional*, defaults to `0.0`):
            Dropout of the assistant's LoRA.
    """

    model: str = field(metadata={"help": "folder or hub id of the target, the model that must forget"})
    forget_dataset: str = field(
        metadata={"help": "what must be forgotten: a JSONL file, or a hub id (owner/name, or owner/name:config)"}
    )
    retain_dataset: str = field(
        metadata={"help": "a sample of what must be kept, the wider the better: a JSONL file, or a hub id"}
    )
    model_revision: str | None = field(default=None, metadata={"help": "revision of the target on the Hub"})
    lora_r: int = field(default=32, metadata={"help": "rank of the assistant's LoRA"})
    lora_alpha: int = field(default=32, metadata={"help": "scale of the assistant's LoRA"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout of the assistant's LoRA"})


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
        ValueError: If the file is empty, or a line of it is not a JSON object.
    """
    if os.path.isfile(name_or_path):
        dataset = Dataset.from_list(read_json_lines(name_or_path))
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


def build_parser() -> CommandParser:
    """The command line of `uld train`."""
    inherited = {option.name for option in fields(SFTConfig)}
    own = [option.name for option in (*fields(TrainArguments), *fields(ULDConfig)) if option.name not in inherited]
    shown = (*own, *COMMON_OPTIONS)
    return CommandParser((TrainArguments, ULDConfig), "uld train", DESCRIPTION, shown, words=("model",), has_json=True)


def main(argv: Sequence[str]) -> None:
    """
    Run `uld train`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld train`.

    Raises:
        KeyboardInterrupt: At Ctrl-C, after a checkpoint, saying how to go on.
    """
    arguments, config = build_parser().parse(argv)
    if arguments.model_revision is not None:
        config.model_init_kwargs = {**(config.model_init_kwargs or {}), "revision": arguments.model_revision}
    check_model_path(arguments.model, arguments.model_revision)
    if os.path.exists(os.path.join(config.output_dir, "config.json")) and config.resume_from_checkpoint is None:
        raise ValueError(f"{config.output_dir} holds a model already: give another --output_dir, or delete it.")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, revision=arguments.model_revision)
    conversational = tokenizer.chat_template is not None
    trainer = ULDTrainer(
        model=arguments.model,
        args=config,
        forget_dataset=load_rows(arguments.forget_dataset, conversational),
        retain_dataset=load_rows(arguments.retain_dataset, conversational),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=arguments.lora_r,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            target_modules="all-linear",
        ),
    )
    interrupt = SaveOnInterrupt()
    trainer.add_callback(interrupt)
    if output.is_quiet():
        trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    finally:
        interrupt.restore()
    state = trainer.state
    if interrupt.interrupted:
        command = shlex.join(["uld", "train", *without_resuming(argv), "--resume_from_checkpoint", "True"])
        raise KeyboardInterrupt(
            f"stopped after step {state.global_step} of {state.max_steps}, saved in {config.output_dir}. Go on with:\n"
            f"  {command}"
        )
    trainer.save_model()  # with --push_to_hub it pushes too
    if trainer.is_world_process_zero():
        metrics = {name: value for entry in state.log_history for name, value in entry.items()}  # the last of each
        output.result(
            f"Saved to {config.output_dir}. Compare target and unlearned model:\n"
            f'  uld generate {config.output_dir} --prompt "..."',
            {"output_dir": config.output_dir, "steps": state.global_step, "metrics": metrics},
        )


def without_resuming(argv: Sequence[str]) -> list[str]:
    """
    A command line less its `--resume_from_checkpoint`.

    Args:
        argv (`Sequence[str]`):
            The command line.

    Returns:
        `list[str]`: The rest of it.
    """
    name = "--resume_from_checkpoint"
    return [
        part
        for index, part in enumerate(argv)
        if part != name and not part.startswith(f"{name}=") and (index == 0 or argv[index - 1] != name)
    ]
