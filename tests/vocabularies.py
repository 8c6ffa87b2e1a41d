"""Small vocabularies, as metadata of a GGUF file, for tests of the tokenizers."""

from typing import Any

from mmrt.text.bpe import BYTE_LETTERS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

Metadata = dict[str, Any]


def byte_level(
    merges: list[str], extra: list[tuple[str, int]] | None = None, **fields: Any
) -> Metadata:
    """A byte-level vocabulary: all bytes, what the merges make, and `extra` (text, type)."""
    texts = [*BYTE_LETTERS, *dict.fromkeys(merge.replace(" ", "") for merge in merges)]
    types = [NORMAL] * len(texts)
    for text, kind in extra or []:
        texts.append(text)
        types.append(kind)
    named = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": texts,
        "token_type": types,
        "merges": merges,
        **fields,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in named.items()}


def sentence_piece(
    pieces: list[tuple[str, float]], extra: list[tuple[str, int]] | None = None, **fields: Any
) -> Metadata:
    """A SentencePiece vocabulary: <unk>, <s>, </s>, all bytes, scored pieces, `extra`."""
    tokens = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    tokens += [(text, score, NORMAL) for text, score in pieces]
    tokens += [(text, 0.0, kind) for text, kind in extra or []]
    texts, scores, types = (list(column) for column in zip(*tokens, strict=True))
    named = {
        "model": "llama",
        "tokens": texts,
        "scores": scores,
        "token_type": types,
        "add_space_prefix": False,
        **fields,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in named.items()}


MERGES = ["a b", "b a", "ab ab", "c a", "Ġ a", "Ġa b", "a a", "Ã ©", "ab c", "c c", "cc cc"]
# "ab" and "ba" score alike: the leftmost of them merges. "b▁a" crosses a word's start.
PIECES = [
    *[("a", -9.0), ("b", -9.0), ("c", -9.0), ("▁", -9.0), ("ab", -1.0), ("ba", -1.0)],
    *[("abab", -4.0), ("ca", -2.0), ("▁a", -0.5), ("▁ab", -3.0), ("b▁", -3.0), ("b▁a", -2.5)],
    *[("cc", -5.0), ("ccc", -5.0), ("cccc", -5.0), ("▁▁", -2.0), ("é", -9.0), ("cé", -1.5)],
]
