"""How byte-level vocabularies cut a text into words before any merging, by tokenizer.ggml.pre."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WordRule:
    """How a byte-level vocabulary cuts a text into words, named by tokenizer.ggml.pre."""

    patterns: tuple[str, ...]  # applied in turn, each within the pieces that the last one left
    whole_words_first: bool = False  # a word that is a token needs no merging
    add_bos: bool = False  # unless tokenizer.ggml.add_bos_token says
    as_written: bool = False  # tokens are spelled as UTF-8, not with a letter for each byte
    separated: bool = False  # as SentencePiece spells them: "▁" for a space, "<0x0A>" for a byte


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_LLAMA3 = (
    _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
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
# These models' makers cut words where small letters end, too; llama.cpp does not.
_UNCASED = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_SUFFIX}" + _CASED[_CASED.index(r"|\p{N}") :]
_UNCASED_DIGITS = _UNCASED.replace(r"\p{N}{1,3}", r"\p{N}")
# Chinese characters are words of their own.
_KIMI = r"\p{Han}+|" + _UNCASED.replace(r"[\p{L}\p{M}]", r"[\p{L}&&[^\p{Han}]]").replace("/]", "]")
# Right-aligned groups of three digits: 1 234 567. Only the first looks for the number's end.
_TRIPLES = r"(?<!\p{N})\p{N}{1,2}(?=(?:\p{N}{3})+(?!\p{N}))|\p{N}{1,3}"
_MINICPM5 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")
_BAILING = _QWEN2.replace(r"|\s*[\r\n]+", r"|\s*[\r\n]")
_EXAONE_MOE = _BAILING.replace(r"?\p{L}+", r"?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+").replace(
    r"[\r\n]*", r"[\r\n/]?"
)
# Runs of blanks are cut into powers of two.
_JAIS2 = _LLAMA3.replace(
    r"|\s+(?!\S)|\s+",
    "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s",
)
# Its tokens for pictures, blanks, digits and punctuation, each alone.
_CHAMELEON_FIRST = (
    r"<sentinel:[0-9]+>",
    r"IMGIMG[A-I]{1,4}Z",
    r"[\t\n]|    |  ",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_LINES = r"[^\n]+|\n+"
_CJK = "[一-龥ࠀ-一가-퟿]+"
_KANA_OR_HAN = "[一-龥\u3040-ゟ゠-ヿ]+"
_SCRIPTS_OF_YOUTU = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，\u3001-〿︰-﹏]+|[ㄅ-ㄯ]+|" + _KANA_OR_HAN
# Letters that have capitals and smalls, as of some years ago.
_LETTERS_WITH_CASE = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

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
_deepseek_v3 = WordRule((r"\p{N}{1,3}", _KANA_OR_HAN, _DEEPSEEK_WORDS))
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
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _dbrx),
    **dict.fromkeys(("glm4", "glm5"), WordRule((_LLAMA3,), whole_words_first=True)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), _qwen2),
    **dict.fromkeys(("solar-open", "grok-2", "kormo", "f2llmv2"), _qwen2),
    "qwen35": WordRule((_QWEN35,)),
    "ufakzeka": WordRule((_QWEN2.removeprefix(_CONTRACTIONS),)),
    "seed-coder": WordRule((_SEED,)),
    "tekken": WordRule((_TEKKEN,), whole_words_first=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"), _gpt4o),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _bailing),
    "exaone-moe": WordRule((_EXAONE_MOE,)),
    "superbpe": WordRule((r"\p{N}+", _TRIPLES.replace(r"\p{N}", r"\d"))),
    "minicpm5": WordRule((r"\p{N}{1,3}", _MINICPM5), whole_words_first=True),
    "laguna": WordRule((_LINES, _QWEN2)),
    "afmoe": WordRule((_TRIPLES, _ASIAN, _DEEPSEEK_WORDS)),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), _bloom),
    "viking": WordRule((_BLOOM, r"\p{N}")),
    "kimi-k2": WordRule((_KIMI,)),
    "youtu": WordRule((_SCRIPTS_OF_YOUTU, _UNCASED_DIGITS), whole_words_first=True),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), WordRule((_TRIPLES, _UNCASED))),
    "granite-embed-multi-97m": WordRule((_CASED,), whole_words_first=True),
    "jais-2": WordRule((_JAIS2,)),
    "chameleon": WordRule((*_CHAMELEON_FIRST, _GPT2), add_bos=True),
    "whitespace": WordRule((r"\S+",), as_written=True),
    "deepseek-llm": WordRule(
        (
            r"[\r\n]",
            rf"\s?[{_LETTERS_WITH_CASE}]+",
            "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
            r"(?<!\s)\s+\z",  # so that a run of blanks is gone through once
            _CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": WordRule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _deepseek_v3),
}

# That of tokenizer.ggml.model "gemma4", which is merged line by line.
GEMMA4 = WordRule((_LINES,), add_bos=True, as_written=True, separated=True)
