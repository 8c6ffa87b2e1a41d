"""Fuzzes vocabularies: the metadata that describes them, then texts through those that are taken.

Tokens are ids that exist, and each decodes; and a vocabulary that has all bytes and was not changed
gives back every text.
"""

from typing import Any

import fuzzing
import numpy as np
from fuzzing import Choices
from vocabularies import MERGES, PIECES, byte_level, sentence_piece

from mmrt.text.tokenizer import StreamDecoder, Tokenizer
from mmrt.text.words import WORD_RULES

EXTRA = ["<|im_start|>", "<|im_end|>", "<eos>", "  ", "\n\n", "ab", "<0x41>", "Ġ", "", "é"]
FIELDS = ["model", "pre", "tokens", "token_type", "merges", "scores", "add_bos_token"]
FIELDS += ["add_eos_token", "add_space_prefix", "bos_token_id", "eos_token_id", "eot_token_id"]
FIELDS += ["unknown_token_id", "fim_pad_token_id", "eom_token_id"]


def vocabulary(c: Choices) -> dict[str, Any]:
    extra = [(c.pick(EXTRA), c.pick([1, 3, 4, 2, 5, 6, 0])) for _ in range(c.below(6))]
    if c.chance(2):
        return sentence_piece([PIECES[c.below(len(PIECES))] for _ in range(c.below(30))], extra)
    merges = [merge for merge in MERGES if c.chance(2)]
    fields = byte_level([], extra)
    fields["tokenizer.ggml.pre"] = c.pick(sorted(WORD_RULES))
    for merge in merges:  # what they make has to be there before
        for text in (*merge.split(" "), merge.replace(" ", "")):
            if text not in fields["tokenizer.ggml.tokens"]:
                fields["tokenizer.ggml.tokens"].append(text)
                fields["tokenizer.ggml.token_type"].append(1)
    fields["tokenizer.ggml.merges"] = merges
    return fields


def change_list(c: Choices, values: list[Any]) -> None:
    at = c.below(len(values) + 1)
    match c.below(6):
        case 0:
            values[at : at + 1] = [c.value()]
        case 1:
            values[at : at + 1] = [c.text()]
        case 2:
            values[at : at + 1] = [c.number()]
        case 3:
            del values[at : at + c.below(4)]
        case 4:
            values[at:at] = values[: c.below(4)]
        case 5 if values:
            values[at : at + 1] = [c.pick(values)]


def change(c: Choices, metadata: dict[str, Any]) -> None:
    name = f"tokenizer.ggml.{c.pick(FIELDS)}"
    match c.below(5):
        case 0:
            metadata.pop(name, None)
        case 1:
            metadata[name] = c.value()
        case 2:
            metadata[name] = c.pick([c.number(), c.below(300), c.text()])
        case _ if isinstance(metadata.get(name), list):
            change_list(c, metadata[name])


def spells_all_texts(metadata: dict[str, Any]) -> bool:
    """Whether this vocabulary has all bytes, or letters for them, each under one id."""
    tokens = metadata["tokenizer.ggml.tokens"]
    spaces = metadata["tokenizer.ggml.model"] == "gpt2" or "▁" in tokens
    if metadata.get("tokenizer.ggml.pre") == "whitespace":  # spells nothing byte by byte
        return False
    return spaces and len(set(tokens)) == len(tokens)


def one(c: Choices) -> None:
    metadata = vocabulary(c)
    changes = c.below(4)
    for _ in range(changes):
        change(c, metadata)
    if c.chance(4):
        metadata = {
            name: np.array(value) if value and isinstance(value, list) and
            all(type(x) in (int, float) and abs(x) < 1 << 31 for x in value) else value
            for name, value in metadata.items()
        }  # fmt: skip
    tokenizer = Tokenizer.from_metadata(metadata, "a file")
    spells_all = not changes and spells_all_texts(metadata)
    assert all(0 <= stop < tokenizer.vocab_size for stop in tokenizer.stop_ids)
    for _ in range(4):
        text = c.text() * c.pick([1, 1, 2, 50])
        after = c.pick([None, None, 0, tokenizer.vocab_size - 1])
        ids = tokenizer.encode(text, c.chance(2), c.chance(2), after=after)
        assert all(type(token) is int and 0 <= token < tokenizer.vocab_size for token in ids)
        assert isinstance(tokenizer.decode(ids, skip_special=c.chance(2)), str)
        decoder = StreamDecoder(tokenizer)
        assert isinstance("".join(map(decoder.feed, ids)) + decoder.finish(), str)
        if spells_all and "▁" not in text:
            ids = tokenizer.encode(text, add_bos=False, parse_special=False)
            assert tokenizer.decode(ids) == text, (text, ids)


FUZZER = fuzzing.Fuzzer("tokenizer", one)

if __name__ == "__main__":
    FUZZER.main()
