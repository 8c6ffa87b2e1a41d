"""The arguments MODEL and PROMPT, and the ways in which a prompt is given."""

import argparse
import os
import re
import sys

from mmrt.cli.options import UsageError, require_one_model
from mmrt.cli.output import note
from mmrt.errors import FileError
from mmrt.text.tokenizer import require_utf8

# One word with a number, a tag or an owner in it ("llama3.2", "qwen2.5:7b", "owner/name"), or that
# begins as a family of models does.
_NAME_OF_A_MODEL = re.compile(
    r"(?=.*[\d/:]|deepseek|gemma|gpt|llama|mistral|mixtral|phi|qwen|smollm)[a-z~.][\w.:/~-]*\w",
    re.IGNORECASE,
)


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="[MODEL] [PROMPT]",
        help="a GGUF file, and the prompt (-, or none where stdin is no terminal: read it there)",
    )  # fmt: skip
    parser.add_argument("-p", "--prompt", metavar="PROMPT", help="the same as PROMPT")
    parser.add_argument("-f", "--file", metavar="FILE", help="the prompt is this file's text")


def model_and_prompt(arguments: argparse.Namespace) -> tuple[str | None, str]:
    """What was given as MODEL (None: that of -hf, or the default one), and the prompt's text."""
    path, prompt = _chosen(arguments)
    if arguments.file is not None:
        return path, _text_in(arguments.file)
    if prompt == "-":
        prompt = _piped()
    elif prompt is None:
        prompt = "" if sys.stdin.isatty() else _piped()
        if not prompt:
            taken = f": {path!r} is taken for the model" if path else ""
            raise UsageError(f"no prompt given{taken}")
    return path, require_utf8(prompt)


def _text_in(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read().removesuffix("\n")
    except FileNotFoundError as error:  # which names no file that is called ""
        raise FileError(error.errno, error.strerror, path or "''") from None
    return require_utf8(text, f"{path}: the text")


def _piped() -> str:
    return sys.stdin.read().removesuffix("\n")  # an editor's or echo's, not the writer's


def _chosen(arguments: argparse.Namespace) -> tuple[str | None, str | None]:
    """The model, and the prompt as it was given; None: it was not, or is in a file."""
    words, prompt = list(arguments.words), arguments.prompt
    models = [arguments.model_option] if arguments.model_option else []
    has_prompt = prompt is not None or arguments.file is not None
    named = models or arguments.hf_repo
    if words and not named and (len(words) > 1 or has_prompt or _is_model(words[0])):
        models.append(words.pop(0))
    require_one_model(arguments, models)
    if prompt is None and words:
        prompt = words.pop(0)
        if not named and not models and _NAME_OF_A_MODEL.fullmatch(prompt):
            note(
                f"there is no file {prompt!r}, so it is the prompt; -m FILE names a model, and -hf "
                "OWNER/NAME one to fetch"
            )
    if words:
        raise UsageError(f"unexpected argument {words[0]!r}")
    if prompt is not None and arguments.file is not None:
        raise UsageError("the prompt is given twice")
    return (models[0] if models else None), prompt


def _is_model(word: str) -> bool:
    return word != "-" and (word.endswith(".gguf") or os.path.isfile(word))
