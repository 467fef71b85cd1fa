"""`uld demo`: the whole of ULD on a language model of a million parameters, made on the spot.

1. A target learns 40 invented people from scratch. A second model is retrained without four of them: the gold standard.
2. ULD trains an assistant that makes the target forget these four.
3. The three models answer the same questions; the assistant is saved, loaded back and used through `pipeline()`.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    pipeline,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from ..data.fictitious import fictitious_dataset, invent_people, paraphrases, split_people, wrong_answers
from ..data.formatting import question_answer_to_prompt_completion
from ..evaluation.evaluation import SetResults, evaluate
from ..evaluation.tofu import forget_quality, is_degenerate
from ..modeling_uld import ULDForCausalLM
from ..training.uld_config import ULDConfig
from ..training.uld_trainer import ULDTrainer
from . import output
from .parsing import CommandParser
from .questions import questions_of


DESCRIPTION = """Make a tiny language model learn 40 invented people, then forget four of them.

  uld demo
  uld demo --seed 1 --output_dir out/demo1

Needs no download and no GPU. Prints a table of the target, a model retrained without the four people, and the target
with ULD's assistant. The questions are written beside the models, to go on with `uld train` and `uld eval`:
forget.jsonl, retain.jsonl, and holdout.jsonl about people that no model has seen.
"""

# Found by trying. A target this small, trained from scratch, needs a larger part of its layers, more
# steps and a higher learning rate than the paper's 7B, with whose settings ULDConfig trains by default.
ULD_SETTINGS = {
    "num_assistant_layers": 2,
    "learning_rate": 3e-3,
    "num_train_epochs": 16,
    "lr_scheduler_type": "cosine",
    "retain_weight": 3.0,
    "retain_per_forget": 3.0,
    "alpha": 1.3,
    "relative_top": 0.0,
    "clamp": True,
    "per_device_train_batch_size": 16,
}
WRONG_ANSWERS = 4
EXPLANATION = """answers right     share of answers that contain the fact, on the forgotten people and on the others
forget quality p  of the test that the model prefers right to wrong answers no more than the retrained one does;
                  above 0.05 the two cannot be told apart
broken answers    empty, or the same words over and over
"""

# A question, a line for the answer: the format of the prompts in `uld_hf.data.formatting`, as a chat template.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}Question: {{ message['content'] }}\nAnswer:"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@dataclass
class DemoArguments:
    """
    What `uld demo` takes.

    Args:
        output_dir (`str`, *optional*, defaults to `"uld-demo"`):
            Folder for the models, the assistant, the questions and `results.json`.
        num_people (`int`, *optional*, defaults to `40`):
            Number of invented people; a tenth of them is forgotten.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the people and of every training.
    """

    output_dir: str = field(
        default="uld-demo", metadata={"help": "folder for the models, the assistant, the questions and results.json"}
    )
    num_people: int = field(default=40, metadata={"help": "number of invented people; a tenth of them is forgotten"})
    seed: int = field(default=0, metadata={"help": "seed of the people and of every training"})


@dataclass
class DemoRow:
    """
    One model's line of the demo's table.

    Args:
        model (`str`):
            What the table calls it.
        forget_right (`float`):
            Share of answers about the forgotten people that contain the fact.
        retain_right (`float`):
            The same of all others.
        forget_rouge_l (`float`):
            Mean ROUGE-L recall of the former answers.
        retain_rouge_l (`float`):
            The same of the latter.
        forget_quality (`float`):
            p-value of the test beside the retrained model.
        degenerate (`int`):
            Broken answers.
        seconds (`float`):
            Seconds of training.
        trainable_parameters (`int`):
            Parameters that were trained.
    """

    model: str
    forget_right: float
    retain_right: float
    forget_rouge_l: float
    retain_rouge_l: float
    forget_quality: float
    degenerate: int
    seconds: float
    trainable_parameters: int


def train_tokenizer(texts: Sequence[str], vocab_size: int = 2000) -> PreTrainedTokenizerBase:
    """
    A byte-level BPE tokenizer with a chat template, learned from the given texts.

    Args:
        texts (`Sequence[str]`):
            The texts.
        vocab_size (`int`, *optional*, defaults to `2000`):
            Most tokens.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`]: The tokenizer.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def learn(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | os.PathLike,
    seed: int,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_epochs: int = 30,
    learning_rate: float = 2e-3,
) -> tuple[PreTrainedModel, float]:
    """
    Train a small Llama from scratch.

    Args:
        rows ([`~datasets.Dataset`]):
            Prompt-completion rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        output_dir (`str` or `os.PathLike`):
            Folder for the model.
        seed (`int`):
            Seed of weights and order.
        hidden_size (`int`, *optional*, defaults to `128`):
            Width.
        num_layers (`int`, *optional*, defaults to `4`):
            Depth.
        num_epochs (`int`, *optional*, defaults to `30`):
            Passes over the rows.
        learning_rate (`float`, *optional*, defaults to `2e-3`):
            Highest learning rate.

    Returns:
        `tuple[PreTrainedModel, float]`: The model, and the seconds that training took.
    """
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        # The default of 0.02 is meant for widths of thousands: facts are learned in half the steps with this.
        initializer_range=hidden_size**-0.5,
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_config(config),
        SFTConfig(
            output_dir=str(output_dir),
            num_train_epochs=num_epochs,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            per_device_train_batch_size=16,
            **training_options(seed),
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    output.hush(trainer)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model()
    # Loaded back, so that the assistant's config names the folder of its target.
    return AutoModelForCausalLM.from_pretrained(output_dir), seconds


def training_options(seed: int) -> dict[str, object]:
    """
    What the demo's three trainings have in common.

    Args:
        seed (`int`):
            Seed of each.

    Returns:
        `dict[str, object]`: Options of `TrainingArguments`.
    """
    return {
        "gradient_checkpointing": None,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "seed": seed,
    }


def forget_and_retain_rows(forget: Dataset, retain: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """
    The paper's augmentation: paraphrases are forgotten too, wrong answers to the same questions are retained.

    Args:
        forget ([`~datasets.Dataset`]):
            Questions about the people to forget.
        retain ([`~datasets.Dataset`]):
            Questions about all others.
        seed (`int`):
            Seed of what is made.

    Returns:
        `tuple[Dataset, Dataset]`: Forget and retain rows to train with.
    """
    columns = ["question", "answer"]
    forget_rows = [forget.select_columns(columns), paraphrases(forget, per_row=4, seed=seed)]
    retain_rows = [retain.select_columns(columns), wrong_answers(forget, per_row=WRONG_ANSWERS, seed=seed)]
    return (
        question_answer_to_prompt_completion(concatenate_datasets(forget_rows), conversational=True),
        question_answer_to_prompt_completion(concatenate_datasets(retain_rows), conversational=True),
    )


def unlearn(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: Dataset,
    retain: Dataset,
    output_dir: Path,
    seed: int,
) -> tuple[ULDForCausalLM, float, int]:
    """
    Train an assistant, as anybody would with their own model and rows.

    Args:
        target ([`~transformers.PreTrainedModel`]):
            The target.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        forget ([`~datasets.Dataset`]):
            Questions about the people to forget.
        retain ([`~datasets.Dataset`]):
            Questions about all others.
        output_dir (`Path`):
            Folder for the unlearned model.
        seed (`int`):
            Seed of the training.

    Returns:
        `tuple[ULDForCausalLM, float, int]`: The target with the assistant, the seconds that took, and the number of
            trained parameters.
    """
    forget_rows, retain_rows = forget_and_retain_rows(forget, retain, seed)
    trainer = ULDTrainer(
        model=target,
        # A target this small, trained from scratch, needs a larger part of its layers and other settings than the
        # paper's 7B; docs of ULDConfig have those.
        args=ULDConfig(output_dir=str(output_dir), **ULD_SETTINGS, **training_options(seed)),
        forget_dataset=forget_rows,
        retain_dataset=retain_rows,
        processing_class=tokenizer,
    )
    output.hush(trainer)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model()
    trainable = trainer.model.get_nb_trainable_parameters()[0]
    return ULDForCausalLM.from_pretrained(output_dir, target=target), seconds, trainable


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> SetResults:
    """
    Put the questions of a set to a model.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows ([`~datasets.Dataset`]):
            The set.

    Returns:
        [`~uld_hf.evaluation.evaluation.SetResults`]: What `uld eval` would measure.
    """
    asked = rows.select_columns(["question", "answer", "paraphrased_answer", "perturbed_answer"]).to_list()
    return evaluate(model, tokenizer, questions_of(asked, "the demo's rows", tokenizer))


def share_right(answers: Sequence[str], rows: Dataset) -> float:
    """
    Share of answers that contain the fact.

    Args:
        answers (`Sequence[str]`):
            An answer to each question.
        rows ([`~datasets.Dataset`]):
            The questions, with the fact under `value`.

    Returns:
        `float`: Between 0 and 1.
    """
    return float(np.mean([value in answer for value, answer in zip(rows["value"], answers, strict=True)]))


def summarize(
    name: str,
    results: dict[str, SetResults],
    retrained: dict[str, SetResults],
    split: DatasetDict,
    seconds: float,
    trainable_parameters: int,
) -> DemoRow:
    """
    One line of the table.

    Args:
        name (`str`):
            What the table calls the model.
        results (`dict[str, SetResults]`):
            What was measured of it, on the `"forget"` and the `"retain"` set.
        retrained (`dict[str, SetResults]`):
            The same of the retrained model.
        split ([`~datasets.DatasetDict`]):
            The two sets.
        seconds (`float`):
            Seconds of its training.
        trainable_parameters (`int`):
            Parameters that were trained.

    Returns:
        [`DemoRow`]: The line.
    """
    return DemoRow(
        model=name,
        forget_right=share_right(results["forget"].completions, split["forget"]),
        retain_right=share_right(results["retain"].completions, split["retain"]),
        forget_rouge_l=float(np.mean(results["forget"].rouge_l_recall)),
        retain_rouge_l=float(np.mean(results["retain"].rouge_l_recall)),
        forget_quality=forget_quality(results["forget"].truth_ratios, retrained["forget"].truth_ratios),
        degenerate=sum(is_degenerate(text) for part in results.values() for text in part.completions),
        seconds=seconds,
        trainable_parameters=trainable_parameters,
    )


def write_questions(path: Path, rows: Dataset) -> None:
    """
    Write a set down as `uld train` and `uld eval` take it.

    Args:
        path (`Path`):
            JSONL file.
        rows ([`~datasets.Dataset`]):
            The set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer", "value"]
    lines = [json.dumps(row) + "\n" for row in rows.select_columns(columns).rename_column("value", "fact")]
    path.write_text("".join(lines), encoding="utf-8")


def format_table(rows: Sequence[DemoRow]) -> str:
    """
    The table, for a terminal.

    Args:
        rows (`Sequence[DemoRow]`):
            Its lines.

    Returns:
        `str`: The table with its head.
    """
    header = (
        f"{'':<22}{'answers right':^19}{'ROUGE-L':^18}{'forget':>10}{'broken':>9}{'training':>11}{'trained':>13}\n"
        f"{'':<22}{'forget':>9}{'retain':>9} {'forget':>9}{'retain':>9}{'quality p':>10}{'answers':>9}"
        f"{'seconds':>11}{'parameters':>13}"
    )
    lines = [
        f"{row.model:<22}{row.forget_right:>9.0%}{row.retain_right:>9.0%} {row.forget_rouge_l:>9.2f}"
        f"{row.retain_rouge_l:>9.2f}{row.forget_quality:>10.2g}{row.degenerate:>9}{row.seconds:>11.0f}"
        f"{row.trainable_parameters:>13,}"
        for row in rows
    ]
    return "\n".join([header, *lines])


def run_demo(output_dir: str | os.PathLike, num_people: int = 40, seed: int = 0) -> list[DemoRow]:
    """
    Learn, retrain, unlearn, compare, save, load back. Prints as it goes.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder for the models, the assistant, the questions and `results.json`.
        num_people (`int`, *optional*, defaults to `40`):
            Number of invented people; a tenth of them is forgotten.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the people and of every training.

    Returns:
        `list[DemoRow]`: The table's lines: target, retrained, unlearned.
    """
    folder = Path(output_dir)
    people = invent_people(num_people, seed)
    dataset = fictitious_dataset(people, seed)
    split = split_people(dataset, forget_fraction=0.1, seed=seed)
    forget, retain = split["forget"], split["retain"]
    names = list(dict.fromkeys(forget["person"]))
    known = {person.name for person in people}
    others = [person for person in invent_people(num_people, seed + 1) if person.name not in known]
    never_seen = fictitious_dataset(others, seed)
    holdout = never_seen.select(range(min(len(forget), len(never_seen))))
    for part, its_rows in {**split, "holdout": holdout}.items():
        write_questions(folder / f"{part}.jsonl", its_rows)
    tokenizer = train_tokenizer(
        [
            text
            for row in dataset
            for text in (row["question"], row["answer"], row["paraphrased_question"], row["paraphrased_answer"])
        ]
    )

    def chat_rows(rows: Dataset) -> Dataset:
        return question_answer_to_prompt_completion(rows, conversational=True)

    output.note(f"1/4  The target learns {num_people} invented people, {len(dataset)} facts.")
    target, target_seconds = learn(chat_rows(dataset), tokenizer, folder / "target", seed)
    output.note(
        f"2/4  For comparison, a model is retrained without the {len(names)} people to forget: {', '.join(names)}."
    )
    retrained, retrained_seconds = learn(chat_rows(retain), tokenizer, folder / "retrained", seed)
    output.note(f"3/4  ULD trains an assistant that knows these {len(names)} and nothing else.")
    unlearned, seconds, trainable = unlearn(target, tokenizer, forget, retain, folder / "unlearned", seed)

    output.note("4/4  All three answer the same questions.\n")
    candidates = {"target": target, "retrained": retrained, "unlearned (ULD)": unlearned}
    results = {
        name: {part: ask(model, tokenizer, split[part]) for part in ("forget", "retain")}
        for name, model in candidates.items()
    }
    costs = {
        "target": (target_seconds, target.num_parameters()),
        "retrained": (retrained_seconds, retrained.num_parameters()),
        "unlearned (ULD)": (seconds, trainable),
    }
    rows = [summarize(name, results[name], results["retrained"], split, *costs[name]) for name in candidates]
    output.result(format_table(rows), {"output_dir": str(folder), "rows": [asdict(row) for row in rows]})
    output.note(f"\n{EXPLANATION}")
    for index in range(0, len(forget), max(1, len(forget) // 3))[:3]:
        answers = [f"   {name:<16} {results[name]['forget'].completions[index]}" for name in candidates]
        output.note("\n".join([f"Q  {forget['question'][index]}", *answers, ""]))

    (folder / "results.json").write_text(
        json.dumps({"seed": seed, "num_people": num_people, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"
    )
    output.note(
        f"The assistant was saved to {folder / 'unlearned'}. Loaded back, through pipeline(), about someone kept:"
    )
    loaded = ULDForCausalLM.from_pretrained(folder / "unlearned")
    generator = pipeline("text-generation", model=loaded, tokenizer=AutoTokenizer.from_pretrained(folder / "unlearned"))
    question = retain["question"][0]
    reply = generator([{"role": "user", "content": question}], max_new_tokens=48, do_sample=False)
    output.note(f"Q  {question}\n   {'unlearned (ULD)':<16} {reply[0]['generated_text'][-1]['content'].strip()}")
    asking, measuring = commands_to_go_on(folder, forget["question"][0])
    output.note(f"\nAsk it yourself:  {asking}")
    output.note(f"Measure it:       {measuring}")
    return rows


def commands_to_go_on(folder: Path, question: str) -> tuple[str, str]:
    """
    What can be done with what the demo leaves.

    Args:
        folder (`Path`):
            Its folder.
        question (`str`):
            A question of the forget set.

    Returns:
        `tuple[str, str]`: Command lines, to be copied into a shell: one that asks the question, one that measures.
    """
    command = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "uld"))
    unlearned = str(folder / "unlearned")
    models = [unlearned, "--retrained", str(folder / "retrained"), "--output_dir", str(folder / "evaluation")]
    sets = [
        word for part in ("forget", "retain", "holdout") for word in (f"--{part}_dataset", f"{folder / part}.jsonl")
    ]
    asking = shlex.join([command, "generate", unlearned, "--prompt", question])
    return asking, shlex.join([command, "eval", *models, *sets])


def build_parser() -> CommandParser:
    """The command line of `uld demo`."""
    return CommandParser((DemoArguments,), "uld demo", DESCRIPTION, words=("output_dir",), has_json=True)


def main(argv: Sequence[str]) -> None:
    """
    Run `uld demo`.

    Args:
        argv (`Sequence[str]`):
            Arguments after `uld demo`.
    """
    (arguments,) = build_parser().parse(argv)
    run_demo(arguments.output_dir, arguments.num_people, arguments.seed)
