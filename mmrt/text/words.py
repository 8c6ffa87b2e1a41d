"""How byte-level vocabularies cut a text into words before any merging, by tokenizer.ggml.pre."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WordRule:
    """How a byte-level vocabulary cuts a text into words, named by tokenizer.ggml.pre."""

    patterns: tuple[str, ...]  # applied in turn, each within the pieces that the last one left
    whole_words_first: bool = False  # a word that is a token needs no merging
    add_bos: bool = False  # unless tokenizer.ggml.add_bos_token says


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_CJK = "[一-龥ࠀ-一가-퟿]+"

_single_digits = WordRule((r"\p{N}", _GPT2))
_llama3 = WordRule((_LLAMA3,), whole_words_first=True, add_bos=True)
_qwen2 = WordRule((_QWEN2,))

# To add a way of cutting words: a line here, and a line in tests/golden/make_tokens.py.
WORD_RULES = {
    "default": WordRule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": WordRule((_GPT2,)),
    "phi-2": WordRule((_GPT2,)),
    "olmo": WordRule((_GPT2,)),
    "smollm": _single_digits,
    "starcoder": _single_digits,
    "refact": _single_digits,
    "command-r": _single_digits,
    "exaone": _single_digits,
    "falcon": WordRule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "llama-bpe": _llama3,
    "llama3": _llama3,
    "llama-v3": _llama3,
    "falcon3": _llama3,
    "dbrx": WordRule((_LLAMA3,)),
    "smaug-bpe": WordRule((_LLAMA3,)),
    "qwen2": _qwen2,
    "stablelm2": _qwen2,
    "deepseek-r1-qwen": _qwen2,
    "deepseek-coder": WordRule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-v3": WordRule(
        (
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
            r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ),
}
