"""What an installed wheel must do, run by the Python it was installed into, from outside of the checkout.

python -I tools/smoke_test.py      # `make package-check` does it
"""

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import uld_hf


def uld(*arguments: object) -> str:
    """Run the installed command; what it prints."""
    command = [Path(sysconfig.get_path("scripts")) / "uld", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def make_target(folder: Path) -> None:
    """A tiny Llama with random weights, and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    words = [
        "<pad>",
        "</s>",
        *["Question", ":", "Answer", "Who", "is", "Alice", "Bob", "a", "singer", "writer", "?", "."],
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def main() -> None:
    """Install checks, then the shortest way through: train, answer, load with transformers' own classes."""
    package = Path(uld_hf.__file__).parent
    assert package.parent == Path(sysconfig.get_path("purelib")), f"not the installed package: {package}"
    assert (package / "py.typed").is_file()
    assert importlib.metadata.version("uld_hf") == uld_hf.__version__
    assert uld("--version").split() == ["uld_hf", uld_hf.__version__]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_target(folder / "target")
        for name, person in (("forget", "Alice"), ("retain", "Bob")):
            row = {"question": f"Who is {person} ?", "answer": f"{person} is a singer ."}
            (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        data = ("--forget_dataset", folder / "forget.jsonl", "--retain_dataset", folder / "retain.jsonl")
        options = ("--num_assistant_layers", 2, "--max_steps", 2, "--report_to", "none", "--use_cpu")
        uld("train", folder / "target", *data, "--output_dir", folder / "unlearned", *options)
        answers = json.loads(uld("generate", folder / "unlearned", "--question", "Who is Alice ?", "--json"))
        assert set(answers) == {"prompt", "target", "unlearned"}
        uld("eval", folder / "unlearned", *data, "--output_dir", folder / "evaluation", "--num_samples", 0)
        assert (folder / "evaluation" / "summary.json").is_file()
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder / "unlearned")
        assert type(model).__name__ == "ULDForCausalLM"
    print(f"uld_hf {uld_hf.__version__} works as installed in {sys.prefix}.")


if __name__ == "__main__":
    main()
