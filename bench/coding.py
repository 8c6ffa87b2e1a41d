"""Ten questions about code, and what a model answers: `python -m bench.coding MODEL.gguf`

The likeliest token is taken at each place, so that a file gives the same answers on one machine.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import mmrt

QUESTIONS = (
    "Write a Python function that merges two sorted lists into one sorted list.",
    "What does `x & (x - 1)` do to an integer, and what is it good for?",
    "Write a C function that reverses a null-terminated string in place.",
    "Fix this Python code: `def mean(xs): return sum(xs) / len(x)`",
    "Write a SQL query for the three customers with the largest total of orders.",
    "Explain the difference between a process and a thread in four sentences.",
    "Write a JavaScript function that debounces another function.",
    "Write a regular expression for an IPv4 address, and explain its parts.",
    "Write a Rust function that counts the words of a string, by word.",
    "Which time does binary search take in the worst case, and why? Answer briefly.",
)
BRIEF = "You answer questions about code: in few words, with code where it is asked for."
MOST_TOKENS = 400


def answers(model: mmrt.Model) -> Iterator[tuple[str, mmrt.Text]]:
    for question in QUESTIONS:
        messages = [{"role": "system", "content": BRIEF}, {"role": "user", "content": question}]
        yield question, model.chat(messages, max_tokens=MOST_TOKENS)


def written(answer: mmrt.Text) -> str:
    """As Markdown, also where it is cut amid code."""
    text = answer.strip()
    if text.count("```") % 2:
        text += "\n```"
    return text if answer.finish == "stop" else f"{text}\n\n*(cut at {answer.tokens} tokens)*"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.coding", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument("-o", type=Path, help="also write them to this file, in Markdown")
    arguments = parser.parse_args()
    parts = []
    with mmrt.Model(arguments.model, threads=arguments.t) as model:
        for number, (question, answer) in enumerate(answers(model), 1):
            parts.append(f"## {number}. {question}\n\n{written(answer)}\n")
            print(parts[-1], flush=True)
    if arguments.o:
        arguments.o.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
