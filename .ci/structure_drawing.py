"""The structure as one picture: an SVG for light and dark pages, made of nothing but what `structure` read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from textwrap import wrap

from structure import FRONT_DOORS, Module, Room, arrows, place_of

WIDTH = 1000
GAP = 84  # between two rows of rooms: arrows and their numbers
CORE = "adedge"

# (left, right) of each room in pixels. With these no two arrows cross, and every arrow is straight.
PLACES = {
    "adedge.export": (40, 480),
    "adedge.benchmarks": (540, 960),
    "adedge.calibration": (40, 330),
    "adedge.runtime": (420, 850),
    CORE: (40, 960),
}
ROWS = (("adedge.export", "adedge.benchmarks"), ("adedge.calibration", "adedge.runtime"), (CORE,))

# (importer, imported): where the arrow runs, in pixels from the left.
DOWN = {
    ("adedge.export", "adedge.calibration"): 125,
    ("adedge.export", CORE): 390,
    ("adedge.export", "adedge.runtime"): 450,
    ("adedge.benchmarks", "adedge.runtime"): 695,
    ("adedge.benchmarks", CORE): 885,
    ("adedge.calibration", CORE): 125,
    ("adedge.runtime", CORE): 740,
}
UP = {"adedge.export": 354, "adedge.benchmarks": 930, "adedge.calibration": 215, "adedge.runtime": 530}
"""The command line's arrows."""

STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2933; }
  .page { fill: #ffffff; }
  .room { fill: #f1f5f9; stroke: #64748b; stroke-width: 1.5; }
  .inner { fill: #ffffff; stroke: #94a3b8; }
  .door { fill: #fff7e6; stroke: #b45309; }
  .name { font-size: 18px; font-weight: 700; }
  .code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12.5px; font-weight: 400; }
  .code { fill: #52606d; }
  .own { font-weight: 700; fill: #1f2933; }
  .says { font-size: 13px; fill: #3e4c59; }
  .imports { stroke: #475569; stroke-width: 1.8; }
  .imports-head { fill: #475569; }
  .calls { stroke: #b45309; stroke-width: 1.8; stroke-dasharray: 6 4; }
  .calls-head { fill: #b45309; }
  .count { font-size: 13px; font-weight: 700; text-anchor: middle; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .page { fill: #0d1117; }
    .room { fill: #161b22; stroke: #8b98a5; }
    .inner { fill: #0d1117; stroke: #6e7781; }
    .door { fill: #2b2111; stroke: #e3a03c; }
    .code { fill: #9aa7b4; }
    .own { fill: #e6edf3; }
    .says { fill: #c3ccd5; }
    .imports { stroke: #a3b1bf; }
    .imports-head { fill: #a3b1bf; }
    .calls { stroke: #e3a03c; }
    .calls-head { fill: #e3a03c; }
  }
"""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, and the elements that draw it."""

    left: int
    top: int
    right: int
    bottom: int
    elements: tuple[str, ...]


def drawing(rooms: list[Room], modules: Mapping[str, Module]) -> str:
    """The structure as an SVG picture: rooms, what is inside them, and arrows with their numbers."""
    by_name = {room.name: room for room in rooms}
    boxes: dict[str, Box] = {}
    top = 24
    for row in ROWS:
        placed = [_room_box(by_name[name], *PLACES[name], top) for name in row]
        bottom = max(box.bottom for box in placed)
        boxes.update(zip(row, placed, strict=True))
        top = bottom + GAP
    entrance = _door_box(rooms, boxes[CORE])
    number = arrows(modules, {name: place_of(name) for name in modules})
    lines = []
    for (importer, imported), x in DOWN.items():
        count = number[importer, imported]
        lines += _arrow(x, boxes[importer].bottom, boxes[imported].top, count, "imports", boxes[imported].top - 40)
    for imported, x in UP.items():
        count = sum(number[door, imported] for door in FRONT_DOORS)
        lines += _arrow(x, entrance.top, boxes[imported].bottom, count, "calls", boxes[imported].bottom + 40)
    bottom = boxes[CORE].bottom
    legend = [
        *_arrow(58, bottom + 16, bottom + 46, None, "imports", 0),
        f'<text class="says" x="76" y="{bottom + 36}">imports; the number counts pairs of modules</text>',
        *_arrow(398, bottom + 46, bottom + 16, None, "calls", 0),
        f'<text class="says" x="416" y="{bottom + 36}">the command line imports every room, '
        "inside the command that needs it</text>",
    ]
    height = bottom + 64
    drawn = [element for box in boxes.values() for element in box.elements]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" role="img" aria-label="The rooms of adedge and what each imports">',
            "<!-- Drawn by .ci/import-graph; make architecture draws it anew. -->",
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{height}" rx="10"/>',
            *drawn,
            *entrance.elements,
            *lines,
            *legend,
            "</svg>",
            "",
        ]
    )


def _room_box(room: Room, left: int, right: int, top: int) -> Box:
    """A room with its name, what it is for, and the rooms inside it; the command line's place is left free."""
    name = "toolkit" if room.name == CORE else room.name.rpartition(".")[2]
    y = top + (_DOOR + 26 if room.name == CORE else 0) + 28
    texts = [
        f'<text class="name" x="{left + 18}" y="{y}">{name}<tspan class="code" dx="10">{room.name}</tspan></text>',
    ]
    for line in _wrapped(room.summary, right - left - 36):
        y += 19
        texts.append(f'<text class="says" x="{left + 18}" y="{y}">{line}</text>')
    y += 16
    inside = [inner for inner in room.inside if inner.name not in FRONT_DOORS]
    columns = len(inside) if right - left > 600 else 1
    width = (right - left - 32 - 16 * (columns - 1)) // max(columns, 1)
    bottom = y
    for place, inner in enumerate(inside):
        box = _inner_box(inner, "inner", left + 16 + (place % columns) * (width + 16), width, y)
        texts += box.elements
        bottom = max(bottom, box.bottom)
        if place % columns == columns - 1:
            y = bottom + 10
    bottom = bottom + 16 if inside else y
    frame = f'<rect class="room" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" rx="10"/>'
    return Box(left, top, right, bottom, (frame, *texts))


_DOOR = 58  # height of the command line's box


def _door_box(rooms: list[Room], core: Box) -> Box:
    """The command line: inside its room, at the edge where its arrows leave."""
    door = next(inner for room in rooms for inner in room.inside if inner.name in FRONT_DOORS)
    return _inner_box(door, "door", core.left + 16, core.right - core.left - 32, core.top + 16)


def _inner_box(room: Room, kind: str, left: int, width: int, top: int) -> Box:
    y = top + 23
    around, _, own = room.name.rpartition(".")
    texts = [f'<text class="code" x="{left + 14}" y="{y}">{around}.<tspan class="own">{own}</tspan></text>']
    for line in _wrapped(room.summary, width - 28):
        y += 18
        texts.append(f'<text class="says" x="{left + 14}" y="{y}">{line}</text>')
    bottom = y + 14
    frame = f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="{bottom - top}" rx="7"/>'
    return Box(left, top, left + width, bottom, (frame, *texts))


def _wrapped(text: str, width: int) -> list[str]:
    """Text of 13 pixels in lines that fit ``width``, whatever sans-serif the reader has; backticks are dropped."""
    return [escape(line) for line in wrap(text.replace("`", ""), width=max(int(width / 7), 1))]


def _arrow(x: int, start: int, end: int, count: int | None, kind: str, label: int) -> list[str]:
    """A vertical arrow from ``start`` to ``end`` with its number at the height ``label``; none where nobody imports."""
    if count == 0:
        return []
    tip = 9 if end > start else -9
    drawn = [
        f'<line class="{kind}" x1="{x}" y1="{start}" x2="{x}" y2="{end - tip}"/>',
        f'<path class="{kind}-head" d="M{x - 5} {end - tip}h10L{x} {end}z"/>',
    ]
    if count is not None:
        width = 10 + 9 * len(str(count))
        drawn.append(f'<rect class="page" x="{x - width // 2}" y="{label - 11}" width="{width}" height="20"/>')
        drawn.append(f'<text class="count" x="{x}" y="{label + 4}">{count}</text>')
    return drawn
