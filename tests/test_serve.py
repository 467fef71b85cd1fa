"""`uld serve`: a real server on loopback, asked by OpenAI's client."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from families import make_tokenizer, tiny_model, train_like
from processes import free_port
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.cli.main import main as uld
from uld_hf.cli.serve import ServeArguments, start_server


httpx = pytest.importorskip("httpx", reason="needs uld_hf[serve]")
openai = pytest.importorskip("openai", reason="needs uld_hf[serve]")
pytest.importorskip("fastapi", reason="needs uld_hf[serve]")

MESSAGES = [{"role": "user", "content": "w5 w6 w7"}]
GREEDY = {"max_tokens": 6, "temperature": 0}
CHAT_TEMPLATE = (
    "{% for m in messages %}w{{ 1 if m.role == 'user' else 2 }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}w2 {% endif %}"
)


class Served(NamedTuple):
    """A running server, and the model that it serves."""

    client: "openai.OpenAI"
    name: str
    model: ULDForCausalLM
    tokenizer: PreTrainedTokenizerBase

    def say(self, model: AutoModelForCausalLM, messages: list[dict[str, str]] = MESSAGES) -> str:
        """What `generate()` of a model answers."""
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        text = model.generate(**inputs, max_new_tokens=GREEDY["max_tokens"], do_sample=False)
        return self.tokenizer.decode(text[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def chat(self, messages: list[dict[str, str]] = MESSAGES, model: str | None = None) -> str:
        """What the server answers."""
        answer = self.client.chat.completions.create(model=model or self.name, messages=messages, **GREEDY)
        return answer.choices[0].message.content


@pytest.fixture(scope="module", params=[False, True], ids=["one by one", "continuous batching"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tiny_model("llama").save_pretrained(folder / "target")
    target = AutoModelForCausalLM.from_pretrained(folder / "target")
    model = ULDForCausalLM(
        target=target, assistant=train_like(build_assistant(target, 2)), alpha=1.0, relative_top=0, clamp=False
    )
    for name in ("target", "unlearned"):
        tokenizer.save_pretrained(folder / name)
    model.save_pretrained(folder / "unlearned")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ServeArguments(
        str(folder / "unlearned"),
        revision="v1" if request.param else None,  # of no effect on a folder
        device="cpu",
        host="127.0.0.1",
        port=port,
        continuous_batching=request.param,
    )
    server = start_server(arguments, non_blocking=True)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=8)
    yield Served(client, server._model_manager.force_model, model, tokenizer)
    server.kill_server()


@pytest.fixture(scope="module")
def without_template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a model is served whose tokenizer has no chat template; in another process, as users start it."""
    folder = tmp_path_factory.mktemp("plain")
    tiny_model("llama").save_pretrained(folder / "target")
    target = AutoModelForCausalLM.from_pretrained(folder / "target")
    ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2))).save_pretrained(folder / "plain")
    for name in ("target", "plain"):
        make_tokenizer().save_pretrained(folder / name)
    port = free_port()
    command = [sys.executable, "-c", "import sys; from uld_hf.cli.main import main; sys.exit(main())", "serve"]
    options = ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen([*command, str(folder / "plain"), *options], stderr=subprocess.DEVNULL) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:  # which take a minute
                assert client.get(f"{address}/health").status_code == 200
            yield address
        finally:
            server.terminate()


def test_the_first_request_does_not_decide_how_later_ones_are_sampled(served: Served):  # so it is the first test
    httpx.post(
        f"{served.client.base_url}chat/completions",
        json={"model": served.name, "messages": MESSAGES, "max_tokens": 6, "temperature": 9.0},
        timeout=600,
    ).raise_for_status()
    assert served.chat() == served.say(served.model)


def test_probabilities_of_answers_that_a_client_chooses_are_not_given(served: Served):
    question = {"name": "kind", "text": "w8", "type": "boolean"}
    asked = {"model": served.name, "input": "w5 w6 w7", "questions": [question]}
    answer = httpx.post(f"{served.client.base_url}systemone", json=asked, timeout=600)
    assert (answer.status_code, "no probabilities" in answer.text) == (403, True)


def test_chat_is_what_generate_says(served: Served):
    assert served.chat() == served.say(served.model)
    assert served.chat() != served.say(served.model.target)


def test_completion_is_what_generate_says(served: Served):
    answer = served.client.completions.create(model=served.name, prompt="w5 w6 w7", **GREEDY).choices[0].text
    inputs = served.tokenizer("w5 w6 w7", return_tensors="pt")["input_ids"]
    text = served.model.generate(inputs, max_new_tokens=GREEDY["max_tokens"], do_sample=False)
    assert answer.strip() == served.tokenizer.decode(text[0, inputs.shape[1] :], skip_special_tokens=True).strip()


def test_streamed_chat_is_the_same(served: Served):
    stream = served.client.chat.completions.create(model=served.name, messages=MESSAGES, stream=True, **GREEDY)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == served.say(served.model)


def test_eight_clients_at_once_get_their_own_answers(served: Served):
    questions = [[{"role": "user", "content": f"w{i} w{i + 9}"}] for i in range(8)]
    expected = [served.say(served.model, question) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(served.chat, questions)) == expected
    assert len(set(expected)) > 1


def test_the_model_that_is_served_is_the_only_one_listed(served: Served):
    (listed,) = served.client.models.list().data  # also where there is no cache of downloads
    assert listed.id == served.name
    assert served.chat(model=listed.id) == served.chat()


def test_the_target_cannot_be_asked_for_by_name(served: Served):
    with pytest.raises(openai.BadRequestError):
        served.chat(model=str(Path(served.name).parent / "target"))


def test_a_response_is_what_generate_says(served: Served):
    options = {"max_output_tokens": 6, "temperature": 0, "stream": False}  # the server streams unless told otherwise
    answer = served.client.responses.create(model=served.name, input="w5 w6 w7", **options)
    assert answer.output_text == served.say(served.model)


def test_no_endpoint_loads_a_target_or_answers_for_it(served: Served):
    target = str(Path(served.name).parent / "target")
    server = str(served.client.base_url).removesuffix("/v1/")
    assert httpx.post(f"{server}/load_model", json={"model": target}, timeout=60).status_code == 400
    sound = {"file": ("sound.wav", b"RIFF")}
    answer = httpx.post(f"{server}/v1/audio/transcriptions", data={"model": target}, files=sound, timeout=60)
    assert (answer.status_code, "loads nothing else" in answer.text) == (400, True)
    for path, body in (
        ("chat/completions", {"messages": MESSAGES}),
        ("completions", {"prompt": "w5 w6 w7"}),
        ("responses", {"input": "w5 w6 w7"}),
        ("systemone", {"input": "w5 w6 w7", "questions": [{"name": "kind", "text": "w8", "type": "boolean"}]}),
    ):
        answer = httpx.post(f"{server}/v1/{path}", json={"model": target, **body}, timeout=60)
        assert 400 <= answer.status_code < 500, path
    assert served.chat() == served.say(served.model)


@pytest.mark.parametrize(
    ("path", "body"), [("chat/completions", {"messages": MESSAGES}), ("responses", {"input": "w5 w6 w7"})]
)
def test_a_chat_without_a_template_is_refused_with_advice(without_template: str, path: str, body: dict[str, Any]):
    answer = httpx.post(f"{without_template}/v1/{path}", json=body, timeout=60)
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["detail"]
    assert "/v1/completions" in answer.json()["detail"]


def test_a_completion_needs_no_template(without_template: str):
    answer = httpx.post(f"{without_template}/v1/completions", json={"prompt": "w5 w6 w7", **GREEDY}, timeout=60)
    assert answer.status_code == 200


def test_a_target_is_not_served_by_mistake(served: Served, capsys: pytest.CaptureFixture[str]):
    assert uld(["serve", str(Path(served.name).parent / "target")]) == 2
    assert "is not an unlearned model" in capsys.readouterr().err


def test_a_revision_in_the_name_is_refused_with_advice(capsys: pytest.CaptureFixture[str]):
    assert uld(["serve", "me/forget-alice@v1"]) == 2
    assert "say --revision" in capsys.readouterr().err


def test_a_missing_model_is_named(capsys: pytest.CaptureFixture[str]):
    assert uld(["serve", "nowhere"]) == 2
    assert "There is no folder 'nowhere' here" in capsys.readouterr().err
