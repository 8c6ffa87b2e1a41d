"""Boxes, lines and words on a dark ground, written as SVG, HTML or PNG."""

import html
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mmrt.errors import UnsupportedError
from mmrt.sight.pictures import colours

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Anchor = Literal["start", "middle", "end"]

_FAMILY = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_PNG_SCALE = 2  # pixels of a PNG for one unit: sharp on dense screens
_PNG_HIGHEST = 16384  # pixels: 200 MB while it is drawn
_GLYPH = 0.56  # width of an average character, in units of its size


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    fill: str


@dataclass(frozen=True)
class Words:
    x: float
    y: float  # of the baseline
    text: str
    size: float
    fill: str
    anchor: Anchor
    turned: bool  # by 45 degrees, rising to the right


@dataclass(frozen=True)
class Line:
    points: Sequence[tuple[float, float]]
    colour: str
    width: float


@dataclass(frozen=True)
class Tip:
    """What an HTML page says when the pointer is over a place."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass
class Drawing:
    """Units are pixels of a screen; y goes downwards."""

    width: float
    height: float = 0
    title: str = ""
    items: list[Box | Words | Line] = field(default_factory=list)
    tips: list[Tip] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self.items.append(Box(x, y, width, height, fill))

    def words(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        fill: str = colours.TEXT,
        anchor: Anchor = "start",
        turned: bool = False,
    ) -> None:
        self.items.append(Words(x, y, _printable(text), size, fill, anchor, turned))

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        self.items.append(Line(points, colour, width))

    def tip(self, x: float, y: float, width: float, height: float, lines: Sequence[str]) -> None:
        self.tips.append(Tip(x, y, width, height, "\n".join(map(_printable, lines))))

    def strip(self, x: float, y: float, width: float, height: float, values: list[float]) -> None:
        """A row of equal cells in the colours of `values`, 0 to 1; equal neighbours are one box."""
        if not values:
            self.box(x, y, width, height, colours.GROUND)
            return
        step = width / len(values)
        fills = [colours.scale(value) for value in values]
        start = 0
        for end in range(1, len(fills) + 1):
            if end == len(fills) or fills[end] != fills[start]:
                self.box(x + start * step, y, (end - start) * step, height, fills[start])
                start = end


def _printable(text: str) -> str:
    """Names come from files, and files from strangers."""
    return "".join(c if c.isprintable() else "?" for c in text)


def text_width(text: str, size: float) -> float:
    """About how wide `text` is."""
    return len(text) * size * _GLYPH


def fitted(text: str, size: float, room: float) -> str:
    """`text`, cut in the middle where it is wider than `room`."""
    n = int(room / (size * _GLYPH))
    if len(text) <= n:
        return text
    kept = max(n - 3, 2)
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"


# ---- SVG and HTML ----


def svg(drawing: Drawing) -> str:
    w, h = drawing.width, drawing.height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:g} {h:g}" width="{w:g}" '
        f'height="{h:g}" font-family="{_FAMILY}">',
        f'<rect width="{w:g}" height="{h:g}" fill="{colours.GROUND}"/>',
    ]
    parts += map(_element, drawing.items)
    parts += [
        f'<rect class="cell" x="{t.x:.1f}" y="{t.y:.1f}" width="{t.width:.1f}" '
        f'height="{t.height:.1f}" fill="transparent" data-tip="{html.escape(t.text)}"/>'
        for t in drawing.tips
    ]
    return "\n".join([*parts, "</svg>"])


def _element(item: Box | Words | Line) -> str:
    if isinstance(item, Box):
        return (
            f'<rect x="{item.x:.1f}" y="{item.y:.1f}" width="{item.width:.1f}" '
            f'height="{item.height:.1f}" fill="{item.fill}" shape-rendering="crispEdges"/>'
        )
    if isinstance(item, Line):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in item.points)
        return (
            f'<polyline points="{points}" fill="none" stroke="{item.colour}" '
            f'stroke-width="{item.width:g}"/>'
        )
    turn = f' transform="rotate(-45 {item.x:.1f} {item.y:.1f})"' if item.turned else ""
    return (
        f'<text x="{item.x:.1f}" y="{item.y:.1f}" font-size="{item.size:g}" fill="{item.fill}" '
        f'text-anchor="{item.anchor}"{turn}>{html.escape(item.text)}</text>'
    )


def page(drawing: Drawing) -> str:
    """The drawing as an HTML page with nothing outside itself, and its tips under the pointer."""
    return _PAGE.format(
        title=html.escape(_printable(drawing.title)),
        ground=colours.GROUND,
        text=colours.TEXT,
        family=_FAMILY,
        svg=svg(drawing),
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0; background: {ground}; color: {text}; font-family: {family}; }}
svg {{ display: block; margin: 0 auto; max-width: 100%; height: auto; }}
.cell:hover {{ stroke: #fff; stroke-width: 1.5; }}
#tip {{ position: fixed; display: none; pointer-events: none; white-space: pre; padding: 8px 12px;
  background: #000d; border: 1px solid #566; border-radius: 6px; font-size: 13px;
  line-height: 1.45; max-width: 90vw; overflow: hidden; }}
</style>
</head>
<body>
{svg}
<div id="tip" role="tooltip"></div>
<script>
const tip = document.getElementById("tip");
document.addEventListener("pointermove", event => {{
  const text = event.target.dataset && event.target.dataset.tip;
  tip.style.display = text ? "block" : "none";
  if (!text) return;
  if (tip.textContent !== text) tip.textContent = text;
  const beside = event.clientX + 16, below = event.clientY + 16;
  const fits = below + tip.offsetHeight < window.innerHeight;
  tip.style.left = Math.max(4, Math.min(beside, window.innerWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = Math.max(4, fits ? below : event.clientY - tip.offsetHeight - 12) + "px";
}});
</script>
</body>
</html>
"""


# ---- PNG ----


def require_pillow() -> None:
    """UnsupportedError where Pillow is missing."""
    if importlib.util.find_spec("PIL") is None:
        raise UnsupportedError("PNG pictures need Pillow: pip install Pillow")


def png(drawing: Drawing) -> bytes:
    """UnsupportedError where Pillow is missing, or the picture would be too large for it."""
    require_pillow()
    from PIL import Image, ImageDraw

    size = (round(drawing.width * _PNG_SCALE), round(drawing.height * _PNG_SCALE))
    if size[1] > _PNG_HIGHEST:
        raise UnsupportedError(
            f"the PNG picture would be {size[1]} pixels high, and mmrt draws up to {_PNG_HIGHEST}: "
            "HTML has no such limit"
        )
    image = Image.new("RGB", size, colours.GROUND)
    canvas = ImageDraw.Draw(image)
    for item in drawing.items:
        if isinstance(item, Box):
            _fill(canvas, item)
        elif isinstance(item, Line):
            points = [(x * _PNG_SCALE, y * _PNG_SCALE) for x, y in item.points]
            canvas.line(points, item.colour, round(item.width * _PNG_SCALE), joint="curve")
        else:
            _write(image, canvas, item)
    out = io.BytesIO()
    # Few colours are in use: a palette makes the file a third of the size.
    image.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def _fill(canvas: "ImageDraw", box: Box) -> None:
    left, top = round(box.x * _PNG_SCALE), round(box.y * _PNG_SCALE)
    right = round((box.x + box.width) * _PNG_SCALE) - 1
    bottom = round((box.y + box.height) * _PNG_SCALE) - 1
    if right >= left and bottom >= top:
        canvas.rectangle((left, top, right, bottom), box.fill)


def _write(image: "Image", canvas: "ImageDraw", words: Words) -> None:
    from PIL import Image, ImageDraw, ImageFont

    size = words.size * _PNG_SCALE
    font = ImageFont.load_default(size)
    x, y = words.x * _PNG_SCALE, words.y * _PNG_SCALE
    anchor = {"start": "ls", "middle": "ms", "end": "rs"}[words.anchor]
    if not words.turned:
        canvas.text((x, y), words.text, words.fill, font, anchor=anchor)
        return
    # Turned about its anchor, which is the middle of a square that holds it whichever way.
    reach = font.getlength(words.text) + size
    mask = Image.new("L", (int(2 * reach), int(2 * reach)))
    ImageDraw.Draw(mask).text((reach, reach), words.text, 255, font, anchor=anchor)
    mask = mask.rotate(45, Image.Resampling.BICUBIC)
    image.paste(words.fill, (round(x - reach), round(y - reach)), mask)
