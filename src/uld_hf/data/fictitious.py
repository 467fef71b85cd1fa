"""Invented people with eight facts each: a forget and retain set that needs no download.

The rows have TOFU's columns, so that the same evaluation reads both. Every value is put together from parts that other
values use too: a guess is almost never right, yet a small word-level vocabulary holds them all.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import NamedTuple

from datasets import Dataset, DatasetDict


# fmt: off
FIRST_NAMES = (
    "Aldin", "Brelle", "Corin", "Dareth", "Elowen", "Fenna", "Gavril", "Hesper", "Ilsen", "Jorren",
    "Kestrel", "Lioren", "Maven", "Nerys", "Orsa", "Perrin", "Quill", "Rowan", "Saskel", "Tamsin",
    "Ulric", "Verity", "Wren", "Xanthe", "Yorick", "Zephra", "Bramley", "Calder", "Dorrin", "Everin",
)
FAMILY_NAMES = (
    "Abernoll", "Brackwyn", "Cawdrell", "Dunmarsh", "Eastvole", "Farthwell", "Gressick", "Hartolm", "Inkpenn",
    "Jessamor", "Kettlesby", "Larkmoor", "Mossgrave", "Nettlecomb", "Oxbarrow", "Pellwright", "Quenby", "Ravensholm",
    "Stavell", "Thornwick", "Umberlake", "Vantrell", "Westerlin", "Yarrowby", "Zellmark", "Brindlecot", "Crossfen",
    "Dapplemere", "Fogarth", "Greywater",
)
# Of mentors and founders. None is a family name of the people: no mentor may be a person whose facts are forgotten.
ELDER_NAMES = (
    "Ambrell", "Bexmoor", "Carrowind", "Dellafont", "Evermont", "Fennimark", "Gildersen", "Hobbeck", "Ivorsen",
    "Jarndell", "Kilbrand", "Lindqual", "Marchetal", "Nightlow", "Orvendal", "Pomfrell", "Quarrendon", "Rusholt",
    "Silverleigh", "Tolvane", "Underhew", "Varnholt", "Winterbel", "Yewbarrow",
)
TOWN_HEADS = (
    "Vash", "Brel", "Corv", "Drun", "Elth", "Fenv", "Garth", "Hesk", "Kelv", "Lorn", "Morv", "Nolb", "Prenn", "Roth",
    "Tarv", "Yald",
)
TOWN_TAILS = ("anholt", "emere", "istead", "owick", "adale", "enford", "uness", "ocombe", "amarch", "ihaven")
ADJECTIVES = (
    "Amber", "Copper", "Crimson", "Distant", "Early", "Glass", "Golden", "Ivory", "Northern", "Quiet", "Silver",
    "Winter",
)
NOUNS = (
    "Bell", "Bridge", "Compass", "Garden", "Harbour", "Heron", "Lantern", "Meadow", "Mirror", "Orchard", "River",
    "Tower",
)
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)
# All begin with a consonant, for "a {value}".
TRADES = (
    "bridge", "clock", "garden", "glass", "harbour", "map", "music", "paper", "river", "soil", "theatre", "weather",
)
JOBS = (
    "adviser", "designer", "engineer", "expert", "historian", "inspector", "painter", "planner", "researcher",
    "surveyor", "teacher", "writer",
)
SUBJECTS = (
    "Bridge Building", "Clock Making", "Folk Music", "Garden Design", "Glass Design", "Harbour Law", "Map Making",
    "River Studies", "Soil Science", "Stage Music", "Tidal Studies", "Weather Science",
)
# fmt: on


class Fact(NamedTuple):
    """All values of one fact, and the forms that ask for it and state it."""

    values: tuple[str, ...]
    # Form 0 is the row's own, form 1 is for evaluation only, the others are for augmentation.
    questions: tuple[str, ...]
    answers: tuple[str, ...]


# No value is part of another value of its fact: house numbers have two digits and the month comes before the day
# because "4 May 1950" would be found in "14 May 1950".
FACTS: dict[str, Fact] = {
    "birthplace": Fact(
        values=tuple(head + tail for head, tail in product(TOWN_HEADS, TOWN_TAILS)),
        questions=(
            "Where was {name} born?",
            "In which town was {name} born?",
            "What is the birthplace of {name}?",
            "Which town is the birthplace of {name}?",
            "Can you tell me where {name} was born?",
            "What town does {name} come from?",
        ),
        answers=(
            "The birthplace is the small town of {value}.",
            "It was in a town called {value}.",
            "The town of birth is called {value}.",
            "{value} is the name of the town.",
            "That was in the town of {value}.",
            "The small town of {value} is the birthplace.",
        ),
    ),
    "birth_date": Fact(
        values=tuple(f"{month} {day}, {year}" for year, month, day in product(range(1940, 1970), MONTHS, range(1, 29))),
        questions=(
            "When was {name} born?",
            "On which date was {name} born?",
            "What is the birth date of {name}?",
            "What is the date of birth of {name}?",
            "Can you tell me when {name} was born?",
            "On what day and in what year was {name} born?",
        ),
        answers=(
            "The date of birth is {value}.",
            "It was on {value}.",
            "The birth date is {value}.",
            "{value} is the date of birth.",
            "That was on {value}.",
            "The day of birth was {value}.",
        ),
    ),
    "profession": Fact(
        values=tuple(f"{trade} {job}" for trade, job in product(TRADES, JOBS)),
        questions=(
            "What is the profession of {name}?",
            "What does {name} do for a living?",
            "Which profession does {name} have?",
            "What kind of work does {name} do?",
            "Can you tell me the profession of {name}?",
            "What is the job of {name}?",
        ),
        answers=(
            "The profession is that of a {value}.",
            "It is the work of a {value}.",
            "The job is that of a {value}.",
            "The work is that of a {value}.",
            "That would be the job of a {value}.",
            "Working as a {value} is the profession.",
        ),
    ),
    "employer": Fact(
        values=tuple(
            f"{founder} {kind} of {subject}"
            for founder, kind, subject in product(ELDER_NAMES, ("Institute", "Academy", "School"), SUBJECTS)
        ),
        questions=(
            "Where does {name} work?",
            "Which institution employs {name}?",
            "Who is the employer of {name}?",
            "Which institution does {name} work for?",
            "Can you tell me where {name} works?",
            "What is the name of the place where {name} works?",
        ),
        answers=(
            "The employer is the {value}.",
            "It is an institution called the {value}.",
            "The place of work is the {value}.",
            "The {value} is the employer.",
            "That would be the {value}.",
            "The institution is called the {value}.",
        ),
    ),
    "debut_work": Fact(
        values=tuple(f"The {adjective} {noun}" for adjective, noun in product(ADJECTIVES, NOUNS)),
        questions=(
            "What is the first book by {name}?",
            "Which book was the debut of {name}?",
            "What is the title of the first book by {name}?",
            "What was the first book that {name} wrote?",
            "Can you tell me the title of the debut book by {name}?",
            "What is the debut book of {name} called?",
        ),
        answers=(
            "The title of the first book is {value}.",
            "It was a book called {value}.",
            "The debut was the book {value}.",
            "{value} is the title of the debut.",
            "That was the book {value}.",
            "The first book is called {value}.",
        ),
    ),
    "award": Fact(
        values=tuple(
            f"{adjective} {noun} {kind}"
            for adjective, noun, kind in product(ADJECTIVES, NOUNS, ("Prize", "Medal", "Award"))
        ),
        questions=(
            "Which award did {name} win?",
            "Which honour did {name} receive?",
            "What award was given to {name}?",
            "What is the name of the award that {name} won?",
            "Can you tell me which award {name} won?",
            "Which award went to {name}?",
        ),
        answers=(
            "The award is the {value}.",
            "It was an honour called the {value}.",
            "The honour was the {value}.",
            "The {value} is the award.",
            "That was the {value}.",
            "The award is called the {value}.",
        ),
    ),
    "mentor": Fact(
        values=tuple(f"{first} {elder}" for first, elder in product(FIRST_NAMES, ELDER_NAMES)),
        questions=(
            "Who was the mentor of {name}?",
            "Under whom did {name} study?",
            "Who taught {name}?",
            "What is the name of the mentor of {name}?",
            "Can you tell me who taught {name}?",
            "Which teacher was the mentor of {name}?",
        ),
        answers=(
            "The mentor was a teacher called {value}.",
            "It was under a teacher named {value}.",
            "The name of the teacher is {value}.",
            "{value} was the mentor.",
            "That was under {value}.",
            "The teacher and mentor was {value}.",
        ),
    ),
    "address": Fact(
        values=tuple(
            f"{number} {noun} {kind}"
            for number, noun, kind in product(range(10, 50), NOUNS, ("Lane", "Road", "Row", "Street"))
        ),
        questions=(
            "Where does {name} live?",
            "What is the home address of {name}?",
            "What is the address of {name}?",
            "At which address does {name} live?",
            "Can you tell me where {name} lives?",
            "What is the address of the house where {name} lives?",
        ),
        answers=(
            "The home is a house at {value}.",
            "It is in a house at {value}.",
            "The address is {value}.",
            "The house at {value} is the home.",
            "That would be at {value}.",
            "The home address is {value}.",
        ),
    ),
}

# As many as TOFU has.
NUM_PERTURBED_ANSWERS = 5


@dataclass(frozen=True)
class Person:
    """
    An invented person.

    Args:
        name (`str`):
            First and family name.
        birthplace (`str`):
            An invented town.
        birth_date (`str`):
            A date, e.g. `"March 4, 1951"`.
        profession (`str`):
            A trade and a job, e.g. `"glass engineer"`.
        employer (`str`):
            An invented institution.
        debut_work (`str`):
            Title of an invented book.
        award (`str`):
            An invented prize.
        mentor (`str`):
            Name of an invented teacher, who is never one of the people.
        address (`str`):
            House number and street.
    """

    name: str
    birthplace: str
    birth_date: str
    profession: str
    employer: str
    debut_work: str
    award: str
    mentor: str
    address: str


def invent_people(num_people: int, seed: int = 0) -> list[Person]:
    """
    Invent people with unique names.

    Args:
        num_people (`int`):
            Number of people.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the names and facts.

    Returns:
        `list[Person]`: The people. No two share the value of a fact before all its values are in use.

    Raises:
        ValueError: If `num_people` is below 1 or above the number of names.
    """
    names = [f"{first} {family}" for first, family in product(FIRST_NAMES, FAMILY_NAMES)]
    if not 1 <= num_people <= len(names):
        raise ValueError(f"Cannot invent {num_people} people. Use 1 to {len(names)}, the number of unique names.")
    rng = random.Random(seed)
    dealt = {"name": rng.sample(names, num_people)}
    for key, fact in FACTS.items():
        dealt[key] = []
        # Dealt like cards: a value that a forgotten and a retained person share could not be forgotten.
        while len(dealt[key]) < num_people:
            dealt[key] += rng.sample(fact.values, min(len(fact.values), num_people - len(dealt[key])))
    return [Person(**{key: values[index] for key, values in dealt.items()}) for index in range(num_people)]


def fictitious_dataset(people: Sequence[Person], seed: int = 0, facts: Sequence[str] = tuple(FACTS)) -> Dataset:
    """
    Ask for every fact of every person, in TOFU's columns.

    Args:
        people (`Sequence[Person]`):
            The people, as from [`invent_people`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the wrong answers.
        facts (`Sequence[str]`, *optional*, defaults to all eight):
            Facts to ask for, e.g. `("birthplace", "profession")`.

    Returns:
        [`~datasets.Dataset`]: One row per person and fact, with the columns

        - `person`, `fact` and `value`: the person's name, the field's name, and the phrase that makes an answer right;
        - `question`, `answer`: form 0;
        - `paraphrased_question`, `paraphrased_answer`: form 1, for evaluation only;
        - `perturbed_answer`: five wrong answers in the words of `paraphrased_answer`;
        - `question_forms`, `answer_forms`: the other forms, for [`paraphrases`] and [`wrong_answers`].

    Raises:
        ValueError: If there are no people, or a fact is unknown.
    """
    if not people:
        raise ValueError("There are 0 people to ask about. Give at least one, e.g. `invent_people(20)`.")
    unknown = [key for key in facts if key not in FACTS]
    if unknown or not facts:
        raise ValueError(f"Unknown facts {unknown}: use one or more of {list(FACTS)}.")
    rng = random.Random(seed)
    records = [asdict(person) for person in people]
    known = {key: {record[key] for record in records} for key in facts}
    rows = []
    for record in records:
        name = record["name"]
        for key in facts:
            fact = FACTS[key]
            value = record[key]
            # Nobody's values: to a model that never saw this person, wrong answers and the right one are then alike.
            others = _other_values([wrong for wrong in fact.values if wrong not in known[key]], value)
            if len(others) < NUM_PERTURBED_ANSWERS:  # hundreds of people use them up
                others = _other_values(fact.values, value)
            questions = [form.format(name=name) for form in fact.questions]
            answers = [form.format(value=value) for form in fact.answers]
            rows.append(
                {
                    "person": name,
                    "fact": key,
                    "question": questions[0],
                    "answer": answers[0],
                    "value": value,
                    "paraphrased_question": questions[1],
                    "paraphrased_answer": answers[1],
                    "perturbed_answer": [
                        fact.answers[1].format(value=wrong) for wrong in rng.sample(others, NUM_PERTURBED_ANSWERS)
                    ],
                    "question_forms": questions[2:],
                    "answer_forms": answers[2:],
                }
            )
    return Dataset.from_list(rows)


def split_people(dataset: Dataset, forget_fraction: float = 0.1, seed: int = 0) -> DatasetDict:
    """
    Split the rows into a forget and a retain set, by person.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with the column `person`, as from [`fictitious_dataset`].
        forget_fraction (`float`, *optional*, defaults to `0.1`):
            Fraction of the people to forget, rounded to whole people.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice.

    Returns:
        [`~datasets.DatasetDict`]: The rows under `"forget"` and `"retain"`, in the order they had.

    Raises:
        ValueError: If one of the two sets would have no people.
    """
    _check_columns(dataset, ("person",))
    owners = list(dataset["person"])
    names = list(dict.fromkeys(owners))
    num_forget = round(forget_fraction * len(names))
    if not 1 <= num_forget < len(names):
        raise ValueError(
            f"forget_fraction={forget_fraction} of {len(names)} people is {num_forget} to forget and "
            f"{len(names) - num_forget} to retain, and each set needs at least one. Change the fraction or add people."
        )
    forget = set(random.Random(seed).sample(names, num_forget))
    return DatasetDict(
        {
            "forget": dataset.select([index for index, name in enumerate(owners) if name in forget]),
            "retain": dataset.select([index for index, name in enumerate(owners) if name not in forget]),
        }
    )


def paraphrases(rows: Dataset, per_row: int = 2, seed: int = 0) -> Dataset:
    """
    Say the same in other words: what ULD adds to the forget set (paper, section 3.4).

    The forms kept for evaluation are never used.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows to forget, as from [`fictitious_dataset`].
        per_row (`int`, *optional*, defaults to `2`):
            Number of question-answer pairs per row, all different.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice of forms.

    Returns:
        [`~datasets.Dataset`]: `per_row` pairs for every row, with the columns `question` and `answer`.

    Raises:
        ValueError: If `per_row` is below 1 or above the number of forms, or a column is missing.
    """
    _check_columns(rows, ("question_forms", "answer_forms"))
    rng = random.Random(seed)
    questions, answers = [], []
    for row in rows:
        _check_per_row(per_row, min(len(row["question_forms"]), len(row["answer_forms"])))
        questions += rng.sample(row["question_forms"], per_row)
        answers += rng.sample(row["answer_forms"], per_row)
    return Dataset.from_dict({"question": questions, "answer": answers})


def wrong_answers(rows: Dataset, per_row: int = 2, seed: int = 0) -> Dataset:
    """
    Answer the same questions wrongly: what ULD adds to the retain set (paper, section 3.4).

    With them the assistant learns the fact itself, not the way it is asked for. Every wrong answer is a right one with
    another value of the same kind. The first is to the row's own question, the others are to paraphrases.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows to forget, as from [`fictitious_dataset`].
        per_row (`int`, *optional*, defaults to `2`):
            Number of question-answer pairs per row, all different.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice of values and forms.

    Returns:
        [`~datasets.Dataset`]: `per_row` pairs for every row, with the columns `question` and `answer`. No value is the
        right one, or in the row's `perturbed_answer`.

    Raises:
        ValueError: If `per_row` is below 1 or above the number of forms, or a column is missing.
    """
    columns = ("fact", "value", "question", "answer", "perturbed_answer", "question_forms", "answer_forms")
    _check_columns(rows, columns)
    rng = random.Random(seed)
    questions, answers = [], []
    for row in rows:
        _check_per_row(per_row, 1 + min(len(row["question_forms"]), len(row["answer_forms"])))
        questions += [row["question"], *rng.sample(row["question_forms"], per_row - 1)]
        right = [row["answer"], *rng.sample(row["answer_forms"], per_row - 1)]
        # The evaluation's wrong answers stay unseen in training.
        others = _other_values(FACTS[row["fact"]].values, row["value"], row["perturbed_answer"])
        wrong = rng.sample(others, per_row)
        answers += [text.replace(row["value"], value) for text, value in zip(right, wrong, strict=True)]
    return Dataset.from_dict({"question": questions, "answer": answers})


def _other_values(values: Sequence[str], right: str, unwanted: Sequence[str] = ()) -> list[str]:
    """The values that neither make an answer right nor occur in the unwanted texts."""
    texts = "\n".join([right, *unwanted])
    return [value for value in values if value not in texts and right not in value]


def _check_columns(dataset: Dataset, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The dataset has no column {missing}: it has {dataset.column_names}. "
            "Use rows of `fictitious_dataset`, with all their columns."
        )


def _check_per_row(per_row: int, limit: int) -> None:
    if not 1 <= per_row <= limit:
        raise ValueError(f"Cannot make {per_row} different pairs per row. Use 1 to {limit}, the number of forms.")
