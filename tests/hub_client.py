"""What users do with a hub, in processes of their own: huggingface_hub reads HF_ENDPOINT when it is imported.

    python hub_client.py publish FOLDER     push targets and unlearned models
    python hub_client.py train FOLDER       push them from more trainings
    python hub_client.py load FOLDER        load them in every way there is
    python hub_client.py foreign FOLDER     try to, without uld_hf

Each writes FOLDER/<name>.json: for every attempt its value, or the error's type and message.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


IDS = [[1, 9, 12, 5, 33, 21, 8]]
ROWS = [{"prompt": f"w{i} w{i + 1}", "completion": f" w{i + 9} w{i + 11} secretword"} for i in range(6)]
results: dict[str, dict[str, Any]] = {}


def attempt(name: str, action: Callable[[], Any]) -> Any:
    """Note what an action returns or raises."""
    try:
        value = action()
    except Exception as error:
        results[name] = {"error": type(error).__name__, "message": str(error)}
        return None
    results[name] = {"value": value}
    return value


def logits(model: Any) -> list[float]:
    import torch

    with torch.no_grad():
        return model(torch.tensor(IDS)).logits[0, -1].tolist()


def train_on_hub(folder: Path, name: str, **more: Any) -> Any:
    """Train an assistant for me/target in a folder that holds the forget set too."""
    from datasets import Dataset
    from families import make_tokenizer

    from uld_hf import ULDConfig, ULDTrainer

    (folder / name).mkdir()
    (folder / name / "forget.json").write_text(json.dumps(ROWS))
    (folder / name / "forget.txt").write_text("secretword")
    trainer = ULDTrainer(
        "me/target",
        ULDConfig(str(folder / name), num_assistant_layers=2, report_to="none", use_cpu=True, **more),
        forget_dataset=Dataset.from_list(ROWS[:3]),
        retain_dataset=Dataset.from_list(ROWS[3:]),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    return trainer


def push_every_save(folder: Path, strategy: str) -> None:
    hub = {"push_to_hub": True, "hub_strategy": strategy, "hub_always_push": True}
    name = strategy.replace("_", "-")
    train_on_hub(folder, name, max_steps=3, save_strategy="steps", save_steps=1, **hub)._finish_current_push()


def bake_and_push(folder: Path, model: Any, repo_id: str) -> str:
    """Bake a model, let the forget set come into the folder meanwhile, and push."""
    from datasets import Dataset
    from families import make_tokenizer

    from uld_hf import ULDBakeConfig, ULDBakeTrainer

    options = {"max_steps": 1, "teacher_answers": 0, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
    trainer = ULDBakeTrainer(
        model,
        ULDBakeConfig(str(folder), hub_model_id=repo_id, **options),
        forget_dataset=Dataset.from_list(ROWS[:3]),
        retain_dataset=Dataset.from_list(ROWS[3:]),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    trainer.save_model()
    (folder / "forget.json").write_text(json.dumps(ROWS))
    return trainer.push_to_hub().commit_url


def publish(folder: Path) -> None:
    from families import make_tokenizer, tiny_model, train_like
    from huggingface_hub import HfApi
    from transformers import AutoModelForCausalLM

    from uld_hf import ULDForCausalLM, build_assistant
    from uld_hf.cli.main import main

    api = HfApi()
    tokenizer = make_tokenizer()
    for name, seed in (("target", 0), ("other", 7)):
        tiny_model("llama", seed=seed).push_to_hub(f"me/{name}", private=True)
        tokenizer.push_to_hub(f"me/{name}")
    card = "---\nlicense: other\nlicense_name: tiny\nlicense_link: https://example.org/tiny\n---\n\nA target."
    api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="me/target")
    target = AutoModelForCausalLM.from_pretrained("me/target")
    model = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), alpha=0.6)
    model.config.target_revision = api.repo_info("me/target").sha
    results["logits"] = {"value": logits(model)}
    results["target logits"] = {"value": logits(target)}

    attempt("model.push_to_hub", lambda: model.push_to_hub("me/by-model"))
    old = api.repo_info("me/by-model").sha
    results["old revision"] = {"value": old}
    model.config.alpha = 1.2
    results["new logits"] = {"value": logits(model)}
    attempt("again", lambda: model.push_to_hub("by-model", commit_message="stronger"))
    attempt("branch", lambda: model.push_to_hub("me/by-model", revision="stronger"))
    model.config.alpha = 0.6
    model.save_pretrained(folder / "saved")
    attempt("save_pretrained", lambda: model.save_pretrained(folder / "by-saving", push_to_hub=True))
    attempt("public", lambda: model.push_to_hub("me/public", private=False))
    attempt("private to public", lambda: model.push_to_hub("public"))
    attempt("uld push", lambda: main(["push", str(folder / "saved"), "me/by-command"]))
    attempt("uld push --public", lambda: main(["push", str(folder / "saved"), "me/by-command-public", "--public"]))
    attempt("over the target", lambda: model.push_to_hub("me/target"))
    api.create_repo("me/kept-private", private=True)
    attempt("public, kept private", lambda: main(["push", str(folder / "saved"), "kept-private", "--public"]))
    attempt("uld push of a target", lambda: main(["push", str(folder), "me/nothing"]))

    attempt("unlearned, to be baked", lambda: model.push_to_hub("me/baked"))
    attempt("baked", lambda: bake_and_push(folder / "baked", model, "me/baked"))

    two = ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2)), alpha=0.6)
    two.add_assistant(train_like(build_assistant(target, 2), 2), name="bob")
    attempt("two", lambda: two.push_to_hub("me/revoked"))
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="me/revoked")
    two.remove_assistant("bob")
    attempt("bob removed", lambda: two.push_to_hub("me/revoked"))

    api.create_repo("me/adapter", private=True)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="adapter_config.json", repo_id="me/adapter")
    attempt("beside an adapter", lambda: model.push_to_hub("me/adapter"))
    attempt("baked, beside an adapter", lambda: bake_and_push(folder / "baked-too", model, "me/adapter"))

    target.save_pretrained(folder / "local-target")
    tokenizer.save_pretrained(folder / "local-target")
    local = AutoModelForCausalLM.from_pretrained(folder / "local-target")
    of_local = ULDForCausalLM(target=local, assistant=train_like(build_assistant(local, 2)), alpha=0.6)
    attempt("local target", lambda: of_local.push_to_hub("me/of-local"))

    def by_trainer() -> str:
        return train_on_hub(folder, "by-trainer", max_steps=2).push_to_hub().commit_url

    attempt("trainer.push_to_hub", by_trainer)
    attempt("every_save", lambda: push_every_save(folder, "every_save"))
    attempt("no revision", lambda: ULDForCausalLM(target=target, assistant=model.assistant).push_to_hub("no-revision"))
    attempt("trainer to public", lambda: train_on_hub(folder, "public", max_steps=1, push_to_hub=True))

    # The target is finetuned further: its main branch is another model now.
    results["target revision"] = {"value": api.repo_info("me/target").sha}
    tiny_model("llama", seed=3).push_to_hub("me/target")


def train(folder: Path) -> None:
    from uld_hf.cli.main import main

    none = {"push_to_hub": True, "hub_private_repo": None, "hub_model_id": "me/not-said"}
    attempt("not said", lambda: train_on_hub(folder, "not-said", max_steps=1, **none).push_to_hub().commit_url)
    said = {"push_to_hub": True, "hub_private_repo": False, "hub_model_id": "me/said"}
    attempt("said", lambda: train_on_hub(folder, "said", max_steps=1, **said).push_to_hub().commit_url)
    attempt("all_checkpoints", lambda: push_every_save(folder, "all_checkpoints"))
    for name, rows in (("forget", ROWS[:3]), ("retain", ROWS[3:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train", "--model", "me/target", "--output_dir", str(folder / "by-train"), "--push_to_hub", "--use_cpu"]
    command += ["--forget_dataset", str(folder / "forget.jsonl"), "--retain_dataset", str(folder / "retain.jsonl")]
    command += ["--num_assistant_layers", "2", "--max_steps", "2", "--report_to", "none"]
    attempt("uld train --push_to_hub", lambda: main(command))
    from uld_hf import ULDForCausalLM

    for name in ("all-checkpoints", "by-train"):
        attempt(f"load {name}", lambda name=name: logits(ULDForCausalLM.from_pretrained(f"me/{name}")))


def load(folder: Path) -> None:
    from families import make_tokenizer
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    import uld_hf
    from uld_hf import ULDForCausalLM
    from uld_hf.assistant import load_truncated_model

    published = json.loads((folder / "publish.json").read_text())
    old = published["old revision"]["value"]
    for name in ("by-model", "by-saving", "by-command", "by-trainer", "every-save"):
        attempt(name, lambda name=name: logits(ULDForCausalLM.from_pretrained(f"me/{name}")))
    attempt("old revision", lambda: logits(ULDForCausalLM.from_pretrained("me/by-model", revision=old)))
    attempt("branch", lambda: logits(ULDForCausalLM.from_pretrained("me/by-model", revision="stronger")))
    attempt("auto", lambda: logits(AutoModelForCausalLM.from_pretrained("me/by-command")))
    attempt("auto revision", lambda: logits(AutoModelForCausalLM.from_pretrained("me/by-model", revision=old)))
    attempt("no revision", lambda: logits(ULDForCausalLM.from_pretrained("me/no-revision")))
    attempt("class", lambda: type(AutoModelForCausalLM.from_pretrained("me/by-command")).__name__)
    attempt("revision that is not there", lambda: ULDForCausalLM.from_pretrained("me/by-model", revision="nope"))
    attempt("tokenizer", lambda: AutoTokenizer.from_pretrained("me/by-trainer")("w3 w4").input_ids)
    results["plain tokenizer"] = {"value": make_tokenizer()("w3 w4").input_ids}

    def generate(**where: Any) -> str:
        generator = pipeline("text-generation", model="me/by-trainer", **where)
        assert isinstance(generator.model, uld_hf.ULDForCausalLM), type(generator.model)
        return generator("w9 w3", max_new_tokens=6, do_sample=False, return_full_text=False)[0]["generated_text"]

    def generate_directly() -> str:
        model, tokenizer = (
            ULDForCausalLM.from_pretrained("me/by-trainer"),
            AutoTokenizer.from_pretrained("me/by-trainer"),
        )
        inputs = tokenizer("w9 w3", return_tensors="pt")
        text = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=6, do_sample=False)
        return tokenizer.decode(text[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)

    attempt("pipeline", generate)
    attempt("pipeline revision", lambda: generate(revision="main"))
    attempt("directly", generate_directly)

    def plain_peft() -> bool:
        saved = ULDForCausalLM.from_pretrained("me/by-command")
        base = load_truncated_model("me/target", 2, revision=saved.config.target_revision)
        plain = PeftModel.from_pretrained(base, "me/by-command", subfolder="assistant").eval()
        return logits(plain) == logits(saved.assistant)

    attempt("plain peft", plain_peft)
    model = ULDForCausalLM.from_pretrained("me/by-command")
    attempt("add_assistant", lambda: model.add_assistant("me/by-trainer", name="second", revision="main"))
    other = AutoModelForCausalLM.from_pretrained("me/other")
    attempt("other target", lambda: logits(ULDForCausalLM.from_pretrained("me/by-command", target=other)))
    newer = AutoModelForCausalLM.from_pretrained("me/target")
    attempt("newer revision", lambda: logits(ULDForCausalLM.from_pretrained("me/by-command", target=newer)))
    mismatch = {"target": other, "allow_target_mismatch": True}
    attempt("allowed", lambda: logits(ULDForCausalLM.from_pretrained("me/by-command", **mismatch)) != logits(other))
    attempt("local target", lambda: logits(ULDForCausalLM.from_pretrained("me/of-local")))
    local = AutoModelForCausalLM.from_pretrained(folder / "local-target")
    nobody = {"token": False, "cache_dir": folder / "of-nobody"}
    for name in ("by-model", "by-trainer", "by-command"):
        attempt(f"anonymous {name}", lambda name=name: logits(ULDForCausalLM.from_pretrained(f"me/{name}", **nobody)))
    attempt("local target passed", lambda: logits(ULDForCausalLM.from_pretrained("me/of-local", target=local)))


def foreign(folder: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModel, AutoModelForCausalLM, pipeline

    for where in ("me/by-command", "me/by-trainer", "me/every-save", str(folder / "saved")):
        for options in ({}, {"subfolder": "assistant"}):
            for loader in (AutoModelForCausalLM, AutoModel, AutoPeftModelForCausalLM):
                name = f"{loader.__name__} {where.split('/')[-1]} {options}"
                attempt(name, lambda l=loader, w=where, o=options: logits(l.from_pretrained(w, **o)))  # noqa: E741
        name = where.split("/")[-1]
        attempt(f"pipeline {name}", lambda w=where: pipeline("text-generation", model=w)("w9")[0])
    attempt("adapter folder", lambda: logits(AutoModelForCausalLM.from_pretrained(str(folder / "saved" / "assistant"))))
    assert "uld_hf" not in sys.modules


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    {"publish": publish, "load": load, "foreign": foreign, "train": train}[name](folder)
    (folder / f"{name}.json").write_text(json.dumps(results))
