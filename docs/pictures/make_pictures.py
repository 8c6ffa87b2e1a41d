"""Makes the pictures in this folder anew: `python docs/pictures/make_pictures.py MODEL.gguf`.

Needs Pillow, and chromium for the screenshot of the page. Evicts MODEL from memory and reads parts
of it again, so that there is something to see.
"""

import argparse
import io
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console

import mmrt
from mmrt import trace
from mmrt.files.formats import TensorFile
from mmrt.sight.pictures import drawing, engines, heatmap, timeline
from mmrt.sight.pictures.terminal import TerminalMap

HERE = Path(__file__).parent
PROMPT = "Once upon a time"

# Puts the pointer on a cell of the page.
POINT = """<script>
const cell = [...document.querySelectorAll(".cell")].find(c => c.dataset.tip.includes("ffn_gate"));
const at = cell.getBoundingClientRect();
cell.dispatchEvent(new PointerEvent("pointermove",
  {bubbles: true, clientX: at.x + 60, clientY: at.y + 8}));
</script></body>"""


def scatter(file: TensorFile) -> None:
    """The first layers in memory, attention of some more, and stretches of the rest."""
    n_layers = max(layer.number for layer in file.residency().layers) + 1
    file.evict()
    file.warm(file.select(f"0-{n_layers // 3}"))
    file.warm(file.select(f"{n_layers // 2}-{2 * n_layers // 3}", ["*attn*"]))
    for number, name in enumerate(file.select(f"{2 * n_layers // 3}-{n_layers - 1}")):
        tensor = file[name]
        stretch = tensor.nbytes // (2 + number % 5)
        start = tensor.offset + number * 7919 % (tensor.nbytes - stretch + 1)
        tensor.mapping.advise("random", start, stretch)  # or the kernel reads around it
        tensor.mapping.advise("populate_read", start, stretch)
        tensor.mapping.advise("normal", start, stretch)


def terminal(file: TensorFile) -> str:
    console = Console(
        width=110, force_terminal=True, color_system="truecolor", record=True, file=io.StringIO()
    )
    console.print(TerminalMap(file, file.residency()))
    svg = console.export_svg(title=f"mmrt residency {Path(file.path).name}")
    return re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL)  # these are on the network


def screenshot(page: str, height: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path, picture = Path(folder, "page.html"), Path(folder, "page.png")
        path.write_text(page.replace("</body>", POINT), encoding="utf-8")
        chromium = shutil.which("chromium") or "google-chrome"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [f"--user-data-dir={folder}/profile", f"--window-size=1200,{height}"]
        command = [chromium, *options, f"--screenshot={picture}", path.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        return picture.read_bytes()


def busy_engine(model: mmrt.Model) -> drawing.Drawing:
    """Four answers to one prompt, and texts that begin otherwise, in room for some of them."""
    room = 26 * model.store.page_bytes
    with model.engine(kv=room, keep=room) as engine:
        prompt = model.tokenize("The moon is a friend to the sea. " * 24)
        handles = [
            engine.submit(prompt, max_tokens=50, temperature=1.0, seed=i, ignore_eos=True)
            for i in range(4)
        ]
        for first in ("A ship", "A bird", "The wind"):
            ids = model.tokenize(f"{first} went over the hills and far away. " * 16)
            handles.append(engine.submit(ids, max_tokens=24, ignore_eos=True))
        ids = [*prompt[:160], *model.tokenize(" And what of the sun?", add_bos=False)]
        handles.append(engine.submit(ids, max_tokens=40, ignore_eos=True))
        for handle in handles[:4]:
            handle.text()
        seen = engine.snapshot()
        for handle in handles:
            handle.text()
    return engines.draw(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    model_path = parser.parse_args().model

    with mmrt.open(model_path) as file:
        scatter(file)
        HERE.joinpath("terminal.svg").write_text(terminal(file), encoding="utf-8")
        picture = heatmap.draw(file, file.residency())
        HERE.joinpath("residency.png").write_bytes(drawing.png(picture))
        page = screenshot(drawing.page(picture), round(picture.height))
        HERE.joinpath("page.png").write_bytes(page)

    with mmrt.Model(model_path) as model:
        model.tokenize(PROMPT)
        model.file.evict()
        with trace.recording(model) as recorder:
            for piece in model.stream(PROMPT, max_tokens=16):
                recorder.note(piece)
        HERE.joinpath("engine.png").write_bytes(drawing.png(busy_engine(model)))
    HERE.joinpath("trace.png").write_bytes(drawing.png(timeline.draw(recorder.trace)))


if __name__ == "__main__":
    main()
