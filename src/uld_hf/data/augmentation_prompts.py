"""What a chat model is told to write for `uld augment`. One text on a line of its own is asked for, and parsed."""

PARAPHRASE_QUESTION = """Rewrite the question below in {number} different ways.
Keep its meaning and every name, title, date and number in it. Do not answer it.
Write one question per line and nothing else.

Question: {question}"""

PARAPHRASE_ANSWER = """Rewrite the answer below in {number} different ways.
Keep its meaning and every name, title, date and number in it. Add nothing that it does not say.
Write one answer per line and nothing else.

Question: {question}
Answer: {answer}"""

WRONG_ANSWER = """Write {number} wrong answers to the question below.
Each must sound as plausible as the right answer, have its length and style, and tell something else where it
matters: another name, place, date, number or trait.
Write one wrong answer per line and nothing else. Do not say that they are wrong.

Question: {question}
Right answer: {answer}"""

REWRITE_PASSAGE = """Tell the passage below in other words, in about the same length.
Keep every name, date and number in it. Write the new passage and nothing else.

Passage: {passage}"""
