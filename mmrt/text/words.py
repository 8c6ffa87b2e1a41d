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
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]+[", r"[^\s\p{L}\p{M}\p{N}]+["
)
_SEED = _QWEN2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+")

# Words in which capitals come first, or that are all capitals; marks are of both kinds.
_CAPITALS, _SMALLS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALLS}+{_SUFFIX}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALLS}*{_SUFFIX}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _CASED.replace(_SUFFIX, "").replace(r"\p{N}{1,3}", r"\p{N}")
# Right-aligned groups of three digits: 1 234 567.
_TRIPLES = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_MINICPM5 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")
_BAILING = _QWEN2.replace(r"|\s*[\r\n]+", r"|\s*[\r\n]")
_EXAONE_MOE = _BAILING.replace(r"?\p{L}+", r"?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+").replace(
    r"[\r\n]*", r"[\r\n/]?"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_LINES = r"[^\n]+|\n+"
_CJK = "[一-龥ࠀ-一가-퟿]+"

_single_digits = WordRule((r"\p{N}", _GPT2))
_llama3 = WordRule((_LLAMA3,), whole_words_first=True, add_bos=True)
_dbrx = WordRule((_LLAMA3,))
_qwen2 = WordRule((_QWEN2,))
_gpt2 = WordRule((_GPT2,))
_gpt4o = WordRule((_CASED,))
_bloom = WordRule((_BLOOM,))
_bailing = WordRule((_BAILING,))
_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_deepseek_v3 = WordRule((r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK_WORDS))
_ASIAN = (
    "[一-鿿㐀-䶿豈-\ufaff\u3040-ゟ゠-ヿ･-ﾟ⼀-\u2fdfเ-\u0e7f\u0e80-\u0effក-\u17ffက-႟ꩠ-ꩿ"
    "ꧠ-\ua9ff가-\ud7afᄀ-ᇿ]+"
)

# To add a way of cutting words: a line here; then run tests/golden/make_tokens.py.
WORD_RULES = {
    "default": WordRule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "granite-docling"), _gpt2
    ),
    **dict.fromkeys(("gigachat", "a.x-4.0", "mellum", "exaone4"), _gpt2),
    **dict.fromkeys(("modern-bert", "roberta-bpe", "jina-es", "jina-de", "jina-v1-en"), _gpt2),
    **dict.fromkeys(("jina-v2-es", "jina-v2-de", "jina-v2-code"), _gpt2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "exaone"), _single_digits),
    **dict.fromkeys(("codeshell", "minerva-7b", "mellum2"), _single_digits),
    "falcon": WordRule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1"), _llama3),
    **dict.fromkeys(("pixtral", "midm-2.0", "lfm2", "jina-v5-nano"), _llama3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _dbrx),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), _qwen2),
    **dict.fromkeys(("solar-open", "grok-2", "kormo", "f2llmv2"), _qwen2),
    "qwen35": WordRule((_QWEN35,)),
    "seed-coder": WordRule((_SEED,)),
    "tekken": WordRule((_TEKKEN,), whole_words_first=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"), _gpt4o),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _bailing),
    "exaone-moe": WordRule((_EXAONE_MOE,)),
    "superbpe": WordRule((r"\p{N}+", r"\d{1,3}(?=(?:\d{3})*(?!\d))")),
    "minicpm5": WordRule((r"\p{N}{1,3}", _MINICPM5)),
    "laguna": WordRule((_LINES, _QWEN2)),
    "afmoe": WordRule((_TRIPLES, _ASIAN, _DEEPSEEK_WORDS)),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), _bloom),
    "viking": WordRule((_BLOOM, r"\p{N}")),
    "deepseek-coder": WordRule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _deepseek_v3),
}
