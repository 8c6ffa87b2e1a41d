"""The page at /: how it is served, what its files hold, and how it works in a browser."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import devtools
import pytest
from conftest import ROOT
from served import TEMPLATE, Running, running, write_speaker, write_talker

from mmrt.serving import page
from mmrt.serving.access import Access

FILES = sorted(path for path in (ROOT / "mmrt/serving/page").iterdir())

# What the model says: Markdown, and what would be harmful as HTML.
SAYS = (
    b"Hi",
    b" **there**",
    b"\n\n- one\n- two\n",
    b"\n<img src=x onerror=alert(1)>\n",
    b"```\n1<2\n```",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("models")
    reasons = TEMPLATE.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    models = {
        "speaker": write_speaker(folder / "s.gguf", *SAYS, context=2048),
        "thinker": write_speaker(folder / "t.gguf", b"Hm", b"</think>", b"Yes", template=reasons),
        "endless": write_speaker(folder / "e.gguf", b"so ", ends=False, context=1 << 17),
    }
    with running(models) as found:
        yield found


@pytest.fixture
def tab(server: Running, tmp_path: Path) -> Iterator[devtools.Page]:
    """The page, loaded; after the test it has asked no other host, and complained of nothing."""
    with devtools.page(tmp_path / "profile") as found:
        found.open(server.url)
        found.wait("document.getElementById('model').value")
        yield found
        assert found.value("1") == 1  # what has happened so far is noted
        assert {address.split("/")[2] for address in found.requests} == {f"127.0.0.1:{server.port}"}
        assert found.complaints == []


# ---- how it is served ----


def test_routes_and_headers(server: Running) -> None:
    assert {name for name, _ in page._FILES.values()} == {path.name for path in FILES}
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
    for path, (name, _) in page._FILES.items():
        reply = server.get(path or "/")
        assert (reply.status, reply.body) == (200, (ROOT / "mmrt/serving/page" / name).read_bytes())
        kind = kinds.get(Path(name).suffix, "image/svg+xml")
        assert reply.headers["content-type"].partition(";")[0] == kind
        assert reply.headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-cache"
        head = server.ask("HEAD", path or "/")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(reply.body))
        assert server.post(path or "/", {}).status == 405
    assert server.get("/page/page.js").status == server.get("/page.py").status == 404


def test_the_page_needs_no_key_and_the_rest_does(tmp_path: Path) -> None:
    models = {"speaker": write_speaker(tmp_path / "s.gguf", b"ab")}
    with running(models, access=Access(["secret"])) as server:
        assert server.get("/").status == server.get("/page.js").status == 200
        assert server.get("/sight").status == server.get("/nothing").status == 401
        assert server.get("/sight", Authorization="Bearer secret").status == 200
        assert server.get("/", Host="evil.example").status == 403
        assert server.get("/", Origin="http://evil.example").status == 403


def test_what_sight_tells(tmp_path: Path) -> None:
    models = {"talker": write_talker(tmp_path / "t.gguf"), "b": write_speaker(tmp_path / "b", b"b")}
    with running(models) as server:
        reply = server.chat("a" * 200, model="talker", max_tokens=40)
        first, second = server.get("/sight").json["models"]
        memory, model = first["memory"], server.served("talker").model
        assert (first["name"], second["name"], first["context"]) == ("talker", "b", 2048)
        assert first["texts"] == {"running": 0, "waiting": 0}
        assert first["sampling"] == {"temperature": 0.0}
        assert memory["weights"] == sum(tensor.nbytes for tensor in model.program.weights)
        assert memory["kept"] == memory["weights"] and memory["budget"] is None
        assert memory["kv_page"] == model.store.page_bytes
        read = reply.json["usage"]["total_tokens"] - 1  # all but the last
        assert memory["kv"] == memory["kv_logical"] == -(-read // 32) * memory["kv_page"]
        assert memory["kv_copies"] == 0
        assert server.post("/sight", {}).status == 405


# ---- its files ----


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_ask_no_other_host_and_make_no_html_of_text(path: Path) -> None:
    text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|[\"'(]//|@import|url\(", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser", text)
    assert not re.search(r"\beval\b|\bFunction\(|setTimeout\([\"'`]|javascript:", text)
    if path.suffix == ".html":
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


# ---- in a browser ----

ANSWER = "document.querySelector('.assistant .text')"
ENDED = "document.querySelector('.assistant [data-act=retry]')"
PLACE = "document.querySelector('.assistant .branches')?.textContent"


def ask(tab: devtools.Page, text: str) -> None:
    tab.type(text)
    tab.press("Enter")


def choose(tab: devtools.Page, model: str) -> None:
    tab.value(f"document.getElementById('model').value = {model!r}")


def shown(tab: devtools.Page, of: str = "article") -> list[str]:
    """The texts of the messages that are shown."""
    found: list[str] = tab.value(
        f"[...document.querySelectorAll('{of} .text')].map((one) => one.textContent)"
    )
    return found


@pytest.mark.slow
def test_an_answer_is_drawn_as_nodes(tab: devtools.Page) -> None:
    ask(tab, "<b>Hello</b>")
    tab.wait(ENDED)
    assert shown(tab, ".user") == ["<b>Hello</b>"]
    tags = tab.value(f"[...{ANSWER}.querySelectorAll('*')].map((one) => one.localName).join(' ')")
    assert tags == "p strong ul li li p figure figcaption pre code"
    assert "<img src=x onerror=alert(1)>" in shown(tab)[1]
    assert tab.value(f"{ANSWER}.querySelector('pre').textContent") == "1<2"
    assert tab.value(f"{ANSWER}.getAttribute('aria-live')") == "polite"
    assert tab.value(f"{ANSWER}.getAttribute('aria-busy')") == "false"
    figures = tab.value("document.querySelector('.figures').textContent")
    assert re.fullmatch(
        r"6 tokens · [\d.]+ tokens/s · first after .* · prompt \d+, 0 from memory", figures
    )
    tab.wait("document.getElementById('memory').textContent.includes('weights in memory')")


DRAW = """(async (text) => {
    const { render } = await import('./markdown.js');
    const element = document.createElement('div');
    for (let end = 1; end < Math.min(text.length, 60); end++) render(element, text.slice(0, end));
    render(element, text);
    const tell = (node) => node.nodeType === 3 ? node.data
        : `${node.localName}(${[...node.childNodes].map(tell).join('')})`;
    return [...element.childNodes].map(tell).join(' ');
})"""


@pytest.mark.slow
def test_markdown(tab: devtools.Page) -> None:
    for text, drawn in {
        "a\nb\n\nc": "p(a\nb) p(c)",
        "## T\nx": "h4(T) p(x)",
        "x:\n- a\n- b *i*\n  1. c\n\nd": "p(x:) ul(li(a)li(b em(i)ol(li(c)))) p(d)",
        "3. a\n4. b": "ol(li(a)li(b))",
        "> q\n> r": "blockquote(q\nr)",
        "~~~\n# no *h*\n\n- l\n~~~\nx": "figure(figcaption(code)pre(code(# no *h*\n\n- l))) p(x)",
        "```c++\nint": "figure(figcaption(c++)pre(code(int)))",
        "**b *i* `c`** 2*3*4 a * b * c **": "p(strong(b em(i) code(c)) 2*3*4 a * b * c **)",
        "``a`b`` `": "p(code(a`b) `)",
        "```a``` b": "p(code(a) b)",
        "<b>&amp;[x](javascript:1)": "p(<b>&amp;[x](javascript:1))",
        "": "",
    }.items():
        assert tab.value(f"{DRAW}({json.dumps(text)})") == drawn, text
    # None of these takes a time that grows with the square of its length, nor a deep tree.
    for text in ("a" + "`" * 99_999, "` `` " * 30_000, "**a " * 50_000, "*a" * 99_999):
        assert len(tab.value(f"{DRAW}({json.dumps(text)})")) >= len(text)
    deep = "\n".join(" " * (2 * i) + "- a" for i in range(500))
    assert tab.value(f"{DRAW}({json.dumps(deep)})").count("ul(") == 8


@pytest.mark.slow
def test_branches(tab: devtools.Page) -> None:
    ask(tab, "Hello")
    tab.wait(ENDED)
    tab.value(f"{ENDED}.click()")
    tab.wait(f"{PLACE} === '‹2/2›' && {ENDED}")
    assert "from memory" in tab.value("document.querySelector('.figures').textContent")
    assert int(tab.value("document.querySelector('.figures').textContent").split()[-3]) > 0
    tab.value("document.activeElement.blur()")
    tab.press("ArrowLeft", ctrl=True)
    assert tab.value(PLACE) == "‹1/2›"
    assert tab.value("document.getElementById('status').textContent") == "Branch 1 of 2"
    tab.press("ArrowLeft", ctrl=True)
    assert tab.value(PLACE) == "‹1/2›"
    tab.press("/")
    assert tab.value("document.activeElement.id") == "input"
    tab.press("ArrowRight", ctrl=True)  # the input is empty
    assert tab.value(PLACE) == "‹2/2›"

    tab.value("document.querySelector('[data-act=edit]').click()")
    tab.value("document.activeElement.select()")
    ask(tab, "Good day")
    tab.wait(f"{ENDED} && document.querySelector('.user .branches').textContent === '‹2/2›'")
    assert shown(tab, ".user") == ["Good day"] and not tab.value(PLACE)
    tab.value("document.querySelector('[data-act=back]').focus()")
    tab.press("Enter")
    assert shown(tab, ".user") == ["Hello"] and tab.value(PLACE) == "‹2/2›"
    assert tab.value("document.activeElement.dataset.act") == "on"  # "back" is the first: disabled

    tab.value("document.querySelector('.assistant [data-act=fork]').click()")
    assert tab.value("document.querySelectorAll('#conversations li').length") == 2
    assert shown(tab, ".user") == ["Hello"] and not tab.value(PLACE)
    tab.open(tab.value("location.href"))  # all is kept
    tab.wait("document.getElementById('model').value")
    assert tab.value("document.querySelectorAll('#conversations li').length") == 2
    kept = [json.loads(one) for one in tab.value("Object.values(localStorage)")]
    assert sorted(len(one["messages"]) for one in kept) == [2, 5]


@pytest.mark.slow
def test_stopping_and_what_is_sent_on(server: Running, tab: devtools.Page) -> None:
    choose(tab, "endless")
    tab.type("One")
    tab.press("Enter", shift=True)
    ask(tab, "two")
    tab.wait(f"{ANSWER}?.textContent.length > 30")
    assert shown(tab, ".user") == ["One\ntwo"]
    assert tab.value("document.getElementById('send').textContent") == "Stop"
    tab.value("document.querySelector('[data-act=edit]').click()")
    tab.type(" and three")
    tab.value("document.getElementById('send').click()")
    tab.wait(ENDED)  # what is being edited stays
    assert tab.value("document.activeElement.value") == "One\ntwo and three"
    tab.press("Escape")
    assert shown(tab, ".user") == ["One\ntwo"]
    assert tab.value("document.querySelector('.figures').textContent").endswith("stopped")
    tab.value(f"{ENDED}.click()")
    tab.wait(f"{PLACE} === '‹2/2›' && {ANSWER}.textContent.length > 30")
    tab.press("Escape")
    tab.wait(ENDED)
    assert tab.value("document.getElementById('send').textContent") == "Send"
    choose(tab, "thinker")
    tab.value("document.getElementById('input').focus()")
    ask(tab, "On")
    tab.wait("document.querySelectorAll('[data-act=retry]').length === 2")
    assert shown(tab)[3] == "Yes"
    details = "document.querySelectorAll('details')[1]"
    assert tab.value(f"[{details}.open, {details}.textContent]") == [False, "ReasoningHm"]
    while server.served("endless").live:
        pass


@pytest.mark.slow
def test_keys_and_settings(tab: devtools.Page) -> None:
    tab.press("?")
    assert tab.value("document.getElementById('input').value") == "?"
    tab.value("document.activeElement.blur()")
    tab.press("?")
    assert tab.value("document.querySelector('dialog[open]').id") == "keys"
    tab.press("Escape")
    tab.wait("!document.querySelector('dialog[open]')")
    tab.value("document.getElementById('input').value = ''")
    tab.value("document.getElementById('show-settings').click()")
    assert tab.value("document.getElementById('set-temperature').placeholder") == "0"
    tab.value("document.getElementById('system').focus()")
    tab.type("Be brief.")
    tab.value("document.getElementById('set-max_tokens').focus()")
    tab.type("2")
    tab.press("Enter")
    tab.wait("!document.querySelector('dialog[open]') && document.activeElement === document.body")
    tab.press("/")
    ask(tab, "Hello")
    tab.wait(ENDED)
    assert shown(tab)[1] == "Hi there"
    assert "ended for its length" in tab.value("document.querySelector('.figures').textContent")
    (kept,) = [json.loads(one) for one in tab.value("Object.values(localStorage)")]
    assert (kept["system"], kept["settings"]) == ("Be brief.", {"max_tokens": 2})


@pytest.mark.slow
def test_a_refusal_is_shown(tab: devtools.Page) -> None:
    ask(tab, "long " * 3000)
    tab.wait(ENDED)
    assert "context" in tab.value("document.querySelector('.error').textContent")
    # The browser itself writes of a 400 to the console.
    (complaint,) = tab.complaints
    assert complaint["entry"]["source"] == "network"
    tab.complaints.clear()


@pytest.mark.slow
def test_a_key_is_asked_for(tmp_path: Path) -> None:
    models = {"speaker": write_speaker(tmp_path / "s.gguf", b"ab")}
    profile = tmp_path / "profile"
    with running(models, access=Access(["secret"])) as server, devtools.page(profile) as tab:
        tab.open(server.url)
        for key in ("wrong", "secret"):
            tab.wait("document.querySelector('dialog[open]')?.id === 'ask-key'")
            ask(tab, key)
            tab.wait(
                "!document.querySelector('dialog[open]') || document.getElementById('key')"
                ".value === ''"
            )
        tab.wait("document.getElementById('model').value")
        ask(tab, "Hello")
        tab.wait(ENDED)
        assert shown(tab) == ["Hello", "ab"]
        assert tab.value("Object.values(sessionStorage)") == ["secret"]
        assert "secret" not in json.dumps(tab.value("Object.values(localStorage)"))
