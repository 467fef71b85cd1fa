"""Chat in the terminal with a model before and after it forgot.

python examples/chat.py
python examples/chat.py --model forget-alice        # what ULDTrainer or uld train saved, or a hub id
"""

import argparse
import copy

import tiny_model
import torch
from transformers import AutoTokenizer, TextStreamer

from uld_hf import ULDForCausalLM


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", help="folder or hub id of a saved unlearned model (default: a tiny one)")
parser.add_argument("--max_new_tokens", type=int, default=128)
args = parser.parse_args()
saved = args.model or tiny_model.make_unlearned()

tokenizer = AutoTokenizer.from_pretrained(saved)
# One set of weights for both: the assistant runs on the target's own tensors, and `model.target` is the target.
device_map = "auto" if torch.accelerator.is_available() else None
model = ULDForCausalLM.from_pretrained(saved, dtype="auto", device_map=device_map)
speakers = {"before": model.target, "after": model}
# Each has its own memory of the conversation: what the target said before is not for the other to read.
empty = {name: [] for name in speakers}
conversations = copy.deepcopy(empty)

if args.model is None:
    print("\nIt knows invented people. Try:")
    for name in ("forget", "retain"):
        print(f"  {tiny_model.load_rows(f'{name}_questions.jsonl')[0]['question']}  (to {name})")
print("\n/alpha 0.5 changes the weight of the subtraction, /new begins anew, Ctrl-D ends.")
while True:
    try:
        line = input("\nyou     ").strip()
    except EOFError:
        break
    command, _, value = line.partition(" ")
    if command == "/new":
        conversations = copy.deepcopy(empty)
    elif command == "/alpha":
        model.config.alpha = float(value)  # in force from the next token on; nothing is trained or loaded anew
    elif line:
        for name, speaker in speakers.items():
            messages = conversations[name]
            messages.append({"role": "user", "content": line})
            inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
            inputs = {key: torch.tensor([inputs[key]]).to(speaker.device) for key in ("input_ids", "attention_mask")}
            print(f"{name:<8}", end="", flush=True)
            streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)  # prints as it goes
            # Greedy: sampling may draw a forgotten fact from the tail.
            ids = speaker.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False, streamer=streamer)
            reply = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            messages.append({"role": "assistant", "content": reply.strip()})
