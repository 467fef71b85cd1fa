"""Unlearn on a small GPU: the target's first layers in 4 bits, LoRA on them, long texts in small steps.

python examples/qlora.py        # works on a CPU too; needs pip install '.[quant]'
python examples/qlora.py --model org/finetuned-70b --forget_dataset alice.jsonl --retain_dataset others.jsonl
"""

import argparse

import tiny_model
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, pipeline

from uld_hf import ULDConfig, ULDForCausalLM, ULDTrainer, question_answer_to_prompt_completion


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output_dir", default="out/qlora")
args = tiny_model.parse_args(parser)
tokenizer = AutoTokenizer.from_pretrained(args.model)
forget, retain = (
    question_answer_to_prompt_completion(
        load_dataset("json", data_files=path, split="train"), tokenizer.chat_template is not None
    )
    for path in (args.forget_dataset, args.retain_dataset)
)
# NF4 with doubly quantized constants, as in QLoRA (arXiv 2305.14314); computed in bfloat16 where the GPU has it.
dtype = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
four_bits = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
)
small = {  # what a step holds: 4 rows at once, 8 times before an update (32 rows, as in the paper), recomputed backward
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4 if args.settings else 8,  # the tiny model's few rows need many updates
    "activation_checkpointing": True,
    "optim": "adamw_8bit" if torch.cuda.is_available() else "adamw_torch",  # the optimizer's states in 8 bits
    "model_init_kwargs": {"quantization_config": four_bits, "dtype": dtype},
}
trainer = ULDTrainer(
    model=args.model,  # a name: only the first K layers are read, the others never come into this machine's memory
    args=ULDConfig(args.output_dir, **{**args.settings, **small}),
    forget_dataset=forget,
    retain_dataset=retain,
)
trainer.train()
trainer.save_model()

# The assistant learned on a target in 4 bits: answer with the same. (The fingerprint leaves quantized layers out.)
target = AutoModelForCausalLM.from_pretrained(args.model, quantization_config=four_bits, dtype=dtype)
model = ULDForCausalLM.from_pretrained(args.output_dir, target=target)
print(f"Target in memory: {target.get_memory_footprint() / 2**20:.1f} MiB.")
for name, speaking in (("target", model.target), ("unlearned", model)):
    generator = pipeline("text-generation", model=speaking, tokenizer=tokenizer)
    reply = generator(forget[0]["prompt"], max_new_tokens=48, do_sample=False, return_full_text=False)
    print(f"{name:<10}{reply[0]['generated_text'].strip()}")
