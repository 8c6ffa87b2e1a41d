"""What callers may pass: wrong kinds are named, and numbers of NumPy are numbers."""

import errno
import pickle
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from test_chat import CHATML

import mmrt
from mmrt import default_model, errors
from mmrt.core.kernels import Pool
from mmrt.errors import ArgumentError
from mmrt.run.sampler import Sampler

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_models.llama(type="Q8_0", context=100)
    model.metadata["tokenizer.chat_template"] = CHATML
    return model.write(tmp_path_factory.mktemp("arguments") / "m.gguf")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[mmrt.Model]:
    with mmrt.Model(path) as model:
        yield model


# ---- numbers ----


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int16, np.array])
def test_counts_of_numpy(path: Path, kind: Callable[[int], Any]) -> None:
    memory: Any = np.int64(1 << 30)
    with mmrt.Model(path, threads=kind(1), context=kind(60), memory=memory) as model:
        assert (model.threads, model.context) == (1, 60)
        options = {"max_tokens": kind(3), "top_k": kind(2), "repeat_last_n": kind(5)}
        text = model.generate([kind(5)] if kind is not np.array else [5], seed=kind(1), **options)
        assert text.tokens == 3
        with model.sequence() as sequence:
            sequence.extend(np.arange(5))
            sequence.truncate(kind(3))
            assert len(sequence) == 3
    assert Pool(kind(2)).threads == 2


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, Fraction])
def test_numbers_of_numpy(model: mmrt.Model, kind: Callable[[float], Any]) -> None:
    options = {"temperature": kind(0.5), "top_p": kind(0.75), "min_p": kind(0.125)}
    options["repeat_penalty"] = kind(1.25)
    plain: dict[str, Any] = {name: float(value) for name, value in options.items()}
    given = model.generate("abc", max_tokens=9, seed=1, **options)
    assert given == model.generate("abc", max_tokens=9, seed=1, **plain)


def test_texts_of_numpy(model: mmrt.Model) -> None:
    said = [{"role": np.str_("user"), "content": np.str_("Hello")}]
    assert model.chat(said, max_tokens=4) == model.chat(HELLO, max_tokens=4)
    assert model.generate(np.str_("abc"), max_tokens=4) == model.generate("abc", max_tokens=4)


COUNTS = ("max_tokens", "top_k", "repeat_last_n", "seed")
NUMBERS = (
    *("temperature", "top_p", "min_p"),
    *("repeat_penalty", "presence_penalty", "frequency_penalty"),
)
OTHERS: dict[str, list[Any]] = {
    "stop": ["text", [1], [""], 3, b"x"],
    "on_prefill": [3, "f"],
    "sequence": [3, "s", [1, 2]],
}
WRONG = [
    *((name, value) for name in COUNTS for value in (True, np.bool_(1), 1.5, "3", [1], -2, b"1")),
    *((name, value) for name in NUMBERS for value in (True, np.bool_(1), "0.5", [1], -2e6)),
    *(
        (name, value)
        for name in NUMBERS
        for value in (10**400, float("nan"), float("inf"), 1j, None)
    ),
    *((name, value) for name, values in OTHERS.items() for value in values),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_options_that_make_no_sense_are_named(model: mmrt.Model, name: str, value: Any) -> None:
    calls: list[Callable[..., Any]] = [model.generate, model.stream]
    calls += [lambda prompt, **o: model.chat(HELLO, **o)]
    if name != "sequence":
        calls.append(lambda prompt, **options: model.generate_all([prompt], **options))
    for call in calls:
        with pytest.raises(ArgumentError, match=name):
            call("abc", **{name: value})


@pytest.mark.parametrize("penalty", [1e-40, 1e300, 0, 1e-7])
def test_penalties_that_overflow(penalty: float) -> None:
    with pytest.raises(ArgumentError, match="repeat_penalty"):
        Sampler(repeat_penalty=penalty)


@pytest.mark.parametrize("penalty", [1e-6, 1e6])
@pytest.mark.filterwarnings("error")
def test_the_furthest_penalties_are_exact(penalty: float) -> None:
    logits = np.array([3e38, -3e38, 1, 0, -1], np.float32)
    for temperature in (0.0, 1.0):
        sampler = Sampler(temperature=temperature, repeat_penalty=penalty, seed=0)
        ids, odds = sampler.distribution(logits, [0, 1, 2, 3, 4])
        assert ids[odds.argmax()] == 0 and np.isfinite(odds).all()


def test_unknown_options_are_named(model: mmrt.Model) -> None:
    calls: list[Any] = [model.generate, model.stream, lambda p, **o: model.chat(HELLO, **o)]
    for call in calls:
        with pytest.raises(ArgumentError, match=r"'max_token'; did you mean 'max_tokens'"):
            call("abc", max_token=3)
        with pytest.raises(TypeError):
            call("abc", nonsense=3)


# ---- prompts, paths and the rest ----


@pytest.mark.parametrize("prompt", [b"hello", bytearray(b"x"), memoryview(b"x"), None, 3, [True]])
def test_what_is_no_prompt(model: mmrt.Model, prompt: Any) -> None:
    for call in (model.generate, lambda p: model.generate_all([p]), model.logits):
        with pytest.raises(ArgumentError):
            call(prompt)
    with pytest.raises(ArgumentError):
        model.generate_all(prompt)


def test_a_text_is_no_list_of_prompts(model: mmrt.Model) -> None:
    with pytest.raises(ArgumentError, match="prompts: expected a list"):
        model.generate_all("abc")


@pytest.mark.parametrize("text", [b"x", None, 3, ["a"]])
def test_what_is_no_text(model: mmrt.Model, text: Any) -> None:
    with pytest.raises(ArgumentError, match="text: expected a str"):
        model.tokenize(text)


@pytest.mark.parametrize("ids", [None, 3, "abc", b"abc", [1.5], ["a"]])
def test_what_is_no_list_of_ids(model: mmrt.Model, ids: Any) -> None:
    with pytest.raises(ArgumentError):
        model.detokenize(ids)
    with model.sequence() as sequence, pytest.raises(ArgumentError):
        sequence.extend(ids)


FLAGS = ["false", "", 0, 1, None, [True]]


@pytest.mark.parametrize("value", FLAGS)
def test_what_is_no_truth_value(path: Path, model: mmrt.Model, value: Any) -> None:
    calls: dict[str, list[Callable[..., Any]]] = {
        "exact": [lambda **o: mmrt.Model(path, **o)],
        "ignore_eos": [
            lambda **o: model.generate("a", **o), lambda **o: model.chat(HELLO, **o),
            lambda **o: model.generate_all(["a"], **o),
        ],
        "parse_special": [
            lambda **o: model.generate("a", **o), lambda **o: model.generate([5], **o),
            lambda **o: model.generate_all(["a"], **o), lambda **o: model.tokenize("a", **o),
            lambda **o: model.tokenizer.encode("a", **o),
        ],
        "add_bos": [lambda **o: model.tokenize("a", **o)],
        "skip_special": [lambda **o: model.tokenizer.decode([5], **o)],
        "add_generation_prompt": [
            lambda **o: model.render_chat(HELLO, **o), lambda **o: model.chat_tokens(HELLO, **o),
            lambda **o: model.chat(HELLO, chat_template_kwargs=o),
        ],
    }  # fmt: skip
    for name, calling in calls.items():
        for call in calling:
            with pytest.raises(ArgumentError, match=f"^{name}: expected True or False, found "):
                call(**{name: value})


def test_truth_values_of_numpy(path: Path, model: mmrt.Model) -> None:
    true: Any = np.True_
    assert model.tokenize("a", add_bos=~true) == model.tokenize("a", add_bos=False)
    text = model.generate("abc", max_tokens=4, ignore_eos=true, parse_special=true)
    assert text == model.generate("abc", max_tokens=4, ignore_eos=True)
    with mmrt.Model(path, exact=true) as exact:
        assert exact.generate("abc", max_tokens=1).tokens == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tools": "x"}, r"tools: expected a list of dicts, found 'x'"),
        ({"tools": 5}, r"tools: expected a list of dicts, found 5"),
        ({"tools": {"type": "function"}}, r"tools: expected a list of dicts, found \{'type'"),
        ({"tools": [{}, 3]}, r"tools\[1\]: expected a dict, found 3"),
        ({"chat_template_kwargs": 5}, "chat_template_kwargs: expected a dict of variables, found"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs: expected a dict of variables"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs: expected a dict of variables"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs: expected a dict of variables"),
        ({"chat_template_kwargs": {5: 3}}, "5 is no variable"),
        ({"chat_template_kwargs": {"messages": 3}}, "'messages' is no variable"),
        ({"chat_template_kwargs": {"a": object()}}, "a: expected text, numbers, lists and dicts"),
    ],
)
def test_what_templates_cannot_be_given(
    model: mmrt.Model, options: dict[str, Any], complaint: str
) -> None:
    for call in (model.chat, model.stream_chat):
        with pytest.raises(ArgumentError, match=complaint):
            call(HELLO, **options)


@pytest.mark.parametrize("messages", [None, 5, "x", {"role": "user"}, iter(HELLO)])
def test_what_are_no_messages(model: mmrt.Model, messages: Any) -> None:
    for call in (model.chat, model.stream_chat, model.render_chat, model.chat_tokens):
        with pytest.raises(ArgumentError, match="messages: expected a list of messages"):
            call(messages)


def test_content_that_is_none(model: mmrt.Model) -> None:
    with pytest.raises(ArgumentError, match=r"messages\[0\]: 'content' must be .*, found None"):
        model.chat([{"role": "user", "content": None}])
    silent: list[dict[str, Any]] = [*HELLO, {"role": "assistant", "content": None}, *HELLO]
    with pytest.raises(ArgumentError, match=r"messages\[1\]: 'content' is None, which the chat"):
        model.chat(silent)  # CHATML puts texts together with +


def test_a_misspelt_setting_of_a_sampler() -> None:
    with pytest.raises(ArgumentError, match="'temprature'; did you mean 'temperature'"):
        Sampler(temprature=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("token", [1.5, "a", None, True, -1, 300, [1]])
def test_what_is_no_token(model: mmrt.Model, token: Any) -> None:
    known = model.tokenizer
    for call in (known.token_bytes, known.is_special, lambda t: known.decode([t])):
        with pytest.raises(ArgumentError, match=r"token: .* is not a whole number from 0 to 299"):
            call(token)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "chat_template": [5, b"x", ["x"]],
        "threads": [0, -1, True, "2", 1.5],
        "context": [0, 101, True, "50"],
        "memory": [0, -1, True, 1.5, [1], "much"],
        "policy": [[], None, "lazzy", 3],
        "reader": [[], "disk", 3],
        "kv_k": [3, None, "f32"],
        "kv_v": [[], "q4_0"],
    }.items(),
)
def test_a_model_names_what_makes_no_sense(path: Path, name: str, values: list[Any]) -> None:
    for value in values:
        if name == "memory" and value is None:
            continue
        with pytest.raises(ArgumentError, match=name):
            mmrt.Model(path, **{name: value})


@pytest.mark.parametrize("path", [3, [], 1.5])
def test_what_is_no_path(path: Any) -> None:
    for opens in (mmrt.Model, mmrt.open):
        with pytest.raises(ArgumentError, match="path: expected"):
            opens(path)
    with pytest.raises(ArgumentError, match="path: expected"):
        mmrt.open(None)  # type: ignore[arg-type]


def test_without_a_path_it_is_the_default_model(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "path", lambda: path)
    with mmrt.Model() as model:
        assert model.path == str(path)


# ---- files, mappings and the compiled core ----


def test_what_files_are_not_asked_for(path: Path) -> None:
    odd: Any
    with mmrt.open(path) as file:
        for odd in (5, None, [], {}):
            assert odd not in file and file.get(odd, 3) == 3
            with pytest.raises(mmrt.NotFoundError, match="has no tensor"):
                file[odd]
        calls: dict[str, list[Callable[[], Any]]] = {
            "layers: expected a str, found 5": [lambda: file.select(odd)],
            "tensors: expected a list of texts": [
                lambda: file.select(tensors=odd), lambda: file.select(tensors="*"),
            ],
            "names: expected a list of texts": [
                lambda: file.warm(odd), lambda: file.evict(odd), lambda: file.warm("a"),
            ],
            "names: expected a str, found 5": [lambda: file.warm([odd])],
            "progress: 5 cannot be called": [lambda: file.warm(None, odd)],
            "type: expected a str, found 5": [lambda: mmrt.quantize(path, path, odd)],
            "repository: expected a str, found 5": [lambda: mmrt.hub.path(odd)],
        }  # fmt: skip
        odd = 5
        for complaint, calling in calls.items():
            for call in calling:
                with pytest.raises(ArgumentError, match=f"^{complaint}"):
                    call()


PLACES: list[Any] = ["a", 1.5, True, [1], b"1"]


@pytest.mark.parametrize("place", [*PLACES, None])
def test_ranges_of_mappings_are_whole_numbers(path: Path, place: Any) -> None:
    with mmrt.Mapping(path) as mapping:
        calls: list[Callable[..., Any]] = [
            mapping.verify, mapping.lock, mapping.unlock, mapping.flush, mapping.residency,
            mapping.mapped, lambda *a: mapping.advise("normal", *a),
            lambda *a: mapping.advise_file("normal", *a),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(ArgumentError, match=r"^offset: .* is not a whole number"):
                call(place)
            if place is not None:
                with pytest.raises(ArgumentError, match=r"^length: .* is not a whole number"):
                    call(0, place)
        assert mapping.views == 0
        offset: Any = np.int64(0)
        assert mapping.residency(offset, offset + 10).total == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        *(({"offset": place}, "offset: .* is not a whole number") for place in PLACES),
        *(({"length": place}, "length: .* is not a whole number") for place in PLACES),
        *(({"address": place}, "address: .* is not a whole number") for place in PLACES),
        ({"flags": 5}, "flags: expected words, found 5"),
        ({"flags": [5]}, "flags: expected a str, found 5"),
        ({"protection": []}, "protection is 'r' or 'rw'"),
        ({"file": 1.5}, "file: expected that of a file, found 1.5"),
        ({"file": [1]}, "file: expected that of a file"),
    ],
)
def test_what_mappings_are_not_made_of(
    path: Path, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ArgumentError, match=complaint):
        mmrt.Mapping(**{"file": path, **arguments})


def test_what_tensors_are_not_made_of(path: Path) -> None:
    right: dict[str, Any]
    with mmrt.Mapping(path) as mapping:
        right = {"mapping": mapping, "name": "t", "type": "F32", "shape": (2,), "offset": 0}
        wrong: dict[str, list[Any]]
        wrong = {"mapping": [None, 5], "name": [None, 5], "type": [None, 5, []]}
        wrong |= {"shape": [5, None, ("a",), (1.5,), "ab"], "offset": PLACES}
        for name, values in wrong.items():
            for value in values:
                with pytest.raises(ArgumentError, match=f"^{name}: "):
                    mmrt.Tensor(**{**right, name: value})
        tensor = mmrt.Tensor(**{**right, "shape": [np.int64(2)], "offset": np.uint8(4)})
        assert (tensor.shape, tensor.offset) == ((2,), 4)
        for rows in (slice("a", None), slice(1.5), 1.5, "a"):
            with pytest.raises(ArgumentError, match="tensor 't': "):
                tensor[rows]  # type: ignore[index]


def test_what_the_core_cannot_be_given(path: Path) -> None:
    numbers = np.ones(2)
    odd: Any = 5
    text: Any = "x"
    with mmrt.Model(path) as model, mmrt.Mapping(path) as mapping:
        program, weight = model.program, model.file["blk.0.attn_q.weight"]
        calls: list[Callable[[], Any]] = [
            lambda: mmrt.kernels.matmul(odd, bytes(8), (1, 2), numbers),
            lambda: mmrt.kernels.matmul("F32", odd, (1, 2), numbers),
            lambda: mmrt.kernels.matmul("F32", bytes(8), odd, numbers),
            lambda: mmrt.kernels.matmul("F32", bytes(8), (text, 2), numbers),
            lambda: mmrt.kernels.matmul("F32", bytes(8), (1, 2), numbers, odd),
            lambda: mmrt.kernels.roof(odd), lambda: mmrt.kernels.roof("read", odd),
            lambda: mmrt.kernels.roof("int8", None, odd),
            lambda: mmrt.quant.dequantize(odd, bytes(8), 1),
            lambda: mmrt.quant.dequantize("F32", odd, 1),
            lambda: mmrt.quant.dequantize("F32", bytes(8), text),
            lambda: mmrt.quant.dequantize("F32", bytes(8), 10**30),
            lambda: weight.quantize(odd), lambda: weight.quantize("Q8_0", text),
            lambda: weight.quantize("Q8_0", 0, text),
            lambda: weight.quantize("Q8_0", 0, None, odd),
            lambda: mmrt.numa.page_nodes(odd), lambda: mmrt.numa.page_nodes(bytes(8), text),
            lambda: mmrt.numa.bind_pool(odd), lambda: mmrt.numa.bind_pool(None),  # type: ignore
            lambda: mmrt.numa.place(odd, []), lambda: mmrt.numa.place(mapping, odd),
            lambda: mmrt.numa.place(mapping, [odd]), lambda: mmrt.numa.set_policy(odd),
            lambda: mmrt.numa.place(mapping, [(0, text, 0)]),
            lambda: mmrt.numa.set_policy("bind", text), lambda: mmrt.numa.bind(odd, "default"),
            lambda: program.shares(odd), lambda: program.set_reader(odd),
            lambda: program.plan(text), lambda: program.plan(-1),
            lambda: program.set_budget(10**30), lambda: program.step_bytes(text),
        ]  # fmt: skip
        for number, call in enumerate(calls):
            with pytest.raises(ArgumentError) as caught:
                call()
            assert str(caught.value), number


# ---- errors ----


def test_every_error_is_an_mmrt_error_and_a_builtin_one() -> None:
    found = {name: error for name, error in vars(errors).items() if name.endswith("Error")}
    assert len(found) > 8
    for name, error in found.items():
        assert issubclass(error, errors.MmrtError) and getattr(mmrt, name) is error
        if error is not errors.MmrtError:
            builtin = [base for base in error.__mro__ if base.__module__ == "builtins"]
            assert len(builtin) > 3, name  # more than Exception, BaseException, object


def test_missing_files_are_missing_to_all(tmp_path: Path) -> None:
    calls: list[Callable[[Path], Any]]
    calls = [mmrt.open, mmrt.Model, mmrt.Mapping, mmrt.os_info, mmrt.counters.of_file]
    calls.append(lambda path: mmrt.quantize(path, tmp_path / "out.gguf", "Q8_0"))
    for call in calls:
        for place in ("none.gguf", "no/such/folder"):
            for kind in (FileNotFoundError, mmrt.MissingFileError, mmrt.FileError):
                with pytest.raises(kind, match=place) as caught:
                    call(tmp_path / place)
            assert caught.value.errno == errno.ENOENT
            assert type(pickle.loads(pickle.dumps(caught.value))) is mmrt.MissingFileError


def test_a_folder_that_is_missing(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot be created: No such file"):
        mmrt.quantize(path, tmp_path / "none" / "out.gguf", "Q8_0")


def test_errors_of_files_are_those_of_their_number() -> None:
    kinds = {errno.ENOENT: FileNotFoundError, errno.EACCES: PermissionError, errno.EIO: OSError}
    for number, kind in kinds.items():
        error = mmrt.FileError(number, "no")
        assert isinstance(error, kind) and isinstance(error, mmrt.FileError)
        assert (error.errno, str(error)) == (number, f"[Errno {number}] no")
        assert isinstance(error, FileNotFoundError) == (number == errno.ENOENT)
    assert type(mmrt.FileError("no")) is type(mmrt.FileError(errno.EIO, "no")) is mmrt.FileError
    assert str(mmrt.MissingFileError("none is missing")) == "none is missing"


@pytest.mark.parametrize("value", [5, 1.5, ["x"], None])
def test_what_is_no_path_of_a_file(value: Any) -> None:
    with pytest.raises(ArgumentError, match="path: expected that of a file"):
        mmrt.counters.of_file(value)
    if value is not None:
        with pytest.raises(ArgumentError, match="path: expected that of a file"):
            mmrt.os_info(value)


def test_missing_tensors_are_key_errors(path: Path) -> None:
    with mmrt.open(path) as file:
        for kind in (KeyError, mmrt.NotFoundError):
            with pytest.raises(kind, match=r"has no tensor 'blk\.0\.attn_qq\.weight'; did you"):
                file["blk.0.attn_qq.weight"]
        with pytest.raises(mmrt.NotFoundError) as caught:
            file["none"]
        assert str(caught.value) == f"{path} has no tensor 'none'"


# ---- closed models, and what things say of themselves ----


def test_a_closed_model_says_so(path: Path) -> None:
    model = mmrt.Model(path)
    sequence = model.sequence()
    conversation = model.conversation()
    stream = model.stream("abc")
    model.close()
    model.close()
    calls: list[Callable[[], Any]] = [
        lambda: model.generate("abc"), lambda: model.stream("abc"), lambda: model.stream([1]),
        lambda: model.generate_all(["abc"]), lambda: model.chat(HELLO),
        lambda: model.stream_chat(HELLO), lambda: model.render_chat(HELLO),
        lambda: model.chat_tokens(HELLO), lambda: model.logits([1]), lambda: model.tokenize("a"),
        lambda: model.detokenize([1]), lambda: model.tokenizer, model.sequence,
        model.conversation, model.__enter__, lambda: sequence.extend([1]),
        lambda: conversation.say("abc"), lambda: next(stream),
        lambda: model.generate("a", sequence=sequence),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ArgumentError, match=r"m\.gguf: the model is closed"):
            call()
    assert "closed" in repr(model)


def test_reprs_are_short(path: Path) -> None:
    with mmrt.Model(path) as model, model.sequence() as sequence:
        sequence.extend([1, 2, 3])
        stream = model.stream("abc", max_tokens=3)
        file = model.file
        things = [
            model, sequence, model.tokenizer, model.program, Sampler(), Pool(1), file, stream,
            file["output_norm.weight"], file["output_norm.weight"].residency(), file.residency(),
            model.conversation(),
        ]  # fmt: skip
        for thing in things:
            assert type(thing).__name__ in repr(thing) or thing is file
            assert " at 0x" not in repr(thing) and len(repr(thing)) < 300
        assert repr(sequence).startswith("<Sequence of 3 tokens, ")
        assert repr(Sampler(top_k=3)).startswith("Sampler(temperature=0.0, top_k=3, ")
        assert repr(stream) == "<Stream of 0 tokens after 1, going on>"
        stream.text()
        assert repr(stream) == "<Stream of 3 tokens after 1, ended: length>"
