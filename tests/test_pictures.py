"""The pictures are those of docs/images/draw.py, well-formed, and readable on light and dark pages."""

import importlib.util
from types import ModuleType
from xml.etree import ElementTree

import pytest

from support.source import ROOT

IMAGES = ROOT / "docs" / "images"
# WCAG 2.1, level AA, for text of normal size.
LEAST_CONTRAST = 4.5


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", IMAGES / "draw.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = _load()


@pytest.mark.parametrize("name", draw.PICTURES)
def test_a_picture_is_what_the_script_draws(name: str) -> None:
    assert (IMAGES / name).read_text(encoding="utf-8") == draw.PICTURES[name](), "run python docs/images/draw.py"


def test_every_picture_is_drawn_by_the_script_and_shown_on_a_page() -> None:
    assert {path.name for path in IMAGES.glob("*.svg")} == draw.PICTURES.keys()
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert all(f"images/{name})" in text for name in draw.PICTURES)


@pytest.mark.parametrize("name", draw.PICTURES)
def test_text_is_inside_of_the_picture(name: str) -> None:
    root = ElementTree.fromstring((IMAGES / name).read_text(encoding="utf-8"))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert text.text
        # 0.55 em is more than the mean width of a letter in wide fonts.
        length = 0.55 * float(text.attrib["font-size"]) * len(text.text)
        before = {"start": 0.0, "middle": 0.5, "end": 1.0}[text.attrib["text-anchor"]]
        left = float(text.attrib["x"]) - before * length
        assert left >= 0 and left + length <= width, text.text
        assert 0 < float(text.attrib["y"]) < height, text.text


@pytest.mark.parametrize("palette", draw.PALETTES)
def test_text_has_enough_contrast_to_the_background(palette: str) -> None:
    colors = draw.PALETTES[palette]
    paper = _luminance(colors[draw.PAPER])
    for name in colors.keys() - {draw.PAPER}:
        light, dark = sorted((paper, _luminance(colors[name])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= LEAST_CONTRAST, name


def _luminance(color: str) -> float:
    """The relative luminance of WCAG 2.1."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
