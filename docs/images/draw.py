"""Draws the pictures of the README and of docs/concepts.md as SVG: `python docs/images/draw.py` rewrites them.

Each picture paints its own background and has a light and a dark palette, so that its text is readable on every page;
tests/test_pictures.py compares the files with this script and computes the contrast.
"""

from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent
# Colors on light and on dark pages, by class.
PAPER, TEXT, TEACHER, CACHE, STUDENT = "paper", "text", "teacher", "cache", "student"
PALETTES = {
    "light": {PAPER: "#ffffff", TEXT: "#40464d", TEACHER: "#a8431a", CACHE: "#1f5fae", STUDENT: "#1c6f43"},
    "dark": {PAPER: "#0d1117", TEXT: "#c3cad2", TEACHER: "#f0946c", CACHE: "#79b0f2", STUDENT: "#6cc994"},
}


def text(
    x: float, y: float, words: str, *, size: int = 14, color: str = TEXT, style: str = "", at: str = "middle"
) -> str:
    """A line of text; `style` may be `bold`."""
    place = f"x='{x:g}' y='{y:g}' text-anchor='{at}' font-size='{size}'"
    classes = f"{color} {style}".strip()
    return f"<text class='{classes}' {place}>{escape(words)}</text>"


def box(x: float, y: float, width: float, height: float, color: str) -> str:
    """A rounded frame."""
    return f"<rect class='{color} frame' x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='8'/>"


def arrow(x: float, y: float, to_x: float, to_y: float, color: str = TEXT) -> str:
    """A line with a head."""
    length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
    right, down = (to_x - x) / length, (to_y - y) / length
    back_x, back_y = to_x - 9 * right, to_y - 9 * down
    head = [(to_x, to_y), (back_x - 5 * down, back_y + 5 * right), (back_x + 5 * down, back_y - 5 * right)]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in head)
    line = f"<line class='{color} frame' x1='{x:g}' y1='{y:g}' x2='{back_x:.1f}' y2='{back_y:.1f}'/>"
    return f"{line}<polygon class='{color}' points='{points}'/>"


def bars(x: float, y: float, heights: list[float], color: str, width: float = 6) -> str:
    """Bars that stand on a line."""
    step = width + 2
    return "".join(
        f"<rect class='{color}' x='{x + n * step:g}' y='{y - height:g}' width='{width:g}' height='{height:g}'/>"
        for n, height in enumerate(heights)
    )


def picture(width: int, height: int, title: str, shapes: list[str]) -> str:
    """A whole file."""
    size = f"viewBox='0 0 {width} {height}' width='{width}' height='{height}'"
    return "\n".join(
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img'>",
            f"<title>{escape(title)}</title>",
            f"<style>\n{_style()}\n</style>",
            f"<rect class='{PAPER}' width='{width}' height='{height}' rx='8'/>",
            *shapes,
            "</svg>\n",
        )
    )


def _style() -> str:
    """Fonts and both palettes; a reader of SVG without media queries uses the light one."""
    light, dark = (_colors(palette) for palette in PALETTES.values())
    return "\n".join(
        (
            "text { font-family: Helvetica, Arial, sans-serif; }",
            ".bold { font-weight: bold; }",
            ".frame { fill-opacity: 0.08; stroke-width: 1.5; }",
            light,
            f"@media (prefers-color-scheme: dark) {{\n{dark}\n}}",
        )
    )


def _colors(palette: dict[str, str]) -> str:
    lines = [f".{name} {{ fill: {color}; }}" for name, color in palette.items()]
    return "\n".join([*lines, *(f".{name}.frame {{ stroke: {color}; }}" for name, color in palette.items())])


def overview() -> str:
    """The teacher, a few bytes per token, many students."""
    shapes = [
        box(10, 40, 190, 150, TEACHER),
        text(105, 70, "teacher", size=18, color=TEACHER, style="bold"),
        text(105, 92, "large model, large GPU"),
        bars(41, 160, [8, 3, 44, 6, 14, 2, 4, 26, 3, 5, 2, 9, 3, 2, 4, 2], TEACHER),
        text(105, 180, "a probability for every token", size=12),
        text(105, 25, "stage one, once", size=13),
        arrow(204, 115, 266, 115, TEACHER),
        box(270, 40, 210, 150, CACHE),
        text(375, 70, "cache", size=18, color=CACHE, style="bold"),
        text(375, 92, "about 25 bytes per token"),
        bars(339, 160, [44, 26, 14], CACHE),
        bars(368, 160, [5, 5, 5, 5, 5], CACHE),
        text(375, 180, "likely tokens, samples of the rest", size=12),
        text(375, 25, "copy it anywhere", size=13),
        text(665, 25, "stage two, as often as you like", size=13),
    ]
    for number, (name, note) in enumerate(
        (("student A", "100 M, laptop"), ("student B", "another loss"), ("student C", "LoRA adapter"))
    ):
        y = 40 + 53 * number
        shapes += [
            arrow(484, 115, 556, y + 22, CACHE),
            box(560, y, 210, 44, STUDENT),
            text(572, y + 27, name, color=STUDENT, style="bold", at="start"),
            text(758, y + 27, note, size=12, at="end"),
        ]
    return picture(
        780, 205, "A teacher runs once, a cache holds a few bytes per token, many students train on it", shapes
    )


def concepts() -> str:
    """The terms of the glossary, from document to run."""
    shapes = [
        text(20, 24, "stage one: kdpipe cache-teacher", size=15, color=TEACHER, style="bold", at="start"),
        box(20, 40, 110, 34, TEXT),
        text(75, 62, "documents"),
        arrow(134, 57, 196, 57),
        text(165, 48, "tokenize", size=11),
        box(200, 40, 340, 34, TEXT),
        text(212, 62, "sequence", size=12, at="start"),
        *(box(280 + 26 * n, 46, 22, 22, TEXT) for n in range(6)),
        *(box(440 + 26 * n, 46, 22, 22, TEXT) for n in range(3)),
        text(358, 90, "document 1", size=11),
        text(479, 90, "document 2", size=11),
        arrow(544, 57, 596, 57),
        box(600, 40, 160, 34, TEACHER),
        text(680, 62, "teacher", color=TEACHER, style="bold"),
        arrow(680, 78, 680, 116, TEACHER),
        text(690, 102, "prediction", size=11, at="start"),
        box(400, 120, 360, 170, CACHE),
        text(412, 141, "row = one token and the prediction for the next one", size=12, at="start"),
        text(412, 158, "position = row that is trained on", size=12, at="start"),
        text(412, 184, "target of a position:", size=12, color=CACHE, style="bold", at="start"),
        bars(430, 250, [50, 32, 20, 12], CACHE, 10),
        bars(496, 250, [7] * 7, CACHE, 10),
        text(453, 266, "exact ids", size=12),
        text(453, 281, "own log p", size=11),
        text(538, 266, "draws", size=12),
        text(538, 281, "stand for the tail", size=11),
        text(612, 212, "entropy", size=12, at="start"),
        text(612, 230, "log p of the label", size=12, at="start"),
        text(612, 248, "log_tail", size=12, at="start"),
        text(612, 266, "hidden states", size=12, at="start"),
        arrow(396, 205, 334, 205, CACHE),
        box(20, 120, 310, 170, CACHE),
        text(32, 143, "cache", size=15, color=CACHE, style="bold", at="start"),
        text(84, 143, "a folder or a prefix in a bucket", size=12, at="start"),
        text(32, 166, "manifest.json", size=12, at="start"),
        text(150, 166, "teacher, tokenizer, targets", size=12, at="start"),
        *(box(32 + 58 * n, 178, 50, 40, CACHE) for n in range(5)),
        *(text(57 + 58 * n, 203, f"part {n}", size=11) for n in range(5)),
        text(32, 240, "index.parquet", size=12, at="start"),
        text(150, 240, "digests of all parts, last", size=12, at="start"),
        text(32, 262, "splits: train and validation, by document", size=12, at="start"),
        text(32, 280, "cache_id: one digest over everything", size=12, at="start"),
        arrow(175, 294, 175, 346, CACHE),
        text(185, 324, "copy, verify, merge, subset, requantize, mirror", size=11, at="start"),
        text(20, 372, "stage two: kdpipe train", size=15, color=STUDENT, style="bold", at="start"),
        text(760, 372, "no teacher here", size=12, at="end"),
        box(20, 386, 150, 84, STUDENT),
        text(95, 410, "batches", color=STUDENT, style="bold"),
        text(95, 430, "sequences in order", size=12),
        text(95, 448, "of seed and epoch", size=12),
        arrow(174, 428, 206, 428, STUDENT),
        box(210, 386, 110, 84, STUDENT),
        text(265, 410, "student", color=STUDENT, style="bold"),
        text(265, 430, "predicts the", size=12),
        text(265, 448, "same rows", size=12),
        arrow(324, 428, 356, 428, STUDENT),
        box(360, 386, 190, 84, STUDENT),
        text(455, 410, "loss terms", color=STUDENT, style="bold"),
        text(455, 430, "ce (label), forward_kl (target)", size=11),
        text(455, 448, "mode, alpha, temperature", size=11),
        arrow(554, 428, 586, 428, STUDENT),
        box(590, 386, 170, 84, STUDENT),
        text(675, 410, "run", color=STUDENT, style="bold"),
        text(675, 430, "guard, checkpoints", size=12),
        text(675, 448, "metrics.jsonl, final/", size=12),
    ]
    return picture(780, 484, "From documents to a cache, and from the cache to a student", shapes)


PICTURES = {"overview.svg": overview, "concepts.svg": concepts}


def main() -> None:
    """Rewrite the pictures."""
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
