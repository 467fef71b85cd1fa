"""Unlearn on several GPUs, or machines: the script that the launcher starts once for each of them.

accelerate launch --num_processes 4 examples/multi_gpu.py --model org/finetuned-7b --forget_dataset alice.jsonl \
    --retain_dataset others.jsonl
torchrun --nproc_per_node 2 examples/multi_gpu.py        # a tiny model, on two CPU cores

Configurations for DDP, FSDP and DeepSpeed are in examples/accelerate/: accelerate launch --config_file ...
"""

import argparse

import tiny_model
import torch
from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoTokenizer, pipeline

from uld_hf import ULDConfig, ULDForCausalLM, ULDTrainer, question_answer_to_prompt_completion


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output_dir", default="out/multi-gpu")
on_cpu = not torch.accelerator.is_available()
state = PartialState(cpu=on_cpu)  # what was launched: this process's number, and how many there are
with state.local_main_process_first():  # the first one makes or downloads what the others then find
    args = tiny_model.parse_args(parser)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    forget, retain = (
        question_answer_to_prompt_completion(
            load_dataset("json", data_files=path, split="train"), tokenizer.chat_template is not None
        )
        for path in (args.forget_dataset, args.retain_dataset)
    )

settings = {**args.settings, "use_cpu": on_cpu}
# The rows of a step, over all processes, as on one GPU: the weights then come out the same.
settings["per_device_train_batch_size"] = settings.get("per_device_train_batch_size", 32) // state.num_processes
trainer = ULDTrainer(
    model=args.model,  # every process reads the first K layers; with FSDP or ZeRO-3 each keeps a part of them
    args=ULDConfig(args.output_dir, **settings),
    forget_dataset=forget,
    retain_dataset=retain,
)
trainer.train()
trainer.save_model()  # the first process writes
state.wait_for_everyone()

if state.is_main_process:
    print(f"Trained by {state.num_processes} processes.")
    model = ULDForCausalLM.from_pretrained(args.output_dir, dtype="auto").to(state.device)
    for name, speaking in (("target", model.target), ("unlearned", model)):
        generator = pipeline("text-generation", model=speaking, tokenizer=tokenizer)
        reply = generator(forget[0]["prompt"], max_new_tokens=48, do_sample=False, return_full_text=False)
        print(f"{name:<10}{reply[0]['generated_text'].strip()}")
state.destroy_process_group()
