"""lm-evaluation-harness on an unlearned model: its figures are those of a direct computation."""

import json
from pathlib import Path

import pytest
import torch
from families import make_tokenizer, tiny_model, train_like
from transformers import AutoModelForCausalLM

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.cli.main import main as uld


pytest.importorskip("lm_eval", reason="needs uld_hf[eval]")

ROWS = [{"question": f"w{i} w{i + 1}", "right": f"w{i + 20}", "wrong": f"w{i + 31}"} for i in range(12)]
TASK = """
task: tiny
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{[right, wrong]}}}}"
doc_to_target: 0
metric_list:
  - metric: acc
"""


@pytest.fixture
def model(tmp_path: Path) -> ULDForCausalLM:
    """Saved, with its target and tokenizer, in `tmp_path / "unlearned"`."""
    tiny_model("llama").save_pretrained(tmp_path / "target")
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    model = ULDForCausalLM(
        target=target, assistant=train_like(build_assistant(target, 2)), alpha=1.0, relative_top=0, clamp=False
    )
    model.save_pretrained(tmp_path / "unlearned")
    make_tokenizer().save_pretrained(tmp_path / "unlearned")
    return model


@torch.no_grad()
def log_likelihood(model: ULDForCausalLM, prompt: str, answer: str) -> float:
    ids = make_tokenizer()(f"{prompt} {answer}", return_tensors="pt")["input_ids"]
    log_probs = model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    start = len(make_tokenizer()(prompt)["input_ids"])
    return log_probs.gather(-1, ids[0, 1:, None])[start - 1 :].sum().item()


def test_log_likelihoods_of_the_model_object(model: ULDForCausalLM):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=make_tokenizer(), batch_size=5)
    requests = [Instance("loglikelihood", {}, (row["question"], f" {row['right']}"), i) for i, row in enumerate(ROWS)]
    expected = [log_likelihood(model, row["question"], row["right"]) for row in ROWS]
    assert [value for value, _ in harness.loglikelihood(requests)] == pytest.approx(expected, abs=1e-3)


def test_the_command_line_gives_the_accuracy_of_a_direct_computation(model: ULDForCausalLM, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "tiny.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    # fmt: off
    status = uld([
        "lm_eval", "--model", "hf", "--model_args", f"pretrained={tmp_path / 'unlearned'}", "--tasks", "tiny",
        "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--device", "cpu", "--batch_size", "4",
    ])
    # fmt: on
    assert status == 0
    (report,) = (tmp_path / "out").rglob("results_*.json")
    accuracy = json.loads(report.read_text())["results"]["tiny"]["acc,none"]

    def right_answers(of: AutoModelForCausalLM) -> float:
        pairs = [[log_likelihood(of, row["question"], row[key]) for key in ("right", "wrong")] for row in ROWS]
        return sum(right > wrong for right, wrong in pairs) / len(ROWS)

    assert accuracy == pytest.approx(right_answers(model))
    assert right_answers(model) != right_answers(model.target)  # or the task could not tell the two apart
