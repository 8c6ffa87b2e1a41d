"""Make tokens.json: the token ids that llama.cpp gives for a list of texts.

    python tests/golden/make_tokens.py SMOLLM2.gguf GEMMA3.gguf CODER.gguf

It needs llama-cpp-python and gguf. Besides the models as they are, it asks for variants of the
first two that differ in one field of the metadata, to cover the ways of cutting words that no
model at hand uses.
"""

import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter
from llama_cpp import Llama

from mmrt.text.words import WORD_RULES

TEXTS = [
    "",
    " ",
    "Hello world",
    " leading and trailing ",
    "  two  spaces   three    four     five  ",
    "tabs\tand\t\tmore\t\t\ttabs \t mixed\t ",
    "line\nline\n\nline\n\n\n\nline\r\nline\r\n\r\n",
    " \n \n\n  \n\t\n   x",
    "\n" * 33 + " " * 40 + "\t" * 35,
    "I'm we'll they've he's she'd don't you're I'M WE'LL THEY'VE ''s 'll'",
    "Don’t “quote” — dash… naïve café façade",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 -42 1e-9 0x1F ²³ ½ ٣٤٥ १२३ 四五",
    "def f(x: int) -> str:\n    if x >= 0:\n\t\treturn f'{x!r}'  # note\n    raise ValueError()\n",
    "#include <stdio.h>\nint main(void) { for (;;) { x += *p++ << 3 | ~y ^ 0xFF; } }\n",
    '<html><body class="a"><h1>Title</h1><p>a<br/>b &amp; c</p></body></html>',
    '{"key": [1, 2.5, null, true], "emoji": "\\ud83d\\ude00"}',
    "SELECT * FROM `t` WHERE a<>'b' AND c!=\"d\"; -- $var ^caret |pipe| ~tilde~ +plus=",
    "https://example.org/a/b?c=d&e=f#g user@example.com C:\\dir\\file.txt",
    "CamelCase snake_case SCREAMING_CASE kebab-case x1y2z3 HTTPServer iPhone12",
    "!!! ??? ... ,,, ;;; ::: ### $$$ %%% ^^^ &&& *** ((( ))) --- ___ +++ === ~~~ ```",
    "مرحبا بالعالم، كيف حالك؟ هذا نَصٌّ مُشَكَّل",
    "नमस्ते दुनिया, क्या हाल है? हिन्दी में संयुक्ताक्षर क्ष त्र ज्ञ",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "你好,世界!今天天气怎么样?我们去公园吧。",
    "こんにちは世界。カタカナとひらがなと漢字、全角ＡＢＣ１２３",
    "안녕하세요 세계! 한국어 문장입니다. ㄱㄴㄷ",
    "Привет, мир! Съешь ещё этих мягких французских булок",
    "Γειά σου Κόσμε! Ξεσκεπάζω την ψυχοφθόρα",
    "שלום עולם! עִבְרִית מְנֻקֶּדֶת",
    "Xin chào thế giới, tiếng Việt có nhiều dấu",
    "გამარჯობა Բարեւ ሰላም வணக்கம் ನಮಸ್ಕಾರ မင်္ဂလာပါ",
    "😀😂🎉 👍🏽 ❤️ 🇫🇷🇯🇵 1️⃣",
    "👨‍👩‍👧‍👦 👩🏿‍🚀 🏳️‍🌈 🧑‍💻",
    "e\u0301 a\u0308 n\u0303 Z\u0351\u036b\u0343\u036a A\u030a\u0301 \u0301alone",
    "\u1e9b\u0323 \ufb01 \u2126 \u212b ﷺ Ⅷ ㍿ ｶﾞ",
    "\x00\x01\x02\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f\x80\x85\x9f",
    "nbsp\u00a0thin\u2009zero\u200bwidth\u2028line\u2029par\u3000ideo\ufeffbom\u00adshy",
    "\u0378 \u05ff \ufdd0 \uffff \U0001fffe \U000e0001 \U0010ffff \U000f0000",
    "\u202eright to left override\u202c \u2066isolate\u2069 a\u200db",
    "𝒳𝓎𝓏 𝟘𝟙𝟚 𐍈𐌰 𓀀𓂀 𠀀𠮷 🜁",
    "▁already▁escaped ▁ Ġ Ċ <0x0A> <0xFF> >▁</ > </b>",
    "a" * 300 + "Donaudampfschifffahrtsgesellschaftskapitän" * 6,
    "<|im_start|>user\nHello<|im_end|>\n<|endoftext|><|im_start|> x <|im_end|> y",
    "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n<eos><unused7><pad>",
    "<s>[INST] hi [/INST]</s> <unk> <mask> [multimodal] <|eot_id|> <|im_end <|im_end|",
    "text<h1>heading</h1>\n\n\n<table><tr><td>  x  </td></tr></table> <strong>s</strong>",
    "word\u0000word and \ufffd replacement \ufffd\ufffd",
    "The quick brown fox jumps over the lazy dog. " * 5,
    "a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F",
    "don't'll've  'tis 'Twas rock'n'roll O'Neill's 's' 't 're",
    "fin.\n\n  - item\n  - item 2\n\n1. one\n2. two\n\n> quote\n\n```py\nx = 1\n```\n",
    "$E = mc^2$, \\frac{a}{b} ∑ᵢ xᵢ² ≤ ∞ → ∀x∈ℝ: ¬p ∧ q ≈ ±½ €10 £5 ¥100",
    "ǅungla ʰaspirated ªº ſ K'S I'ſ it'ſ",
    "fn main() {\n    let v: Vec<u32> = (1..=10).filter(|x| x % 2 == 0).collect();\n}\n",
    "func (s *Server) Serve(l net.Listener) error {\n\tif err != nil {\n\t\treturn err\n\t}\n}",
    "public static void main(String[] args) { List<? extends T> l = new ArrayList<>(); }",
    "const f = async ({a, ...rest}) => `${a ?? 'none'}: ${await g(rest)}`; // ok\n",
    "main = do\n  xs <- traverse readMaybe <$> getLine\n  print $ foldl' (+) 0 xs\n",
    "template <typename T>\nauto operator<=>(const T&, const T&) = default;\n",
    "SELECT id, COUNT(*) AS n\nFROM t LEFT JOIN u USING (id)\nGROUP BY 1 HAVING n > 10;\n",
    "for f in *.{c,h}; do sed -i 's/\\bfoo\\b/bar/g' \"$f\" && echo ${f%.c}; done 2>&1 | tee log\n",
    "<?php $x = ['a' => 1]; foreach ($x as $k => $v) { echo \"$k=$v\\n\"; } ?>",
    "class A:\n    @property\n    def x(self) -> list[int]:\n        return {**self._x}\n\n\n",
    "   \n12345678 1234567 123456 12 345,678.90\t٣٤٥٦٧\n",
    "x.y,z;w:v!u?t(s)r[q]p{o}n<m>l/k\\j|i-h_g=f+e*d&c^b%a$@#`~",
]

PRE = "tokenizer.ggml.pre"
SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"

# The model's own, and one that llama.cpp aborts on where two spaces follow each other.
NO_VARIANTS = {"smollm", "whitespace"}

# name -> (model, changed metadata)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    f"pre {pre}": ("smollm2", {PRE: pre}) for pre in WORD_RULES if pre not in NO_VARIANTS
} | {"space prefix": ("gemma3", {SPACE_PREFIX: True})}


@cache
def tokenizer_of(source: Path) -> tuple[str, dict[str, tuple[Any, ...]]]:
    """The architecture, and of each field of the tokenizer its value and types."""
    fields = GGUFReader(source).fields
    values = {
        name: (field.contents(), *field.types)
        for name, field in fields.items()
        if name.startswith("tokenizer.")
    }
    return fields["general.architecture"].contents(), values


def write_vocabulary(source: Path, changes: dict[str, Any], target: Path) -> None:
    """A GGUF file without tensors: `source`'s tokenizer with some fields changed."""
    architecture, values = tokenizer_of(source)
    writer = GGUFWriter(target, architecture)
    for name, (value, value_type, *element_type) in values.items():
        if name not in changes:
            writer.add_key_value(name, value, value_type, *element_type[-1:])
    for name, value in changes.items():
        writer.add_key_value(name, value, GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def tokenize(path: Path, special: bool, add_bos: bool = False) -> list[list[int]]:
    model = Llama(str(path), vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=add_bos, special=special) for text in TEXTS]


def main() -> None:
    models = dict(zip(("smollm2", "gemma3", "coder"), map(Path, sys.argv[1:]), strict=True))
    golden: dict[str, Any] = {"texts": TEXTS, "models": {}, "variants": {}}
    for name, path in models.items():
        golden["models"][name] = {
            "special": tokenize(path, special=True),
            "plain": tokenize(path, special=False),
            "bos": tokenize(path, special=True, add_bos=True),
        }
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, changes) in VARIANTS.items():
            path = Path(folder) / "vocabulary.gguf"
            write_vocabulary(models[model], changes, path)
            ids = tokenize(path, special=True)
            before = golden["variants"].items()
            same = next((other for other, v in before if v["special"] == ids), None)
            golden["variants"][name] = {
                "model": model,
                "changes": changes,
                "special": same or ids,  # a name: as that variant's
            }
    target = Path(__file__).with_name("tokens.json")
    target.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
