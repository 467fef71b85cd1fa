"""Who can still get the forgotten text: figures for the threats of docs/threat-model.md, on the models of `uld demo`.

    uld demo --output_dir uld-demo
    python benchmarks/threats.py --demo uld-demo --output benchmarks/results/threats.json

A fact counts as given away where the answer contains it. The retrained model, which never saw the forgotten people,
says how often that happens by chance; the target says what there is to get.
"""

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from uld_hf import ULDForCausalLM, __version__, question_answer_to_prompt_completion
from uld_hf.data.fictitious import fictitious_dataset, invent_people, split_people
from uld_hf.evaluation.memorization import leak_at_k, sample_leaks
from uld_hf.evaluation.relearning import relearn
from uld_hf.evaluation.scoring import score_completions


DRAWS = (1, 10, 100)
RELEARNING_STEPS = (5, 40)  # between two tests, and in all


def prompts_of(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]) -> list[str]:
    """Questions in the chat template of training."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in questions
    ]


def answer_so_far(answer: str, value: str) -> str:
    """The answer up to the fact."""
    return answer[: answer.index(value)].rstrip()


def ways_to_ask(tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> dict[str, list[str]]:
    """Prompts for every fact: the questions trained on, and others."""
    as_trained = prompts_of(tokenizer, rows["question"])
    begun = [answer_so_far(*pair) for pair in zip(rows["answer"], rows["value"], strict=True)]
    return {
        "the question trained on": as_trained,
        "a paraphrase never trained on": prompts_of(tokenizer, rows["paraphrased_question"]),
        "lower case": prompts_of(tokenizer, [question.lower() for question in rows["question"]]),
        "without the chat template": list(rows["question"]),
        "the answer begun": [f"{prompt} {start}" for prompt, start in zip(as_trained, begun, strict=True)],
        "the answer begun, without the question": [
            f"{person}. {start}" for person, start in zip(rows["person"], begun, strict=True)
        ],
    }


@torch.no_grad()
def greedy_share(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], values: Sequence[str]
) -> float:
    """Share of facts in greedy answers."""
    given = []
    for prompt, value in zip(prompts, values, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=40, pad_token_id=tokenizer.pad_token_id)
        given.append(value in tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return float(np.mean(given))


def sampled_share(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    values: Sequence[str],
    seed: int,
) -> dict[str, float]:
    """Expected share of facts that come out at least once in so many draws at temperature 1."""
    leaked = sample_leaks(
        model,
        tokenizer,
        prompts,
        lambda index, text: values[index] in text,
        num_samples=max(DRAWS),
        max_new_tokens=40,
        seed=seed,
    )
    return {str(draws): float(leak_at_k(leaked, draws).mean()) for draws in DRAWS}


def pick_share(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> dict[str, float]:
    """
    Share of facts that somebody who sees likelihoods finds among six: by taking the likeliest, or the least likely.

    A fact that is suppressed too much is found by its absence.
    """
    prompts = prompts_of(tokenizer, rows["paraphrased_question"])
    choices = [
        [right, *wrong] for right, wrong in zip(rows["paraphrased_answer"], rows["perturbed_answer"], strict=True)
    ]
    most, least = [], []
    for prompt, answers in zip(prompts, choices, strict=True):
        pairs = [(prompt, f" {answer}") for answer in answers]
        scores = score_completions(model, tokenizer, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        means = [float(np.mean(score.log_probs)) for score in scores]
        most.append(int(np.argmax(means)) == 0)
        least.append(int(np.argmin(means)) == 0)
    return {"likeliest": float(np.mean(most)), "least likely": float(np.mean(least)), "by chance": 1 / 6}


def relearning(
    folder: Path, target: PreTrainedModel, retrained: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: dict
) -> list[dict[str, float]]:
    """
    The target is finetuned on half of the forgotten people, or on people who are kept; the assistant stays as it is.

    What comes out about the other half? Loading refuses this target; here it is allowed in words.
    """
    people = sorted(set(split["forget"]["person"]))
    if len(people) < 2:
        raise ValueError("The demo forgot one person, who has no other half: run `uld demo` with 20 people or more.")
    known = set(people[: len(people) // 2])
    seen = split["forget"].filter(lambda row: row["person"] in known)
    unseen = split["forget"].filter(lambda row: row["person"] not in known)
    kept = split["retain"].select(range(len(seen)))
    prompts, values = prompts_of(tokenizer, unseen["question"]), unseen["value"]

    def remembered(model: PreTrainedModel) -> float:
        return greedy_share(model, tokenizer, prompts, values)

    def remembered_by_unlearned(finetuned: PreTrainedModel) -> float:
        return remembered(ULDForCausalLM.from_pretrained(folder, target=finetuned, allow_target_mismatch=True))

    every, last = RELEARNING_STEPS
    rows: list[dict[str, float]] = [{"steps": steps} for steps in range(0, last + 1, every)]
    for name, data in (("half of the forgotten", seen), ("people who are kept", kept)):
        data = question_answer_to_prompt_completion(data.select_columns(["question", "answer"]), conversational=True)
        for model_name, model, ask in (
            ("target", target, remembered),
            ("unlearned", target, remembered_by_unlearned),
            ("retrained", retrained, remembered),
        ):
            # Until more than everything is back: to the last step.
            found = relearn(model, tokenizer, data, ask, until=2.0, test_every=every, max_steps=last)
            for row, share in zip(rows, found.remembered, strict=True):
                row[f"{model_name}, on {name}"] = share
    print(json.dumps(rows, indent=2), flush=True)
    return rows


def assistant_on_whole_target(folder: Path, target: PreTrainedModel) -> PeftModel:
    """The assistant's LoRA on all layers of a model: what an adapter at a repository's root would be loaded as."""
    return PeftModel.from_pretrained(copy.deepcopy(target), folder, subfolder="assistant").eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("uld-demo"), help="output folder of `uld demo`")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--only_relearning", action="store_true", help="measure that anew, and put it into --output")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    start = time.perf_counter()

    demo = json.loads((args.demo / "results.json").read_text())
    dataset = fictitious_dataset(invent_people(demo["num_people"], demo["seed"]), demo["seed"])
    split = split_people(dataset, forget_fraction=0.1, seed=demo["seed"])
    forget, kept = split["forget"], split["retain"].select(range(min(60, len(split["retain"]))))
    target = AutoModelForCausalLM.from_pretrained(args.demo / "target")
    retrained = AutoModelForCausalLM.from_pretrained(args.demo / "retrained")
    tokenizer = AutoTokenizer.from_pretrained(args.demo / "target")
    unlearned = ULDForCausalLM.from_pretrained(args.demo / "unlearned", target=target)
    models = {"target": target, "unlearned": unlearned, "retrained": retrained}
    if args.only_relearning:
        report = json.loads(args.output.read_text())
        report["relearning, greedy, about the other half"] = relearning(
            args.demo / "unlearned", target, retrained, tokenizer, split
        )
        report["machine"]["relearning command"] = " ".join(sys.argv)
        args.output.write_text(json.dumps(report, indent=2) + "\n")
        return
    ways, values = ways_to_ask(tokenizer, forget), forget["value"]
    trained_on, paraphrased = ways["the question trained on"], ways["a paraphrase never trained on"]

    report: dict[str, object] = {"facts": len(forget), "alpha": unlearned.config.alpha}
    report["greedy"] = {
        way: {name: greedy_share(model, tokenizer, prompts, values) for name, model in models.items()}
        for way, prompts in ways.items()
    }
    print(json.dumps(report["greedy"], indent=2), flush=True)
    report["sampled, the question trained on"] = {
        name: sampled_share(model, tokenizer, trained_on, values, args.seed) for name, model in models.items()
    }
    report["sampled, a paraphrase never trained on"] = {
        name: sampled_share(model, tokenizer, paraphrased, values, args.seed) for name, model in models.items()
    }
    report["sampled, the answer begun"] = {
        name: sampled_share(model, tokenizer, ways["the answer begun"], values, args.seed)
        for name, model in models.items()
    }
    report["picked among six"] = {name: pick_share(model, tokenizer, forget) for name, model in models.items()}
    print(json.dumps({name: report[name] for name in list(report)[3:]}, indent=2), flush=True)
    report["alpha, greedy and in 100 draws"] = {}
    for alpha in (0.5, 1.0, 1.3, 2.0, 4.0):
        unlearned.config.alpha = alpha
        report["alpha, greedy and in 100 draws"][str(alpha)] = {
            "greedy": greedy_share(unlearned, tokenizer, trained_on, values),
            **sampled_share(unlearned, tokenizer, trained_on, values, args.seed),
            "least likely of six": pick_share(unlearned, tokenizer, forget)["least likely"],
            "kept, greedy": greedy_share(unlearned, tokenizer, prompts_of(tokenizer, kept["question"]), kept["value"]),
        }
    unlearned.config.alpha = report["alpha"]
    report["holder of the assistant, greedy"] = {
        way: {
            "the assistant alone": greedy_share(unlearned.assistant, tokenizer, ways[way], values),
            "its adapter on the whole target": greedy_share(
                assistant_on_whole_target(args.demo / "unlearned", target), tokenizer, ways[way], values
            ),
            "its adapter on the retrained model": greedy_share(
                assistant_on_whole_target(args.demo / "unlearned", retrained), tokenizer, ways[way], values
            ),
        }
        for way in ("the question trained on", "a paraphrase never trained on", "the answer begun")
    }
    report["relearning, greedy, about the other half"] = relearning(
        args.demo / "unlearned", target, retrained, tokenizer, split
    )
    report["machine"] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "uld_hf": __version__,
        "command": " ".join(sys.argv),
        "seed": args.seed,
        "demo seed": demo["seed"],
        "seconds": round(time.perf_counter() - start),
    }
    print(json.dumps(report, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
