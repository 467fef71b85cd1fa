"""Sizes of the study: a smoke test of a minute, a slice of TOFU's authors for two CPU cores, all of TOFU for a GPU."""

from dataclasses import dataclass, replace


ROWS_PER_AUTHOR = 20


@dataclass(frozen=True)
class Preset:
    """
    How large a study is.

    Args:
        name (`str`):
            Its name, and that of its results' folder.
        num_authors (`int`):
            Authors that the target learns, of TOFU's 200.
        splits (`dict[str, int]`):
            Authors to forget, by name of the split; always TOFU's last ones.
        tune_on (`str`):
            The split on which settings are chosen.
        hidden_size (`int`):
            Width of the target.
        num_layers (`int`):
            Its depth.
        vocab_size (`int`):
            Size of its tokenizer.
        pretraining_epochs (`int`):
            Passes over authors that no split forgets, before target and retrained model begin: those that are not
            learned at all, or, where all are, those that are always kept. With 0 they know no language but that of the
            rows they learn.
        target_epochs (`int`):
            Passes over the rows.
        target_learning_rate (`float`):
            Highest learning rate of the target's training.
        least_recall (`float`):
            Least ROUGE-L recall of the target's forget answers; the paper's target has 0.95 to 0.99.
        unlearning_epochs (`float`):
            Passes over the forget set, for every method alike but baking.
        batch_size (`int`):
            Rows of a step.
        mixed_precision (`bool`):
            Whether trainings on a CPU compute in bfloat16, as those on a GPU do.
        group_by_length (`bool`):
            Whether batches of target and retrained model hold rows of about one length.
        assistant_layers (`int`):
            K, the assistant's layers.
        other_layers (`tuple[int, ...]`):
            K's of the ablation.
        trials (`int`):
            Settings that are tried of ULD's assistants, and of what is made of them.
        rival_trials (`int`):
            Settings that are tried of every other method, at most.
        more_gates (`tuple[float, ...]`):
            Gates that trials try of every line that has one, beside the line's. What is chosen later keeps the gate.
        retain_questions (`int`):
            Questions about what must be kept, at most.
        seeds (`tuple[int, ...]`):
            Seeds that are run where none are named; settings are chosen with the first.
        book_characters (`int`):
            Characters of each book.
        book_epochs (`int`):
            Passes of the target over the books.
        keeps_models (`bool`):
            Whether models of methods that change the weights are kept when they have been measured: each is as large as
            the target.
        methods (`tuple[str, ...]`, *optional*):
            Lines of the tables that are run where none are named; if there are none here, all.
    """

    name: str
    num_authors: int
    splits: dict[str, int]
    tune_on: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    pretraining_epochs: int
    target_epochs: int
    target_learning_rate: float
    least_recall: float
    unlearning_epochs: float
    batch_size: int
    mixed_precision: bool
    group_by_length: bool
    assistant_layers: int
    other_layers: tuple[int, ...]
    trials: int
    rival_trials: int
    more_gates: tuple[float, ...]
    retain_questions: int
    seeds: tuple[int, ...]
    book_characters: int
    book_epochs: int
    keeps_models: bool
    methods: tuple[str, ...] = ()


# TOFU's proportions with a tenth of its authors: 10 % and 20 % of them are forgotten.
SLICE = Preset(
    name="slice",
    num_authors=20,
    # What two cores can do in two hours: the paper's formula, ours with one assistant, all rivals.
    methods=(
        *("uld_paper", "uld_released", "uld_centered", "uld_clamped", "uld_clamped_filter", "uld_gated", "uld_rules"),
        *("dd_linear", "dd_rank", "offset_ga_kl", "offset_npo_kl", "offset_dpo_kl", "ga", "ga_gd", "ga_kl"),
        *("npo", "npo_gd", "npo_kl", "dpo", "dpo_gd", "dpo_kl", "simnpo", "undial", "rmu"),
    ),
    splits={"forget10": 2, "forget20": 4},
    tune_on="forget10",
    hidden_size=128,
    num_layers=6,
    vocab_size=2000,
    pretraining_epochs=0,
    target_epochs=24,
    target_learning_rate=2e-3,
    least_recall=0.95,
    unlearning_epochs=10,
    batch_size=16,
    mixed_precision=False,
    group_by_length=False,
    assistant_layers=4,
    other_layers=(1, 2, 3, 5, 6),
    trials=4,
    rival_trials=4,
    more_gates=(),
    retain_questions=80,
    seeds=(0,),
    book_characters=20000,
    book_epochs=250,
    keeps_models=True,
)

PRESETS = {
    preset.name: preset
    for preset in (
        # Shows that everything runs; its figures mean nothing.
        Preset(
            name="small",
            num_authors=4,
            splits={"forget25": 1},
            tune_on="forget25",
            hidden_size=64,  # bitsandbytes quantizes blocks of 64 to 4 bits
            num_layers=2,
            vocab_size=600,
            pretraining_epochs=0,
            target_epochs=2,
            target_learning_rate=3e-3,
            least_recall=0.0,
            unlearning_epochs=1,
            batch_size=16,
            mixed_precision=False,
            group_by_length=False,
            assistant_layers=1,
            other_layers=(2,),
            trials=1,
            rival_trials=1,
            more_gates=(),
            retain_questions=10,
            seeds=(0,),
            book_characters=3000,
            book_epochs=1,
            keeps_models=False,
        ),
        SLICE,
        # The same authors, finetuned into a model that has read others: it knows how such answers are worded.
        replace(
            SLICE,
            name="finetuned",
            methods=(),
            splits={"forget05": 1, **SLICE.splits},
            pretraining_epochs=6,
            target_epochs=12,
            rival_trials=13,
            seeds=(0, 1, 2),
        ),
        # All of TOFU and its own splits, with a target of 5 million parameters.
        Preset(
            name="whole",
            num_authors=200,
            splits={"forget01": 2, "forget05": 10, "forget10": 20},
            tune_on="forget05",
            hidden_size=256,
            num_layers=4,
            vocab_size=4000,
            pretraining_epochs=14,
            target_epochs=10,
            target_learning_rate=1.5e-3,
            least_recall=0.95,
            unlearning_epochs=10,
            batch_size=16,
            mixed_precision=True,
            group_by_length=True,
            assistant_layers=2,
            other_layers=(1, 3, 4),
            trials=3,
            rival_trials=3,
            more_gates=(0.15, 0.3),
            retain_questions=100,
            seeds=(0,),
            book_characters=20000,
            book_epochs=250,
            keeps_models=True,
        ),
        # For one H200; about 400 million parameters. Never run so far: the epochs and the rate are guesses.
        Preset(
            name="full",
            num_authors=200,
            splits={"forget01": 2, "forget05": 10, "forget10": 20},
            tune_on="forget05",
            hidden_size=1024,
            num_layers=24,
            vocab_size=8000,
            pretraining_epochs=0,
            target_epochs=12,
            target_learning_rate=3e-4,
            least_recall=0.95,
            unlearning_epochs=10,
            batch_size=32,
            mixed_precision=True,
            group_by_length=True,
            assistant_layers=12,
            other_layers=(3, 6, 8, 18, 24),
            trials=8,
            rival_trials=13,
            more_gates=(0.15, 0.3),
            retain_questions=300,
            seeds=(0, 1, 2),
            book_characters=140000,
            book_epochs=30,
            keeps_models=False,
        ),
    )
}
