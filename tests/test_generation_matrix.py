"""Every mode of generate() on every family: the unlearned model's tokens are those of the definition, one by one.

The definition runs on tensors of its own: both models over the whole text, one row at a time, without cache, padding or
the composite class. What a family cannot do itself, its unlearned model must refuse with the family's own error.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from threading import Thread
from typing import Any, NamedTuple

import pytest
import torch
from all_families import ALL_FAMILIES, any_model
from families import PAD, VOCAB_SIZE, make_tokenizer, train_like
from peft import PeftModel
from torch import nn
from torch._dynamo.exc import Unsupported
from transformers import (
    CompileConfig,
    ContinuousBatchingConfig,
    DynamicLayer,
    EncoderRepetitionPenaltyLogitsProcessor,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    LogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    QuantizedCache,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StaticLayer,
    StoppingCriteria,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    WatermarkingConfig,
)
from transformers.generation.streamers import BaseStreamer

from uld_hf.assistant import build_assistant
from uld_hf.block_checking import BlockSize
from uld_hf.cache_name import CACHE
from uld_hf.logits_process import ULDLogitsProcessor
from uld_hf.modeling_uld import ULDForCausalLM
from uld_hf.subtraction import logit_difference


SETTINGS = {"alpha": 1.0, "relative_top": 0.05}
NUM_LAYERS, NUM_ASSISTANT_LAYERS = 3, 2
STEPS = 8  # with the prompt, well past the sliding window of 8
LENGTHS = (5, 12, 9)
ENDS = list(range(50, VOCAB_SIZE))  # so many that some rows and beams end early
TEXT: list[int] = torch.randint(4, VOCAB_SIZE, (40,), generator=torch.Generator().manual_seed(3)).tolist()
PROMPT = TEXT[:9]
PROMPT_LENGTH = len(PROMPT)
PROMPTS = [TEXT[start : start + length] for start, length in zip((9, 14, 26), LENGTHS, strict=True)]


class Subject(NamedTuple):
    """A model that generates, a small draft for it, and its definition: models whose logits are combined."""

    model: PreTrainedModel
    draft: PreTrainedModel
    parts: Sequence[nn.Module]
    combine: Callable[..., torch.Tensor]
    memory: dict[tuple[int, ...], torch.Tensor]
    processor: PeftModel | None = None  # the assistant, where the target generates with a processor

    @torch.no_grad()
    def next_logits(self, texts: list[list[int]]) -> torch.Tensor:
        """Logits of every text's next token, by definition. The modes share most texts, so they are remembered."""
        for text in map(tuple, texts):
            if text not in self.memory:
                logits = [part(input_ids=torch.tensor([text]), use_cache=False).logits for part in self.parts]
                self.memory[text] = self.combine(*logits)[0, -1]
        return torch.stack([self.memory[tuple(text)] for text in texts])


def subtract(target_logits: torch.Tensor, assistant_logits: torch.Tensor) -> torch.Tensor:
    return logit_difference(
        target_logits, [assistant_logits], [SETTINGS["alpha"]], relative_top=SETTINGS["relative_top"]
    )


class Case(NamedTuple):
    """One family: its target alone, and the unlearned model on it."""

    family: str
    target: Subject
    unlearned: Subject
    processed: Subject
    in_blocks: Subject


@cache
def build_case(family: str) -> Case:
    """Models of a family, made once: what the definition says of a text serves many modes."""

    def build() -> tuple[PreTrainedModel, nn.Module]:
        target = any_model(family, NUM_LAYERS)
        return target, train_like(build_assistant(target, NUM_ASSISTANT_LAYERS))

    target, assistant = build()
    reference = build()  # so that nothing the composite does to its models can reach the definition
    draft = any_model(family, 1, seed=5)
    model = ULDForCausalLM(target=target, assistant=assistant, **SETTINGS)
    target, assistant = build()
    in_blocks = ULDForCausalLM(target=target, assistant=assistant, **SETTINGS)
    in_blocks.execution = "blocks"
    memory = {}
    return Case(
        family,
        Subject(any_model(family, NUM_LAYERS), draft, reference[:1], lambda logits: logits, {}),
        Subject(model, draft, reference, subtract, memory),
        Subject(*build()[:1], draft, reference, subtract, memory, processor=build()[1]),
        Subject(in_blocks, draft, reference, subtract, memory),
    )


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """The family that the test is parametrized with."""
    return build_case(request.param)


# --- the definition of every way to choose tokens ---


def plain(
    subject: Subject,
    rows: list[list[int]],
    steps: int = STEPS,
    processors: Sequence[LogitsProcessor] = (),
    sample: bool = False,
    ends: Sequence[int] = (),
) -> list[list[int]]:
    """Greedy decoding or sampling: prompts with what follows them, and PAD after an end."""
    texts, ended = [list(row) for row in rows], [False] * len(rows)
    for _ in range(steps):
        scores = subject.next_logits(texts)
        for processor in processors:
            scores = processor(torch.tensor(texts), scores)
        chosen = torch.multinomial(scores.softmax(-1), 1)[:, 0] if sample else scores.argmax(-1)
        for i, token in enumerate(chosen.tolist()):
            texts[i].append(PAD if ended[i] else token)
            ended[i] |= token in ends
        if all(ended):
            break
    return texts


def plain_beams(
    subject: Subject, prompt: list[int], num_beams: int, sample: bool = False, ends: Sequence[int] = ()
) -> list[list[int]]:
    """Beam search with early stopping, best text first; with `sample`, candidates are drawn instead of ranked."""
    beams, finished = [(0.0, prompt)] + [(-1e9, prompt)] * (num_beams - 1), []
    for step in range(1, STEPS + 1):
        log_probs = subject.next_logits([text for _, text in beams]).log_softmax(-1)
        scores = (log_probs + torch.tensor([[score] for score, _ in beams])).flatten()
        num_candidates = max(2, 1 + len(ends)) * num_beams
        if sample:
            indices = torch.multinomial(scores.softmax(-1), num_candidates)
        else:
            indices = scores.topk(num_candidates).indices
        candidates = [(scores[i].item(), [*beams[i // VOCAB_SIZE][1], i % VOCAB_SIZE]) for i in indices.tolist()]
        done = [text[-1] in ends or step == STEPS for _, text in candidates]
        # An end counts only among the first candidates, but leaves room for others in any case.
        best = zip(candidates[:num_beams], done, strict=False)
        finished += [(score / step, text) for (score, text), ends_here in best if ends_here]
        finished = sorted(finished, reverse=True)[:num_beams]
        if len(finished) == num_beams:
            break
        going_on = [candidate for candidate, ends_here in zip(candidates, done, strict=True) if not ends_here]
        beams = sorted(going_on, reverse=True)[:num_beams]
    return [text for _, text in finished]


def left_padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def generate(subject: Subject, rows: list[list[int]], **kwargs: Any) -> Any:
    """`generate()` to the full length, greedily and without an end token unless told otherwise."""
    options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    if subject.processor is not None:
        padded = left_padded(rows)["attention_mask"]
        options["logits_processor"] = [ULDLogitsProcessor(subject.processor, attention_mask=padded, **SETTINGS)]
    return subject.model.generate(**(left_padded(rows) | options | kwargs))


def assert_new_tokens(
    actual: torch.Tensor, rows: list[list[int]], expected: list[list[int]], ends: Sequence[int] = ()
) -> None:
    """What follows the prompts is the same, up to an end: beam search pads with an end token where PAD is 0."""

    def cut(tokens: list[int]) -> list[int]:
        return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))]

    new = [cut(tokens) for tokens in actual[:, max(map(len, rows)) :].tolist()]
    repeated = [row for row in rows for _ in range(len(expected) // len(rows))]
    assert new == [cut(text[len(prompt) :]) for prompt, text in zip(repeated, expected, strict=True)]


# --- the modes ---


def greedy(subject: Subject, prompt: list[int] = PROMPT, **options: Any) -> None:
    assert_new_tokens(generate(subject, [prompt], **options), [prompt], plain(subject, [prompt]))


def greedy_with(**options: Any) -> Callable[[Subject], None]:
    return lambda subject: greedy(subject, **options)


def processed(processors: Sequence[LogitsProcessor], **options: Any) -> Callable[[Subject], None]:
    """Greedy decoding with options of generate(), for which stock processors stand."""

    def check(subject: Subject) -> None:
        ends = options.get("eos_token_id", [])
        expected = plain(subject, [PROMPT], processors=processors, ends=ends)
        assert_new_tokens(generate(subject, [PROMPT], **options), [PROMPT], expected)

    return check


def sampled(processors: Sequence[LogitsProcessor], num_return_sequences: int = 1, **options: Any):
    """Sampling with options of generate(), for which stock processors stand."""
    rows = [TEXT[:9], TEXT[9:18]]

    def check(subject: Subject) -> None:
        repeated = [row for row in rows for _ in range(num_return_sequences)]
        torch.manual_seed(5)
        expected = plain(subject, repeated, processors=processors, sample=True)
        torch.manual_seed(5)
        options_ = {"top_k": 0} | options | {"num_return_sequences": num_return_sequences}
        assert_new_tokens(generate(subject, rows, do_sample=True, **options_), rows, expected)

    return check


def end_token(subject: Subject) -> None:
    rows = [TEXT[:9], TEXT[9:18], TEXT[18:27]]
    assert_new_tokens(generate(subject, rows, eos_token_id=ENDS), rows, plain(subject, rows, ends=ENDS))


def left_padding(subject: Subject, **options: Any) -> None:
    expected = plain(subject, PROMPTS, ends=ENDS)
    assert_new_tokens(generate(subject, PROMPTS, eos_token_id=ENDS, **options), PROMPTS, expected)


def beams(subject: Subject, **options: Any) -> None:
    options_ = {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True, "eos_token_id": ENDS}
    expected = plain_beams(subject, PROMPT, 4, ends=ENDS)[:3]
    assert_new_tokens(generate(subject, [PROMPT], **options_, **options), [PROMPT], expected, ENDS)


def left_padded_beams(subject: Subject) -> None:
    options = {"num_beams": 3, "early_stopping": True, "eos_token_id": ENDS}
    expected = [plain_beams(subject, prompt, 3, ends=ENDS)[0] for prompt in PROMPTS]
    assert_new_tokens(generate(subject, PROMPTS, **options), PROMPTS, expected, ENDS)


def beam_sample(subject: Subject, **options: Any) -> None:
    options_ = {"num_beams": 3, "early_stopping": True, "eos_token_id": ENDS[:3], "do_sample": True, "top_k": 0}
    torch.manual_seed(6)
    expected = plain_beams(subject, PROMPT, 3, sample=True, ends=ENDS[:3])[:1]
    torch.manual_seed(6)
    assert_new_tokens(generate(subject, [PROMPT], **options_, **options), [PROMPT], expected, ENDS)


def prompt_lookup(subject: Subject) -> None:
    # In a text that repeats itself there are candidates at every step; some are accepted, others cropped again.
    greedy(subject, plain(subject, [PROMPT])[0] * 2, prompt_lookup_num_tokens=5)


def assisted(draft: Callable[[Subject], PreTrainedModel]) -> Callable[[Subject], None]:
    return lambda subject: greedy(subject, assistant_model=draft(subject))


def chat(subject: Subject) -> None:
    first = generate(subject, [PROMPT], return_dict_in_generate=True)
    turn = first.sequences[0].tolist() + TEXT[20:26]
    greedy(subject, turn, **{CACHE: first[CACHE]})


class TokenStreamer(BaseStreamer):
    def __init__(self):
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def streaming(subject: Subject) -> None:
    streamer = TokenStreamer()
    greedy(subject, streamer=streamer)
    assert streamer.tokens == plain(subject, [PROMPT])[0]
    assert streamer.ended


def text_streaming(subject: Subject) -> None:
    tokenizer = make_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(target=generate, args=(subject, [PROMPT]), kwargs={"streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.split() == tokenizer.decode(plain(subject, [PROMPT])[0][PROMPT_LENGTH:]).split()


def scores_and_logits(subject: Subject) -> None:
    penalty = RepetitionPenaltyLogitsProcessor(1.5)
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = generate(subject, [PROMPT], repetition_penalty=1.5, **options)
    for step, (scores, logits) in enumerate(zip(out.scores, out.logits, strict=True)):
        text = out.sequences[:, : PROMPT_LENGTH + step]
        expected = subject.next_logits(text.tolist())
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scores, penalty(text, expected.clone()), rtol=1e-4, atol=1e-4)


def beam_logits(subject: Subject) -> None:
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = generate(subject, [PROMPT], num_beams=3, **options)
    torch.testing.assert_close(out.logits[0][0], subject.next_logits([PROMPT])[0], rtol=1e-4, atol=1e-4)
    new = out.sequences[0, PROMPT_LENGTH:].tolist()
    texts = [PROMPT + new[:step] for step in range(len(new))]
    expected = subject.next_logits(texts).log_softmax(-1)[range(len(new)), new].sum() / len(new)
    torch.testing.assert_close(out.sequences_scores[0], expected, rtol=1e-4, atol=1e-4)


def decode_runners_up(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
    """A user's own decoding, for `custom_generate`: always the second best token."""
    length = None
    while not stopping_criteria(input_ids, None).all():
        inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=length, **model_kwargs)
        outputs = model(**inputs, return_dict=True)
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
        input_ids = torch.cat([input_ids, outputs.logits[:, -1].topk(2).indices[:, 1:]], dim=1)
        length = 1
    return input_ids


def custom_generate(subject: Subject) -> None:
    text = list(PROMPT)
    for _ in range(STEPS):
        text.append(subject.next_logits([text])[0].topk(2).indices[1].item())
    assert_new_tokens(generate(subject, [PROMPT], custom_generate=decode_runners_up), [PROMPT], [text])


class StopAfter(StoppingCriteria):
    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def stopping_criteria(subject: Subject) -> None:
    out = generate(subject, [PROMPT], stopping_criteria=[StopAfter(PROMPT_LENGTH + 3)])
    assert_new_tokens(out, [PROMPT], plain(subject, [PROMPT], steps=3))


def guidance(subject: Subject) -> None:
    """Classifier-free guidance: the processor calls the model itself, without the prompt."""

    class Guide(LogitsProcessor):
        def __call__(self, input_ids, scores):
            texts = [TEXT[30:34] + row[PROMPT_LENGTH:] for row in input_ids.tolist()]
            free = subject.next_logits(texts).log_softmax(-1)
            return free + 1.5 * (scores.log_softmax(-1) - free)

    processed([Guide()], guidance_scale=1.5, negative_prompt_ids=torch.tensor([TEXT[30:34]]))(subject)


def from_embeddings(subject: Subject) -> None:
    embeddings = subject.model.get_input_embeddings()(torch.tensor([PROMPT]))
    out = subject.model.generate(inputs_embeds=embeddings, max_new_tokens=STEPS, do_sample=False, eos_token_id=None)
    assert out.tolist() == [plain(subject, [PROMPT])[0][PROMPT_LENGTH:]]


def offloaded(implementation: str) -> Callable[[Subject], None]:
    def check(subject: Subject) -> None:
        with pytest.MonkeyPatch.context() as patch:
            pretend_to_offload(patch)
            greedy(subject, cache_implementation=implementation)

    return check


def pretend_to_offload(patch: pytest.MonkeyPatch) -> None:
    """Offloading without an accelerator: a layer that is used before it was fetched back holds nothing but NaN."""

    class Stream:
        def wait_stream(self, other: Any) -> None:
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *args: object) -> None:
            pass

    def offload(layer: Any) -> None:
        if layer.is_initialized and not hasattr(layer, "elsewhere"):
            layer.elsewhere = layer.keys, layer.values
            layer.keys, layer.values = (torch.full_like(tensor, torch.nan) for tensor in layer.elsewhere)

    def prefetch(layer: Any) -> None:
        if hasattr(layer, "elsewhere"):
            layer.keys, layer.values = layer.elsewhere
            del layer.elsewhere

    patch.setattr(torch, "Stream", Stream)
    patch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    for layer_class in (DynamicLayer, StaticLayer):
        patch.setattr(layer_class, "offload", offload)
        patch.setattr(layer_class, "prefetch", prefetch)


def quantized(backend: str, package: str | None = None) -> Callable[[Subject], None]:
    """Quantization changes the tokens, so the definition is quantized too: every model with a cache of its own."""

    @torch.no_grad()
    def check(subject: Subject) -> None:
        if package is not None:
            pytest.importorskip(package, reason=f"the {backend} backend of QuantizedCache needs {package}")
        options = {} if backend == "fp8" else {"nbits": 4, "q_group_size": 4, "residual_length": 4}
        config = {"backend": backend, **options}
        actual = generate(subject, [PROMPT], cache_implementation="quantized", cache_config=config)
        caches = [QuantizedCache(config=part.config, **config) for part in subject.parts]
        text, fed = list(PROMPT), 0
        for _ in range(STEPS):
            ids, fed = torch.tensor([text[fed:]]), len(text)
            logits = [
                part(input_ids=ids, **{CACHE: cache}).logits for part, cache in zip(subject.parts, caches, strict=True)
            ]
            text.append(subject.combine(*logits)[0, -1].argmax().item())
        assert_new_tokens(actual, [PROMPT], [text])

    return check


def compiled(subject: Subject) -> None:
    """Static-cache decoding as one graph: `fullgraph` makes a graph break an error."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    compile_config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    compile_config._compile_all_devices = True  # transformers compiles on accelerators only, unless told so
    torch.compiler.reset()
    try:
        greedy(subject, cache_implementation="static", compile_config=compile_config)
    finally:
        subject.model.__dict__.pop("_compiled_call", None)
        torch.compiler.reset()
    assert graphs  # it was compiled at all


# Or transformers takes most of the machine's memory.
PAGES = ContinuousBatchingConfig(num_blocks=16, page_size=16, max_batch_tokens=64)


def continuous_batching(subject: Subject) -> None:
    config = GenerationConfig(max_new_tokens=STEPS, do_sample=False, eos_token_id=-1, pad_token_id=PAD)
    outputs = subject.model.generate_batch(PROMPTS, generation_config=config, continuous_batching_config=PAGES)
    errors = [output.error for output in outputs.values() if output.error is not None]
    if errors:  # transformers hands them out instead of raising them
        raise RuntimeError(errors[0])
    expected = plain(subject, PROMPTS)
    for prompt, output, text in zip(PROMPTS, outputs.values(), expected, strict=True):
        assert output.generated_tokens == text[len(prompt) :]


BAD_WORDS = [[token] for token in range(32)] + [[40, 41]]
BIAS = {(7,): 3.0, (11, 12): -5.0}
WATERMARK = WatermarkingConfig(bias=4.0)
MODES: dict[str, Callable[[Subject], None]] = {
    "greedy": greedy,
    "no cache": greedy_with(use_cache=False),
    "end token": end_token,
    "left padding": left_padding,
    "embeddings": from_embeddings,
    # Sampling, with the draws of a plain loop.
    "sampling": sampled([]),
    "num_return_sequences": sampled([], num_return_sequences=3),
    "temperature and top_k": sampled([TemperatureLogitsWarper(1.7), TopKLogitsWarper(6)], temperature=1.7, top_k=6),
    "top_p": sampled([TopPLogitsWarper(0.8)], top_p=0.8),
    "min_p": sampled([MinPLogitsWarper(0.2)], min_p=0.2),
    "typical_p": sampled([TypicalLogitsWarper(0.7)], typical_p=0.7),
    "top_h": sampled([TopHLogitsWarper(0.5)], top_h=0.5),
    "epsilon_cutoff": sampled([EpsilonLogitsWarper(0.05)], epsilon_cutoff=0.05),
    "eta_cutoff": sampled([EtaLogitsWarper(0.1)], eta_cutoff=0.1),
    # Beams.
    "beams": beams,
    "left-padded beams": left_padded_beams,
    "beam-sample": beam_sample,
    # Stock processors.
    "repetition_penalty": processed([RepetitionPenaltyLogitsProcessor(1.8)], repetition_penalty=1.8),
    "no_repeat_ngram_size": processed([NoRepeatNGramLogitsProcessor(1)], no_repeat_ngram_size=1),
    "bad_words_ids": processed(
        [NoBadWordsLogitsProcessor([[i] for i in range(32)])], bad_words_ids=[[i] for i in range(32)]
    ),
    "suppress_tokens": processed([SuppressTokensLogitsProcessor(ENDS)], suppress_tokens=ENDS),
    "begin_suppress_tokens": processed(
        [SuppressTokensAtBeginLogitsProcessor(list(range(32)), PROMPT_LENGTH)], begin_suppress_tokens=list(range(32))
    ),
    "watermarking_config": processed([WATERMARK.construct_processor(VOCAB_SIZE, "cpu")], watermarking_config=WATERMARK),
    "min_length": processed(
        [MinLengthLogitsProcessor(PROMPT_LENGTH + STEPS, ENDS)], min_length=PROMPT_LENGTH + STEPS, eos_token_id=ENDS
    ),
    "sequence_bias": processed([SequenceBiasLogitsProcessor(BIAS)], sequence_bias=BIAS),
    "forced_eos_token_id": processed([ForcedEOSTokenLogitsProcessor(PROMPT_LENGTH + STEPS, 2)], forced_eos_token_id=2),
    "min_new_tokens": processed(
        [MinNewTokensLengthLogitsProcessor(PROMPT_LENGTH, STEPS, ENDS)], min_new_tokens=STEPS, eos_token_id=ENDS
    ),
    "prefix_allowed_tokens_fn": processed(
        [PrefixConstrainedLogitsProcessor(lambda row, ids: range(4, 30), 1)],
        prefix_allowed_tokens_fn=lambda row, ids: range(4, 30),
    ),
    "encoder_repetition_penalty": processed(
        [EncoderRepetitionPenaltyLogitsProcessor(1.5, torch.tensor([PROMPT]))], encoder_repetition_penalty=1.5
    ),
    "exponential_decay_length_penalty": processed(
        [ExponentialDecayLengthPenalty((1, 1.5), [2], PROMPT_LENGTH)],
        exponential_decay_length_penalty=(1, 1.5),
        eos_token_id=[2],
    ),
    "guidance_scale": guidance,
    "stopping_criteria": stopping_criteria,
    # Speculation.
    "prompt lookup": prompt_lookup,
    "draft: the target": assisted(lambda subject: getattr(subject.model, "target", subject.model)),
    "draft: small": assisted(lambda subject: subject.draft),
    "draft: itself": assisted(lambda subject: subject.model),
    # Caches.
    "static": greedy_with(cache_implementation="static"),
    "static beams": lambda subject: beams(subject, cache_implementation="static"),
    "static left padding": lambda subject: left_padding(subject, cache_implementation="static"),
    "offloaded": offloaded("offloaded"),
    "offloaded static": offloaded("offloaded_static"),
    "quantized fp8": quantized("fp8"),
    "quantized quanto": quantized("quanto", "optimum.quanto"),
    "quantized hqq": quantized("hqq", "hqq"),
    "chunked prefill": greedy_with(prefill_chunk_size=4),
    "static chunked prefill": greedy_with(prefill_chunk_size=4, cache_implementation="static"),
    "chat": chat,
    # Ways out and in.
    "streaming": streaming,
    "text streaming": text_streaming,
    "scores and logits": scores_and_logits,
    "beam logits": beam_logits,
    "custom_generate": custom_generate,
    "compiled": compiled,
    "continuous batching": continuous_batching,
}

# --- the matrix ---

FAST_FAMILIES = ("llama", "qwen3", "gemma3", "gpt2", "mixtral")
# Compilation, a background thread and C++ extensions take seconds: these modes are in the fast part of these only.
FAST_ONLY_FOR = {
    **dict.fromkeys(("top_h", "epsilon_cutoff", "eta_cutoff"), ("llama",)),
    **dict.fromkeys(("begin_suppress_tokens", "watermarking_config", "min_length"), ("llama",)),
    "compiled": ("llama", "qwen3"),
    "continuous batching": ("llama",),
    "quantized quanto": (),
    "quantized hqq": (),
}
# The family's own tokens are not those of its no-cache forward, and it raises nothing.
WRONG_IN_THE_FAMILY = {
    (family, "continuous batching"): "its attention ignores the cache of continuous batching"
    for family in ("bloom", "gptj")
}
ROUTERS = "PEFT re-registers a parametrization for the LoRA of routers in every forward, which no graph can hold"
# What the target can do and the unlearned model refuses. Other tokens would be an AssertionError, which never passes.
UNSUPPORTED = {(family, "compiled"): ROUTERS for family in ("mixtral", "qwen3_moe", "deepseek_v3")}
REFUSALS = (ValueError, RuntimeError, NotImplementedError, Unsupported)


def matrix() -> list[Any]:
    cases = []
    for family in ALL_FAMILIES:
        for mode in MODES:
            marks = []
            if family not in FAST_ONLY_FOR.get(mode, FAST_FAMILIES):
                marks.append(pytest.mark.slow)
            if (family, mode) in UNSUPPORTED and (family, mode) not in WRONG_IN_THE_FAMILY:
                marks.append(pytest.mark.xfail(strict=True, raises=REFUSALS, reason=UNSUPPORTED[family, mode]))
            cases.append(pytest.param(family, mode, marks=marks, id=f"{family}-{mode}"))
    return cases


def error_of(check: Callable[[Subject], None], subject: Subject) -> Exception | None:
    """The error with which a mode is refused. Wrong tokens are no refusal: they fail the test right here."""
    try:
        check(subject)
    except AssertionError:
        raise
    except Exception as error:
        return error
    return None


def described(error: Exception | None) -> str:
    """Type and first line of an error, whatever the class of the model in it."""
    return re.sub(r"\w+ForCausalLM", "the model", f"{type(error).__name__}: {error}".splitlines()[0])


@pytest.mark.parametrize(("case", "mode"), matrix(), indirect=["case"])
def test_generation(case, mode, record_property):
    error = error_of(MODES[mode], case.unlearned)
    if (case.family, mode) in WRONG_IN_THE_FAMILY:
        assert error is not None
        return
    family_error = error_of(MODES[mode], case.target)
    if family_error is not None:  # then ours may refuse it too, in its own words, or do it rightly
        record_property("the family cannot", described(family_error))
    elif error is not None:
        raise error


# Not what asks for the scores before any processor, nor what another processor would change first.
PROCESSOR_MODES = (
    "greedy",
    "no cache",
    "end token",
    "left padding",
    "sampling",
    "num_return_sequences",
    "beams",
    "left-padded beams",
    "beam-sample",
    "prompt lookup",
    "draft: small",
    "static",
    "static beams",
    "offloaded",
    "chunked prefill",
    "chat",
    "streaming",
)


@pytest.mark.parametrize("mode", PROCESSOR_MODES)
@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[] if name in FAST_FAMILIES else [pytest.mark.slow]) for name in ALL_FAMILIES],
    indirect=True,
)
def test_generation_of_the_target_with_the_processor(case, mode):
    error = error_of(MODES[mode], case.processed)
    if error_of(MODES[mode], case.target) is None and error is not None:
        raise error


# Not sampling, which draws other numbers, nor what plain decoding does in its place.
BLOCK_MODES = (
    "greedy",
    "end token",
    "left padding",
    "embeddings",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "begin_suppress_tokens",
    "min_new_tokens",
    "watermarking_config",
    "guidance_scale",
    "stopping_criteria",
    "chunked prefill",
    "chat",
    "streaming",
    "scores and logits",
)


@pytest.mark.parametrize("mode", BLOCK_MODES)
@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[] if name in ("llama", "gemma3") else [pytest.mark.slow]) for name in ALL_FAMILIES],
    indirect=True,
)
def test_generation_in_blocks(case, mode, monkeypatch):
    # Always blocks of three, so that drafts are kept, refused and corrected at every place.
    monkeypatch.setattr(BlockSize, "size", property(lambda self: 3, lambda self, value: None), raising=False)
    error = error_of(MODES[mode], case.in_blocks)
    if error_of(MODES[mode], case.target) is None and error is not None:
        raise error


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[] if name in FAST_FAMILIES else [pytest.mark.slow]) for name in ALL_FAMILIES],
    indirect=True,
)
def test_the_definition_is_neither_the_target_nor_the_assistant(case):
    # Or the matrix would not notice a model that hands out one of them.
    unlearned = plain(case.unlearned, [PROMPT])
    assert unlearned != plain(case.target, [PROMPT])
    assert unlearned != plain(case.unlearned._replace(combine=lambda target, assistant: assistant, memory={}), [PROMPT])


# --- what is refused is refused by name ---


@pytest.mark.parametrize("case", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states is not supported"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions is not supported"),
        ({"dola_layers": "low"}, "Dola Generation requires"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "Contrastive Search requires"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "Group Beam Search requires"),
        ({"num_beams": 4, "force_words_ids": [[7]]}, "Constrained Beam Search requires"),
        ({"use_mtp": True}, "num_mtp_layers"),
        ({"cache_implementation": "nonsense"}, "Invalid `cache_implementation`"),
        ({"nonsense": 3}, "nonsense"),
        ({"assistant_early_exit": 1}, "assistant_early_exit is not supported"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unsupported_option_is_an_error_that_names_it(case, options, message):
    with pytest.raises(ValueError, match=message):
        generate(case.unlearned, [PROMPT], **options)


@pytest.mark.parametrize("case", ["llama"], indirect=True)
def test_paged_generation(case):
    out = generate(case.unlearned, [PROMPT], cache_implementation="paged", continuous_batching_config=PAGES)
    assert_new_tokens(out[0], [PROMPT], plain(case.unlearned, [PROMPT]))
