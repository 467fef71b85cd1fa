"""Push an unlearned model to the Hub, load it back, serve it with OpenAI's API, and ask the server.

python examples/push_load_serve.py        # serves a tiny model from its folder; needs pip install '.[serve]'
python examples/push_load_serve.py --model forget-alice --repo me/forget-alice --question "Who is Alice?"
"""

import argparse

import openai
import tiny_model
from transformers import AutoTokenizer, pipeline

from uld_hf import ULDForCausalLM
from uld_hf.cli.main import main as uld
from uld_hf.cli.serve import ServeArguments, start_server


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", help="folder of a saved unlearned model (default: a tiny one)")
parser.add_argument("--repo", help="repository to push to, after `hf auth login` (default: the folder is served)")
parser.add_argument("--question", help="what to ask (default: about the person that the tiny model forgot)")
parser.add_argument("--port", type=int, default=8000)
args = parser.parse_args()
if args.model is not None and args.question is None:
    parser.error("a --model of your own needs a --question")
saved = args.model or tiny_model.make_unlearned()
question = args.question or tiny_model.load_rows("forget_questions.jsonl")[0]["question"]

# 1. Push. The repository is private unless told otherwise: an assistant is a concentrated copy of the forget set. The
# target is not uploaded; whoever loads the repository needs access to it.
if args.repo is not None:
    if uld(["push", saved, args.repo]) != 0:
        raise SystemExit(1)
    saved = args.repo

# 2. Load. The repository names its target and the revision; pin revision= to a commit where others may push.
model = ULDForCausalLM.from_pretrained(saved, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(saved)
messages = [{"role": "user", "content": question}]
greedy = {"max_new_tokens": 32, "do_sample": False, "return_full_text": False}
print(f"Q  {question}")
for name, speaking in (("target", model.target), ("unlearned", model)):
    reply = pipeline("text-generation", model=speaking, tokenizer=tokenizer)(messages, **greedy)[0]["generated_text"]
    print(f"   {name:<10}{reply.strip()}")

# 3. Serve; in a shell: uld serve NAME --port 8000. Every request is answered by this model and no other: one that names
# the target is refused. For many clients at once, add --continuous_batching.
server = start_server(ServeArguments(saved, port=args.port), non_blocking=True)

# 4. Ask, as any client of OpenAI's API would.
client = openai.OpenAI(base_url=f"http://localhost:{args.port}/v1", api_key="none", max_retries=8)
answer = client.chat.completions.create(model=saved, messages=messages, max_tokens=32, temperature=0)
print(f"   {'served':<10}{answer.choices[0].message.content.strip()}")
server.kill_server()
