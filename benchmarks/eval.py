"""Scoring TOFU's seven answers to each question: row by row, in batches, in batches with prompts run once, and a sweep
beside one evaluation. How many rows a second, how many tokens go through layers and head for it, and how much memory.
And whole evaluations, of a target and of an unlearned model: the seven scored, one answer given to every question.

    python benchmarks/eval.py --tofu ../shared/data/tofu      # two quiet CPU cores: some ten minutes the first time
    python benchmarks/eval.py --tofu ../shared/data/tofu --untrained --turns 1 --layers 4 --hidden_size 2048 \\
        --heads 32 --key_value_heads 8 --vocab_size 32064 --dtype bfloat16 \\
        --output benchmarks/results/eval_cpu_wide.json        # a quarter of Llama 3.2 1B's layers and vocabulary
    python benchmarks/eval.py --tofu ../shared/data/tofu --untrained --rows 400 --questions 64 --hidden_size 2048 \\
        --heads 32 --key_value_heads 8 --vocab_size 128256 --dtype bfloat16 --device cuda \\
        --max_batch_tokens 4096 16384 --output benchmarks/results/eval_gpu.json    # Llama 3.2 1B's shape

The smaller shape has the 1B's ratio of head to layers. A whole evaluation means something only of models that know
answers and end them: the first run trains a target from scratch on its questions, half of forget10 and half of the
retain set, and an assistant by `ULDTrainer`; later runs take both from `--models`. Reported beside the figures is what
the two say, how much of it was not decoded, and of how many questions it is the same row by row. `--untrained` leaves
the weights random, for shapes that cannot be trained here: such a model knows nothing and ends nothing, so every answer
is decoded to the limit, row by row and in batches alike; the target by itself is left out.

Modes take turns; figures are medians over the turns. A whole evaluation is `evaluate()` itself, with ROUGE, attacks and
all; row by row it is seven passes and one `generate()` for each question, and nothing else. CPU time of the process is
given too: it does not count what else the machine does. Memory is what a pass takes besides the model: on a GPU what
torch allocated, on a CPU how much the process grew.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Cache,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from uld_hf import (
    ULDConfig,
    ULDForCausalLM,
    ULDTrainer,
    __version__,
    build_assistant,
    load_tofu,
    question_answer_to_prompt_completion,
)
from uld_hf.cli.demo import train_tokenizer, training_options
from uld_hf.data.formatting import PROMPT_TEMPLATE
from uld_hf.evaluation import answer_logits, evaluation
from uld_hf.evaluation.encoding import encode, encode_prompts
from uld_hf.evaluation.evaluation import Question, SetResults, evaluate
from uld_hf.evaluation.known_starts import known_starts
from uld_hf.evaluation.scoring import Subtraction, score_completions, score_subtractions


NUM_SETTINGS = 20
MAX_NEW_TOKENS = 64  # as `uld eval`
COLUMNS = ["question", "answer"]


@torch.no_grad()
def row_by_row(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], completions: list[str]
) -> list[float]:
    """The loss of every row, each in a forward pass of its own."""
    losses = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids, start = encode(tokenizer, prompt, completion, tokenizer.eos_token_id)
        tokens = torch.tensor([ids], device=model.device)
        log_probs = model(tokens, use_cache=False).logits[0, start - 1 : -1].float().log_softmax(-1)
        losses.append(-log_probs.gather(-1, tokens[0, start:, None]).mean().item())
    return losses


def without_sharing(score: Callable[[], object]) -> None:
    """Score as if the model could not go on from the cache of a prompt."""
    can_share = answer_logits.can_share_prompts
    answer_logits.can_share_prompts = lambda model: False
    try:
        score()
    finally:
        answer_logits.can_share_prompts = can_share


class Work:
    """Counts the tokens that go through layers and head of an unlearned model, or of its target by itself."""

    def __init__(self, model: ULDForCausalLM):
        self._run = model._run
        model._run = self._count
        self._is_unlearned = False
        target = model.target
        target.get_input_embeddings().register_forward_pre_hook(self._count_embedded)
        target.get_output_embeddings().register_forward_pre_hook(self._count_predicted)
        # Multiplications for each token.
        self._layer = sum(weight.numel() for weight in target.model.layers[0].parameters())
        self._num_layers = len(target.model.layers)
        self._num_assistant_layers = model.config.most_assistant_layers
        self._head = target.get_output_embeddings().weight.numel()
        self.reset()

    def reset(self) -> None:
        """Begin to count anew."""
        self.layers = self.head = self.multiplications = 0

    def _add(self, layers: int, head: int) -> None:
        num_layers = self._num_layers + self._is_unlearned * self._num_assistant_layers
        self.layers += layers
        self.head += head
        self.multiplications += layers * self._layer * num_layers + head * self._head * (1 + self._is_unlearned)

    def _count(
        self, cache: Cache | None, inputs: dict[str, Any], *args: Any
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        rows, length = inputs["input_ids"].shape
        kept = inputs["logits_to_keep"]
        self._is_unlearned = True
        self._add(rows * length, rows * (len(kept) if isinstance(kept, torch.Tensor) else kept or length))
        outputs = self._run(cache, inputs, *args)
        self._is_unlearned = False
        return outputs

    def _count_embedded(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if not self._is_unlearned:
            self._add(inputs[0].numel(), 0)

    def _count_predicted(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if not self._is_unlearned:
            self._add(0, inputs[0].shape[:-1].numel())


class Memory:
    """Most memory that was in use within a context, above what was in use before, in bytes."""

    def __init__(self, device: str):
        self._is_cuda = device.startswith("cuda")
        self._stop = threading.Event()
        self.bytes = 0

    def _resident(self) -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, self._resident() - self._before)

    def __enter__(self) -> "Memory":
        gc.collect()
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # or memory that is free already would not count
            self._before = self._resident()
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self._before
        else:
            self._stop.set()
            self._thread.join()


def rows_to_score(questions: Dataset) -> tuple[list[str], list[str]]:
    """Prompts and completions of the seven answers to each question."""
    pairs = [
        (PROMPT_TEMPLATE.format(question=row["question"]), f" {answer}")
        for row in questions
        for answer in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"])
    ]
    return [prompt for prompt, _ in pairs], [completion for _, completion in pairs]


def as_questions(rows: Dataset) -> list[Question]:
    """Rows as `evaluate()` takes them."""
    return [
        Question(
            prompt=PROMPT_TEMPLATE.format(question=row["question"]),
            answer=f" {row['answer']}",
            paraphrased_answer=f" {row['paraphrased_answer']}",
            perturbed_answers=tuple(f" {answer}" for answer in row["perturbed_answer"]),
        )
        for row in rows
    ]


def answer_row_by_row(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> list[list[int]]:
    """Tokens of the greedy answer to every prompt, each by a `generate()` of its own."""
    encoded, pad_token_id = encode_prompts(model, tokenizer, prompts, MAX_NEW_TOKENS)
    answers = []
    for ids in encoded:
        input_ids = torch.tensor([ids], device=model.device)
        generated = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            pad_token_id=pad_token_id,
        )
        answers.append(generated[0, len(ids) :].tolist())
    return answers


def evaluate_row_by_row(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> list[list[int]]:
    """Seven answers of every question scored and one given, each by itself. Returns the tokens of those given."""
    row_by_row(model, tokenizer, *rows_to_score(rows))
    return answer_row_by_row(model, tokenizer, [question.prompt for question in as_questions(rows)])


def evaluate_generating_all(run: Callable[[], SetResults]) -> SetResults:
    """Evaluate as if scoring told nothing of greedy answers."""
    generate = evaluation.generate_completions
    evaluation.generate_completions = lambda model, tokenizer, prompts, most, size, scores, ends: generate(
        model, tokenizer, prompts, most, size, ends=ends
    )
    try:
        return run()
    finally:
        evaluation.generate_completions = generate


def describe_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, answers: list[list[int]]
) -> dict[str, float]:
    """How many answers of a set a model gives word for word, and how much of them scoring has told."""
    questions = as_questions(rows)
    prompts, right = [each.prompt for each in questions], [each.answer for each in questions]
    scores = score_completions(model, tokenizer, prompts, right)
    starts = known_starts(model, tokenizer(prompts)["input_ids"], scores, MAX_NEW_TOKENS)
    texts = [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
    return {
        "questions": len(questions),
        "given_word_for_word": sum(text == each.strip() for text, each in zip(texts, right, strict=True)),
        "tokens": sum(map(len, answers)),
        "tokens_not_decoded": sum(len(start.ids) for start in starts),
        "answers_not_decoded": sum(start.is_whole for start in starts),
    }


def make_config(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The target's configuration."""
    return LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.key_value_heads or args.heads,
        tie_word_embeddings=True,
        bos_token_id=None,
        # By chance a model that knows nothing would end an answer.
        eos_token_id=None if args.untrained else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=args.hidden_size**-0.5,
    )


def make_untrained(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> ULDForCausalLM:
    """An unlearned model of random weights."""
    set_seed(0)
    with torch.device(args.device):
        target = AutoModelForCausalLM.from_config(make_config(args, tokenizer), dtype=args.dtype)
    model = ULDForCausalLM(target=target, assistant=build_assistant(target, args.layers // 4), alpha=1.5)
    return model.eval()


def make_models(args: argparse.Namespace, forget: Dataset, retain: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Train a target that knows its questions, and an assistant that knows those to forget."""
    forget, retain = (question_answer_to_prompt_completion(rows.select_columns(COLUMNS)) for rows in (forget, retain))
    options = training_options(seed=0) | {"use_cpu": args.device == "cpu", "lr_scheduler_type": "cosine"}
    set_seed(0)
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_config(make_config(args, tokenizer)),
        SFTConfig(
            output_dir=str(args.models / "target"),
            num_train_epochs=10,
            learning_rate=5e-4,
            warmup_steps=0.1,
            per_device_train_batch_size=8,
            **options,
        ),
        train_dataset=concatenate_datasets([forget, retain]),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    trainer = ULDTrainer(
        AutoModelForCausalLM.from_pretrained(args.models / "target"),
        ULDConfig(
            output_dir=str(args.models / "unlearned"),
            num_assistant_layers=args.layers // 4,
            num_train_epochs=16,
            learning_rate=3e-3,
            per_device_train_batch_size=16,
            alpha=1.5,
            relative_top=0.0,
            clamp=True,
            **options,
        ),
        forget_dataset=forget,
        retain_dataset=retain,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()


def load_models(
    args: argparse.Namespace, forget: Dataset, retain: Dataset, tokenizer: PreTrainedTokenizerBase
) -> tuple[ULDForCausalLM, float]:
    """The unlearned model of a folder, made if it is not there; and the seconds that took."""
    if args.untrained:
        return make_untrained(args, tokenizer), 0.0
    names = ("questions", "layers", "hidden_size", "heads", "key_value_heads", "vocab_size")
    settings = {name: vars(args)[name] for name in names}
    made, seconds = args.models / "made.json", 0.0
    if not made.exists():
        start = time.perf_counter()
        make_models(args, forget, retain, tokenizer)
        seconds = time.perf_counter() - start
        made.write_text(json.dumps(settings) + "\n")
    elif json.loads(made.read_text()) != settings:
        raise SystemExit(f"{args.models} has models of other settings ({made}): delete it, or give another --models.")
    target = AutoModelForCausalLM.from_pretrained(args.models / "target", dtype=args.dtype).to(args.device)
    # The same target, rounded, is another one to its fingerprint.
    is_rounded = args.dtype != "float32"
    model = ULDForCausalLM.from_pretrained(args.models / "unlearned", target=target, allow_target_mismatch=is_rounded)
    return model.eval(), seconds


def main() -> None:
    """Measure, print, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tofu", help="folder of TOFU's JSONL files; from the Hub if left out")
    parser.add_argument("--rows", type=int, default=4, help="questions, each with seven answers")
    parser.add_argument("--questions", type=int, default=32, help="questions of whole evaluations")
    parser.add_argument("--models", type=Path, default=Path("build/eval_models"), help="folder of the trained models")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--key_value_heads", type=int, help="heads of keys and values (default: as many)")
    parser.add_argument("--untrained", action="store_true", help="random weights, and no training")
    parser.add_argument("--vocab_size", type=int, default=32000, help="of the head; texts have 4000 of them")
    parser.add_argument("--max_batch_tokens", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/eval_cpu.json"))
    args = parser.parse_args()

    forget, retain = load_tofu("forget10_perturbed", args.tofu), load_tofu("retain_perturbed", args.tofu)
    rows = forget.select(range(args.rows))
    texts = [text for row in forget for text in (row["question"], row["answer"])]
    tokenizer = train_tokenizer(texts, vocab_size=4000)
    # A trainer takes no tokenizer that leaves most of a head unused.
    if not args.untrained:
        tokenizer.add_tokens([f"<unused{number}>" for number in range(args.vocab_size - len(tokenizer))])
    prompts, completions = rows_to_score(rows)
    sets = {
        "forget": forget.select(range(args.questions // 2)),
        "retain": retain.select(range(args.questions - args.questions // 2)),
    }
    asked = concatenate_datasets([*sets.values()])
    questions = as_questions(asked)
    model, seconds_to_train = load_models(args, sets["forget"], sets["retain"], tokenizer)
    target = model.target
    settings = [Subtraction(0.1 * (1 + index), clamp=False) for index in range(NUM_SETTINGS)]

    def batches(size: int) -> Callable[[], object]:
        return lambda: score_completions(model, tokenizer, prompts, completions, size)

    largest = args.max_batch_tokens[-1]
    sweep = f"sweep of {NUM_SETTINGS} settings"
    modes: dict[str, Callable[[], object]] = {
        "row by row": lambda: row_by_row(model, tokenizer, prompts, completions),
        "prompts for every answer": lambda: without_sharing(batches(largest)),
        **{f"batches of {size} tokens": batches(size) for size in args.max_batch_tokens},
        sweep: lambda: score_subtractions(model, tokenizer, prompts, completions, settings, largest),
    }
    baselines: dict[str, str] = {}
    evaluated = {"unlearned": model} if args.untrained else {"target": target, "unlearned": model}
    for name, each in evaluated.items():

        def whole(each: PreTrainedModel = each) -> SetResults:
            return evaluate(each, tokenizer, questions, MAX_NEW_TOKENS, max_batch_tokens=largest)

        alone = f"evaluation of {name}, row by row"
        modes[alone] = lambda each=each: evaluate_row_by_row(each, tokenizer, asked)
        if not args.untrained:
            modes[f"evaluation of {name}, all generated"] = lambda whole=whole: evaluate_generating_all(whole)
        modes[f"evaluation of {name}"] = whole
        baselines |= {mode: alone for mode in modes if mode.startswith(f"evaluation of {name}")}
    score_completions(model, tokenizer, prompts[:2], completions[:2])  # warms up
    work = Work(model)
    found: dict[str, Any] = {}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in modes}
    for _ in range(args.turns):
        for name, run in modes.items():
            work.reset()
            with Memory(args.device) as memory:
                start, cpu_start = time.perf_counter(), time.process_time()
                found[name] = run()
                seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            measured[name].append(
                {
                    "seconds": seconds,
                    "cpu_seconds": cpu_seconds,
                    "tokens_through_the_layers": work.layers,
                    "tokens_through_the_head": work.head,
                    "multiplications": work.multiplications,
                    "peak_MiB_besides_the_model": memory.bytes / 2**20,
                }
            )
            print(f"{name}: {seconds:.1f} s, {cpu_seconds:.1f} s of CPU time", flush=True)
    medians = {
        name: {what: statistics.median(turn[what] for turn in turns) for what in turns[0]}
        for name, turns in measured.items()
    }
    results = {}
    for name, median in medians.items():
        alone = medians[baselines.get(name, "row by row")]
        num_rows = len(prompts) if name not in baselines else 8 * args.questions
        results[name] = {
            **{what: round(value, 2) for what, value in median.items()},
            "spread_seconds": [round(pick(turn["seconds"] for turn in measured[name]), 2) for pick in (min, max)],
            "rows_per_second": round(num_rows / median["seconds"], 2),
            "times_row_by_row": round(alone["seconds"] / median["seconds"], 2),
            "times_row_by_row_in_cpu_time": round(alone["cpu_seconds"] / median["cpu_seconds"], 2),
            "times_row_by_row_in_multiplications": round(alone["multiplications"] / median["multiplications"], 2),
        }
    for name, row in results.items():
        print(
            f"{name:<40}{row['rows_per_second']:>8} rows/s{row['times_row_by_row']:>7} times row by row "
            f"({row['times_row_by_row_in_cpu_time']} in CPU time, {row['times_row_by_row_in_multiplications']} in "
            f"multiplications){row['peak_MiB_besides_the_model']:>9} MiB"
        )
    one = medians[f"batches of {largest} tokens"]
    ratios = {what: round(medians[sweep][what] / one[what], 2) for what in ("seconds", "cpu_seconds")}
    print(f"a {sweep} takes {ratios['seconds']} times one evaluation of as many rows")
    answers = {}
    for name, each in evaluated.items():
        alone, whole = found[f"evaluation of {name}, row by row"], found[f"evaluation of {name}"]
        texts = [text.strip() for text in tokenizer.batch_decode(alone, skip_special_tokens=True)]
        parts = {"forget": slice(len(sets["forget"])), "retain": slice(len(sets["forget"]), None)}
        answers[name] = {
            "as_row_by_row": sum(first == second for first, second in zip(texts, whole.completions, strict=True)),
            **{part: describe_answers(each, tokenizer, sets[part], alone[place]) for part, place in parts.items()},
        }
        print(f"answers of {name}: {json.dumps(answers[name])}")
    report = {
        "command": f"python {' '.join(sys.argv)}",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"uld_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "settings": {name: str(value) for name, value in vars(args).items()},
        "rows": len(prompts),
        "questions_of_whole_evaluations": args.questions,
        "seconds_to_train": round(seconds_to_train, 1),
        "answers": answers,
        "results": results,
        "sweep_times_one_evaluation": ratios,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
