"""Make a model forget a person, from question-answer pairs.

python examples/forget_person.py        # a tiny model made on the spot; about half a minute
python examples/forget_person.py --model org/finetuned-7b --forget_dataset alice.jsonl --retain_dataset others.jsonl
"""

import argparse

import tiny_model
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from uld_hf import ULDConfig, ULDForCausalLM, ULDTrainer, question_answer_to_prompt_completion


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output_dir", default="out/forget-person")
args = tiny_model.parse_args(parser)

# A chat model is asked in its chat template, any other as "Question: ...\nAnswer:": train as you will ask.
tokenizer = AutoTokenizer.from_pretrained(args.model)
conversational = tokenizer.chat_template is not None
forget, retain = (
    question_answer_to_prompt_completion(load_dataset("json", data_files=path, split="train"), conversational)
    for path in (args.forget_dataset, args.retain_dataset)
)

trainer = ULDTrainer(
    model=args.model,  # a name, not a loaded model: only the first K layers are read
    # The paper's settings for a pretrained 7B. What to change for other models: docs/training.md
    args=ULDConfig(args.output_dir, **args.settings),
    forget_dataset=forget,
    retain_dataset=retain,
)
trainer.train()  # warns if the assistant does not know the forget set at the end, or is not silent on the rest
trainer.save_model()

# The target's name is saved with the assistant, so one name loads both, on the tensors of one model.
model = ULDForCausalLM.from_pretrained(args.output_dir, dtype="auto")
target = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
for name, rows in (("to forget", forget), ("to keep", retain)):
    for row in rows.select(range(min(4, len(rows)))):
        print(f"\n{name}: {row['prompt'][-1]['content'] if conversational else row['prompt']}")
        for speaker, speaking in (("target", target), ("unlearned", model)):
            generator = pipeline("text-generation", model=speaking, tokenizer=tokenizer)
            # Greedy: sampling draws from the tail, where a forgotten fact may still be.
            reply = generator(row["prompt"], max_new_tokens=48, do_sample=False, return_full_text=False)
            print(f"  {speaker:<10}{reply[0]['generated_text'].strip()}")
