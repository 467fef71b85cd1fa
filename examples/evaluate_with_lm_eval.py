"""What unlearning cost, by lm-evaluation-harness: target and unlearned model on the same tasks.

python examples/evaluate_with_lm_eval.py        # a task made on the spot; needs pip install '.[eval]'
python examples/evaluate_with_lm_eval.py --model forget-alice --tasks mmlu,hellaswag,arc_easy
"""

import argparse

import lm_eval
import tiny_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from uld_hf import ULDForCausalLM


# Without a network: which of six answers is the right one? About the person to forget, and about people to keep.
TASK = """
task: tiny_{part}
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
test_split: train
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", help="folder or hub id of a saved unlearned model (default: a tiny one)")
parser.add_argument("--tasks", help="the harness's tasks, with commas between (default: two made on the spot)")
args = parser.parse_args()
saved = args.model or tiny_model.make_unlearned()
if args.tasks is None:
    facts = len(tiny_model.FACTS)  # asked for in turn: wrong answers are the same fact of five others
    kept = tiny_model.load_rows("retain_questions.jsonl")
    for part in ("forget", "retain"):
        rows = []
        for i, row in enumerate(tiny_model.load_rows(f"{part}_questions.jsonl")):
            wrong = [each for each in kept["answer"][i % facts :: facts] if each != row["answer"]]
            rows.append({"question": row["question"], "choices": [row["answer"], *wrong[:5]]})
        tiny_model.write_rows(f"tiny_{part}.jsonl", rows)
        task = TASK.format(part=part, file=(tiny_model.FOLDER / f"tiny_{part}.jsonl").absolute())
        (tiny_model.FOLDER / f"tiny_{part}.yaml").write_text(task)
manager = TaskManager(include_path=None if args.tasks else str(tiny_model.FOLDER))  # where ours are

model = ULDForCausalLM.from_pretrained(saved, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(saved)
for name, measured in (("target", model.target), ("unlearned", model)):
    results = lm_eval.simple_evaluate(
        model=HFLM(pretrained=measured, tokenizer=tokenizer, batch_size=8),  # takes the model object as it is
        tasks=(args.tasks or "tiny_forget,tiny_retain").split(","),
        task_manager=manager,
        apply_chat_template=args.tasks is not None and tokenizer.chat_template is not None,  # the tiny task has it
    )
    for task, figures in results["results"].items():
        print(f"{name:<10}{task:<14}accuracy {figures['acc,none']:.3f} +- {figures['acc_stderr,none']:.3f}")
