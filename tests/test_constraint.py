"""Texts that are held to a JSON schema or a grammar."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from drawn import BPE, CONTROLS, TOKENIZERS, allowed, written
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, validate
from tiny_models import speaker
from vocabularies import CONTROL, MERGES, byte_level

import mmrt
from mmrt.text.constraint import Constraint, vocabulary
from mmrt.text.grammar import Grammar, OneOf, Until, json_by
from mmrt.text.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


SCHEMAS: list[Any] = [
    PERSON,
    {"type": "array", "items": {"enum": ["a", 1, None, True]}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-c]{2,4}$"}]},
    {"oneOf": [{"type": "integer", "multipleOf": 3}, {"type": "string", "maxLength": 2}]},
    {"type": "number", "exclusiveMinimum": 0},
    {"type": "number", "minimum": -1.5, "maximum": 2.25},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 7}]},
    {
        "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}},
        "$ref": "#/$defs/n",
    },
    {"prefixItems": [{"type": "boolean"}, {"const": {"x": [1]}}], "items": False, "type": "array"},
    {
        "type": "object",
        "patternProperties": {"^a": {"type": "null"}},
        "additionalProperties": False,
    },
    {"type": "string", "format": "date"},
    {"type": ["string", "null"], "title": "a note", "default": None, "$comment": "is no rule"},
    {},
]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_whatever_is_drawn_is_valid(kind: str, schema: Any) -> None:
    texts = [written(TOKENIZERS[kind], (json_by(schema),), seed) for seed in range(12)]
    whole = [text for text in texts if text is not None]
    assert len(whole) > 4
    for text in whole:
        validate(json.loads(text), schema, Draft202012Validator)


LEAVES = st.sampled_from(
    [
        *({"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"enum": ["ab", "ba", 0]}),
        *({"type": "string", "maxLength": 3}, {"type": "string", "pattern": "^a+b$"}),
        *({"type": "number", "minimum": 0.5}, {"type": "integer", "minimum": -3, "maximum": 4}),
    ]
)
SCHEMES = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda item: {"type": "array", "items": item, "maxItems": 2}, inner)
        | st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(
            lambda named, needed: {
                "type": "object",
                "properties": named,
                "required": [name for name in named if needed & 1 << ord(name) - ord("a")],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.integers(0, 7),
        )
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(SCHEMES, st.integers(0, 1 << 30), st.sampled_from(sorted(TOKENIZERS)))
def test_whatever_is_drawn_is_valid_by_any_schema(schema: Any, seed: int, kind: str) -> None:
    text = written(TOKENIZERS[kind], (json_by(schema),), seed)
    if text is not None:
        validate(json.loads(text), schema, Draft202012Validator)


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"not": {"type": "string"}}, 'json_schema: Unimplemented keys: ["not"]'),
        ({"properties": {"a": {"if": {}}}}, '["if"]'),
        ({"type": "array", "uniqueItems": True}, '["uniqueItems"]'),
        ({"type": "string", "format": "secret"}, "Unknown format: secret"),
        ({"type": "thing"}, "Invalid type: thing"),
        ({"$ref": "#/$defs/a"}, "'/$defs/a' does not exist"),
        ({"$ref": "https://example.org/a"}, "example.org"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater"),
        ({"not": {}, "x-guidance": {"lenient": True}}, '["not"]'),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "numbers with two bounds"),
        ({"anyOf": [{"allOf": [{"minimum": 0}, {"exclusiveMaximum": 1}]}]}, "two bounds"),
        ({"minimum": 0, "anyOf": [{"exclusiveMaximum": 1}]}, "two bounds"),
        (False, "json_schema: false allows nothing"),
        ("false", "json_schema: false allows nothing"),
        ("{", "json_schema: no JSON"),
        ("[]", "json_schema: expected a JSON schema"),
        (3, "json_schema: expected a JSON schema"),
        ({"const": {1, 2}}, "json_schema: no JSON"),
        ({"minimum": float("nan")}, "json_schema: no JSON"),
        ({"title": "x" * (1 << 20)}, "more than the limit"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_held_is_refused_by_name(schema: Any, complaint: str) -> None:
    with pytest.raises(mmrt.ArgumentError) as raised:
        Constraint(BPE, (json_by(schema),), "json_schema")
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value) and "x-guidance" not in str(raised.value)


def test_depth_has_a_limit() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(mmrt.ArgumentError, match="nested deeper than 100"):
        json_by(deep)
    with pytest.raises(mmrt.ArgumentError, match="json_schema: n"):
        json_by('{"items":' * 50000 + "{}" + "}" * 50000)


def test_a_bool_and_text_are_schemas_too() -> None:
    for schema in (True, "true", "{}"):
        text = written(BPE, (json_by(schema),), 1)
        assert text is not None and json.loads(text) is not NotImplemented
    assert json_by(json.dumps(PERSON)) == json_by(PERSON)


def test_parts_of_a_grammar() -> None:
    grammar: Grammar = (
        OneOf((("a",), ("b", Until("<|mark|>")))),
        OneOf(((" c",), ())),
        "<|mark|>",
        json_by({"type": "boolean"}),
    )
    texts = {written(BPE, grammar, seed, 300) for seed in range(20)}
    for text in texts - {None}:
        assert text is not None
        start, *_, end = text.split("<|mark|>")
        assert start.removesuffix(" c") == "a" or start.startswith("b")
        assert end in ("true", "false")
    assert any(text and text.startswith("a c<|mark|>") for text in texts)
    constraint = Constraint(BPE, ("<|mark|>",))
    assert allowed(constraint, BPE) == [BPE.vocab_size - 2]
    constraint = Constraint(BPE, (Until("</a>"), json_by({"type": "boolean"})))
    for token in BPE.encode("x <|im_end|> </b</a>", False, parse_special=False):
        assert token in allowed(constraint, BPE)
        constraint.take(token)
    assert {BPE.token_bytes(token)[:1] for token in allowed(constraint, BPE)} == {b"t", b"f"}


def test_without_an_end_token_a_text_ends_with_its_json() -> None:
    endless = Tokenizer.from_metadata(byte_level(MERGES, []), "endless")
    assert not endless.stop_ids
    text = written(endless, (json_by(PERSON),), 3)
    assert text is not None
    validate(json.loads(text), PERSON)


def test_a_vocabulary_that_lacks_what_is_needed() -> None:
    metadata = byte_level(MERGES, CONTROLS, eos_token_id=0)
    texts = metadata["tokenizer.ggml.tokens"]
    texts[texts.index("{")] = "<brace>"
    tokenizer = Tokenizer.from_metadata(metadata, "poor")
    with pytest.raises(mmrt.UnsupportedError, match="has no token for "):
        Constraint(tokenizer, (json_by(PERSON),))


def test_tokenizers_are_not_kept() -> None:
    import gc
    import weakref

    tokenizer = Tokenizer.from_metadata(byte_level(MERGES, CONTROLS), "gone")
    assert vocabulary(tokenizer) is vocabulary(tokenizer)
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_it_takes_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(mmrt.UnsupportedError, match="pip install llguidance"):
        Constraint(BPE, (json_by(PERSON),))


# ---- models ----


@pytest.fixture
def model(tmp_path: Path) -> Any:
    made = speaker(b"{", b'"', b"a", b'"')
    made.metadata["tokenizer.chat_template"] = "{{ messages[0].content }}"
    with mmrt.Model(made.write(tmp_path / "model.gguf")) as model:
        yield model


ASK: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
SMALL = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 8}, "b": {"enum": [1, 2]}},
    "required": ["b"],
    "additionalProperties": False,
}


def test_all_that_writes_holds_to_a_schema(model: mmrt.Model) -> None:
    for temperature in (0, 5):
        options: dict[str, Any] = {"json_schema": SMALL, "temperature": temperature, "seed": 1}
        with model.engine() as engine:
            handles = [engine.submit("a", **options), engine.submit("a", max_tokens=5)]
            texts = [handle.text() for handle in handles][:1]
        texts += [model.generate("a", **options), model.chat(ASK, **options)]
        texts += model.generate_all(["a", "b"], **options)
        with model.conversation() as conversation:
            texts.append(conversation.say("a", **options))
        for text in texts:
            validate(json.loads(text), SMALL)
            assert text.finish == "stop"
    filtered = model.generate("a", json_schema=SMALL, top_k=1, top_p=0.1, temperature=1.0)
    validate(json.loads(filtered), SMALL)
    assert isinstance(
        json.loads(model.generate("a", json_object=True, seed=2, temperature=5.0)), dict
    )


def test_max_tokens_cut_it(model: mmrt.Model) -> None:
    whole = model.generate("a", json_schema=SMALL)
    cut = model.generate("a", json_schema=SMALL, max_tokens=whole.tokens - 2)
    assert cut.finish == "length" and whole.startswith(cut) and cut != whole


def test_a_schema_that_cannot_be_held_is_refused_at_once(model: mmrt.Model) -> None:
    bad: dict[str, Any] = {"json_schema": {"not": {}}}
    with model.engine() as engine:
        for call in (model.generate, model.stream, engine.submit):
            with pytest.raises(mmrt.ArgumentError, match='Unimplemented keys: \\["not"\\]'):
                call("a", **bad)
    with pytest.raises(mmrt.ArgumentError, match='Unimplemented keys: \\["not"\\]'):
        model.stream_chat(ASK, **bad)
    for options, complaint in (
        ({"json_schema": {}, "json_object": True}, "only one"),
        ({"json_schema": {}, "ignore_eos": True}, "ignore_eos"),
        ({"json_object": 1}, "json_object"),
        ({"grammar": "a"}, "grammar"),
        ({"grammar": (3,)}, "grammar"),
    ):
        with pytest.raises(mmrt.ArgumentError, match=complaint):
            model.stream("a", **options)


THINK = "{{ messages[0].content }}{# </think> #}"
HARMONY = "{# <|channel|><|message|> #}{{ messages[0].content }}<|start|>assistant"
HM = (*("<|channel|>", "analysis", "<|message|>", "Hm", "<|end|>", "<|start|>", "assistant"),)


@pytest.mark.parametrize(
    ("template", "says", "reasoning"),
    [
        (THINK, ("<think>", "Hm", "</think>", "42"), "Hm"),
        (THINK + "<think>\n", ("Hm", "</think>", "\n\n", "42"), "Hm"),
        (THINK, ("42",), ""),
        (HARMONY, (*HM, "42", "<|return|>", "<|call|>"), "Hm"),
    ],
)
def test_a_schema_is_for_the_answer_alone(
    template: str, says: tuple[str, ...], reasoning: str, tmp_path: Path
) -> None:
    made = speaker(*(word.encode() for word in says))
    made.metadata["tokenizer.chat_template"] = template
    texts, kinds = (made.metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    for i, text in enumerate(texts):
        if text.startswith("<|"):
            kinds[i] = CONTROL
    with mmrt.Model(made.write(tmp_path / "model.gguf")) as model:
        answer = model.chat(ASK, json_schema={"type": "integer"}, max_tokens=40)
        assert answer.reasoning == reasoning
        assert isinstance(json.loads(answer), int)


@pytest.mark.parametrize("fixture", ["smollm2_path", "gemma3_path"])
def test_real_models_write_json(fixture: str, request: pytest.FixtureRequest) -> None:
    schema = json.loads(json.dumps(PERSON).replace('"string"', '"string", "maxLength": 12'))
    with mmrt.Model(request.getfixturevalue(fixture)) as model:
        for temperature in (0, 5):
            options: dict[str, Any] = {"temperature": temperature, "seed": 1, "max_tokens": 60}
            text = model.generate("A person in JSON: ", json_schema=schema, **options)
            if text.finish == "stop":
                validate(json.loads(text), schema)
        text = model.generate("Yes or no? ", json_schema={"enum": ["yes", "no"]}, temperature=5)
        assert json.loads(text) in ("yes", "no") and text.finish == "stop"
