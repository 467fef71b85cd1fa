"""`uld bake`: an unlearned model as one plain checkpoint, from the data that it was unlearned with."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from peft import LoraConfig
from trl import SFTConfig

from ..bake.bake_config import ULDBakeConfig
from ..bake.bake_trainer import ULDBakeTrainer
from ..bake.saving import check_output_folder
from ..bake.teacher import load_target_tokenizer
from ..hub import load_config
from . import output
from .interrupt import train_until_done
from .parsing import CommandParser, check_model_path
from .rows import check_columns
from .train import COMMON_OPTIONS, load_rows


# What transformers makes of no --output_dir. Not looked up in another configuration: a second one made in a process of
# several would begin its communication anew.
_NO_OUTPUT_DIR = "trainer_output"

DESCRIPTION = """Distill an unlearned model into plain weights: an ordinary folder that loads without uld_hf.

  uld bake forget-alice --forget_dataset forget.jsonl --retain_dataset retain.jsonl --output alice-forgotten

Rows are those of `uld train`; best the same files, paraphrases and wrong answers included. All weights are trained, or
with --use_peft LoRA that is merged at the end. The unlearned model and its target are not changed.
"""


@dataclass
class BakeArguments:
    """
    What `uld bake` takes besides [`ULDBakeConfig`].

    Args:
        model (`str`):
            Folder or hub id of a saved unlearned model.
        output (`str`):
            Folder for the baked model; must be empty or not there.
        forget_dataset (`str`):
            JSONL file, or hub id, of what was forgotten.
        retain_dataset (`str`):
            JSONL file, or hub id, of a sample of what must be kept.
        general_dataset (`str`, *optional*):
            JSONL file, or hub id, of other text that must stay as it is.
        use_peft (`bool`, *optional*, defaults to `False`):
            Train LoRA and merge it, instead of all weights.
        lora_r (`int`, *optional*, defaults to `32`):
            Rank of that LoRA.
        lora_alpha (`int`, *optional*, defaults to `32`):
            Scale of that LoRA.
        lora_dropout (`float`, *optional*, defaults to `0.0`):
            Dropout of that LoRA.
    """

    model: str = field(metadata={"help": "folder or hub id of a saved unlearned model (what `uld train` wrote)"})
    output: str = field(metadata={"help": "folder for the baked model; must be empty or not there"})
    forget_dataset: str = field(
        metadata={"help": "what was forgotten: a JSONL file, or a hub id (owner/name, or owner/name:config)"}
    )
    retain_dataset: str = field(metadata={"help": "a sample of what must be kept: a JSONL file, or a hub id"})
    general_dataset: str | None = field(
        default=None, metadata={"help": "other text that must stay as it is: a JSONL file, or a hub id"}
    )
    use_peft: bool = field(default=False, metadata={"help": "train LoRA and merge it, instead of all weights"})
    lora_r: int = field(default=32, metadata={"help": "rank of that LoRA"})
    lora_alpha: int = field(default=32, metadata={"help": "scale of that LoRA"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout of that LoRA"})


def build_parser() -> CommandParser:
    """The command line of `uld bake`."""
    inherited = {option.name for option in fields(SFTConfig)}
    own = [option.name for option in (*fields(BakeArguments), *fields(ULDBakeConfig)) if option.name not in inherited]
    common = [option for option in COMMON_OPTIONS if option != "output_dir"]
    shown = (*own, *common)
    return CommandParser(
        (BakeArguments, ULDBakeConfig), "uld bake", DESCRIPTION, shown, words=("model",), has_json=True
    )


def main(argv: Sequence[str]) -> None:
    """
    Run `uld bake`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld bake`.

    Raises:
        KeyboardInterrupt: At Ctrl-C, after a checkpoint, saying how to go on.
        ValueError: If an option, a file or a model is not what it must be.
    """
    arguments, config = build_parser().parse(argv)
    if config.output_dir not in (_NO_OUTPUT_DIR, arguments.output):
        raise ValueError(
            f"--output_dir {config.output_dir} and --output {arguments.output} differ: give --output only."
        )
    config.output_dir = arguments.output
    check_output_folder(Path(arguments.output), goes_on=bool(config.resume_from_checkpoint))
    check_model_path(arguments.model)
    tokenizer = load_target_tokenizer(load_config(arguments.model), arguments.model)
    conversational = tokenizer.chat_template is not None
    general = arguments.general_dataset
    sets = {
        "forget_dataset": load_rows(arguments.forget_dataset, conversational),
        "retain_dataset": load_rows(arguments.retain_dataset, conversational),
        "general_dataset": None if general is None else load_rows(general, conversational),
    }
    check_columns(sets, config.dataset_text_field)
    trainer = ULDBakeTrainer(
        model=arguments.model,
        args=config,
        **sets,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=arguments.lora_r,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            target_modules="all-linear",
        )
        if arguments.use_peft
        else None,
    )
    metrics = train_until_done(trainer, ["uld", "bake", *argv])
    trainer.save_model()  # with --push_to_hub it pushes too
    if trainer.is_world_process_zero():
        lines = [
            f"Saved to {config.output_dir}. It loads anywhere:",
            f'  AutoModelForCausalLM.from_pretrained("{config.output_dir}")',
        ]
        if config.teacher_top_k is not None:
            size, place = f"{trainer.teacher_cache_bytes:,} bytes", trainer.teacher_cache_dir
            lines.append(f"The teacher's top {config.teacher_top_k} took {size} in {place}.")
        output.result(
            "\n".join(lines),
            {"output_dir": config.output_dir, "steps": trainer.state.global_step, "metrics": metrics},
        )
