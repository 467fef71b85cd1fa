"""Two people ask to be forgotten, one after the other; the first of them takes the request back.

python examples/deletion_requests.py
python examples/deletion_requests.py --model org/finetuned-7b --forget_dataset alice.jsonl --second_dataset bob.jsonl \
    --retain_dataset others.jsonl
"""

import argparse

import tiny_model
from datasets import concatenate_datasets, load_dataset
from transformers import AutoTokenizer, pipeline

from uld_hf import ULDConfig, ULDForCausalLM, ULDTrainer, question_answer_to_prompt_completion


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args = tiny_model.parse_args(parser, second=True)
tokenizer = AutoTokenizer.from_pretrained(args.model)
files = {"first": args.forget_dataset, "second": args.second_dataset, "keep": args.retain_dataset}
pairs = {name: load_dataset("json", data_files=path, split="train") for name, path in files.items()}
rows = {
    name: question_answer_to_prompt_completion(of_one, conversational=tokenizer.chat_template is not None)
    for name, of_one in pairs.items()
}

# Each request gets an assistant of its own, trained on the unchanged target: the first need not be trained again. Who
# asks later is kept by the earlier assistant, and the other way round, so that one request can be revoked alone.
for name, other in (("first", "second"), ("second", "first")):
    trainer = ULDTrainer(
        model=args.model,
        args=ULDConfig(f"out/forget-{name}", **args.settings),
        forget_dataset=rows[name],
        retain_dataset=concatenate_datasets([rows["keep"], rows[other]]),
    )
    trainer.train()
    trainer.save_model()


def show(title: str) -> None:
    """The same question about each of the two."""
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    print(f"\n{title} (subtracted: {list(model.config.assistants)})")
    for name in ("first", "second"):
        reply = generator(rows[name][0]["prompt"], max_new_tokens=48, do_sample=False, return_full_text=False)
        print(f"  {name:<8}{reply[0]['generated_text'].strip():<60} (true: {pairs[name][0]['answer']})")


model = ULDForCausalLM.from_pretrained("out/forget-first", dtype="auto")
show("After the first request")
# Both are subtracted now; model.save_pretrained saves them together. Where answers break, because both know the words
# that all answers share, lower the weights with model.set_alpha, or train for longer.
model.add_assistant("out/forget-second")
show("After the second")
model.remove_assistant("assistant")  # the first one's name; the second has its folder's. Exactly as if never added
show("The first was revoked")
