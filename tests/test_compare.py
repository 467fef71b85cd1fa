"""`uld compare`: both answers token by token, and the page as a real browser shows it."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from families import make_tokenizer, tiny_model, train_like
from transformers import AutoModelForCausalLM, PreTrainedModel

from uld_hf import ULDForCausalLM, build_assistant
from uld_hf.cli.main import main as uld
from uld_hf.compare.side_by_side import choose_assistants, stream_answers


PROMPT = "w5 w6 w7"


@pytest.fixture(scope="module")
def model() -> ULDForCausalLM:
    """A target with two assistants that change its greedy answer in ways of their own."""
    target = tiny_model("llama")
    assistants = {name: train_like(build_assistant(target, 2), seed) for name, seed in (("alice", 1), ("bob", 2))}
    return ULDForCausalLM(target=target, assistant=assistants, alpha=1.0, relative_top=0)


def say(model: PreTrainedModel, length: int) -> str:
    """What `generate()` answers."""
    tokenizer = make_tokenizer()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(
        inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=length, do_sample=False, pad_token_id=0
    )
    return tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def test_answers_are_those_of_generate(model: ULDForCausalLM):
    *_, last = stream_answers(model, make_tokenizer(), PROMPT, max_new_tokens=12)
    assert last.target.strip() == say(model.target, 12).strip()
    assert last.unlearned.strip() == say(model, 12).strip()
    assert last.target != last.unlearned


def test_neither_answer_runs_ahead(model: ULDForCausalLM):
    lengths = [
        (len(answers.target.split()), len(answers.unlearned.split()))
        for answers in stream_answers(model, make_tokenizer(), PROMPT, max_new_tokens=12)
    ]
    assert len(lengths) > 8
    # The streamer holds a word back until it is whole, and the reader looks at one answer after the other.
    assert all(abs(target - unlearned) <= 3 for target, unlearned in lengths[:-4])


def test_who_stops_reading_stops_both_models(model: ULDForCausalLM, monkeypatch: pytest.MonkeyPatch):
    passes = []
    hook = model.target.register_forward_hook(lambda *args: passes.append(1))
    answers = stream_answers(model, make_tokenizer(), PROMPT, max_new_tokens=100)
    next(answers)
    answers.close()
    hook.remove()
    assert len(passes) < 50


def test_a_failure_of_either_model_is_raised(model: ULDForCausalLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model.config, "relative_top", 7.0)
    with pytest.raises(ValueError, match=r"relative_top=7\.0"):
        list(stream_answers(model, make_tokenizer(), PROMPT, max_new_tokens=4))


def test_chosen_assistants_are_subtracted_and_no_others(model: ULDForCausalLM):
    chosen = choose_assistants(model, {"bob": 0.5})
    alone = ULDForCausalLM(target=model.target, assistant={"bob": model.assistants["bob"]}, alpha=0.5, relative_top=0)
    assert say(chosen, 12) == say(alone, 12)
    assert list(chosen.assistants) == ["bob"]
    assert list(model.assistants) == ["alice", "bob"]
    assert model.config.assistants["bob"]["alpha"] == 1.0


def test_choosing_none_is_refused(model: ULDForCausalLM):
    with pytest.raises(ValueError, match="Choose at least one forget set"):
        choose_assistants(model, {})


def test_an_assistant_that_is_added_stays_added(model: ULDForCausalLM):
    page = pytest.importorskip("uld_hf.compare.page", reason="needs uld_hf[compare]")
    both = choose_assistants(model, {"alice": 2.0, "bob": -1.1})
    blocks = page.build_page(both, make_tokenizer(), "forget-two")
    shown = {each["props"].get("elem_id"): each["props"] for each in blocks.get_config_file()["components"]}
    assert [shown[f"forget-{index}"]["label"] for index in (0, 1)] == ["forget: alice", "add: bob"]
    slider = shown["alpha-1"]
    assert (slider["minimum"], slider["value"], slider["maximum"], slider["label"]) == (0.05, 1.1, 3.0, "-alpha")
    assert page.signed(both.config.alphas, (True, True), (1.5, 2.5)) == {"alice": 1.5, "bob": -2.5}
    assert page.signed(both.config.alphas, (False, True), (1.5, 2.5)) == {"bob": -2.5}


# --- the page, in a browser ---


@pytest.fixture(scope="module")
def page(model: ULDForCausalLM) -> Iterator[str]:
    pytest.importorskip("gradio", reason="needs uld_hf[compare]")
    from uld_hf.compare.page import build_page, launch_page

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = build_page(model, make_tokenizer(), "forget-two")
    yield launch_page(blocks, "127.0.0.1", port)
    blocks.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator["webdriver.Chrome"]:  # noqa: F821
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs uld_hf[dev]")
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("needs a browser: Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    driver.set_window_size(1300, 1000)
    yield driver
    driver.quit()


def requested_hosts(browser: "webdriver.Chrome") -> set[str]:  # noqa: F821
    """Every host that the page asked for anything."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    of_page = [one["request"]["url"] for one in sent if one.get("documentURL", "").startswith("http")]
    return {urlsplit(url).hostname for url in of_page if url.startswith("http")}


def test_the_page_in_a_browser(page: str, browser: "webdriver.Chrome", model: ULDForCausalLM):  # noqa: F821
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def find(selector: str) -> "WebElement":  # noqa: F821
        return WebDriverWait(browser, 30).until(lambda _: browser.find_element(By.CSS_SELECTOR, selector))

    def shown() -> tuple[str, str]:
        return tuple(find(f"#{name} textarea").get_property("value").strip() for name in ("target", "unlearned"))

    def ask_until(expected: tuple[str, str]) -> None:
        find("#ask").click()
        WebDriverWait(browser, 30).until(lambda _: shown() == expected, f"{expected}")

    browser.get(page)
    find("#prompt textarea").send_keys(PROMPT)
    assert "Left is the target" in find("body").text
    target = say(model.target, 128).strip()
    ask_until((target, say(model, 128).strip()))

    # Another alpha for the first assistant, then only the second.
    number = find("#alpha-0 input[type=number]")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("2.5", Keys.TAB)
    stronger = choose_assistants(model, {"alice": 2.5, "bob": 1.0})
    assert say(stronger, 128) != say(model, 128)
    ask_until((target, say(stronger, 128).strip()))
    find("#forget-0 input").click()
    ask_until((target, say(choose_assistants(model, {"bob": 1.0}), 128).strip()))

    find("#forget-1 input").click()
    find("#ask").click()
    WebDriverWait(browser, 30).until(lambda _: "Choose at least one forget set" in find("body").text)

    assert requested_hosts(browser) == {"127.0.0.1"}


def test_without_gradio_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert uld(["compare", "forget-alice"]) == 2
    assert "pip install 'uld_hf[compare]'" in capsys.readouterr().err


def test_the_command_serves_this_machine_only_and_takes_several_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    page = pytest.importorskip("uld_hf.compare.page", reason="needs uld_hf[compare]")
    tiny_model("llama").save_pretrained(tmp_path / "target")
    make_tokenizer().save_pretrained(tmp_path / "target")
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    for name in ("forget-alice", "forget-bob"):
        ULDForCausalLM(target=target, assistant=train_like(build_assistant(target, 2))).save_pretrained(tmp_path / name)
    built, launched, waited = [], [], []
    blocks = SimpleNamespace(block_thread=lambda: waited.append(len(launched)))
    monkeypatch.setattr(page, "build_page", lambda *args: built.append(args) or blocks)
    monkeypatch.setattr(page, "launch_page", lambda *args: launched.append(args) or "http://localhost:7861/")
    assert uld(["compare", str(tmp_path / "forget-alice"), "--also", str(tmp_path / "forget-bob")]) == 0
    assert "The page is at http://localhost:7861/ until Ctrl-C." in capsys.readouterr().err  # where it really is
    assert waited == [1]
    (model, _, name), (_, host, port) = built[0], launched[0]
    assert (list(model.assistants), name) == (["assistant", "forget-bob"], "forget-alice")
    assert (host, port) == ("127.0.0.1", 7860)
