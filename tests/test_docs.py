"""Links in the documentation lead to files and headings that exist, and its pictures are small."""

import re
from pathlib import Path

import pytest

from .conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def links(text: str) -> list[str]:
    """Returns the targets of a page's relative links and pictures, without those in code blocks."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [target for found in LINK.findall(prose) for target in found if target and "://" not in target]


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub makes from a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, text: str) -> list[str]:
    """Returns the links of a page whose file or heading does not exist."""
    found = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else None
        leads = not target or target.exists()
        if leads and anchor:
            leads = anchor in anchors(target.read_text() if target else text)
        if not leads:
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    assert not broken(page, page.read_text())


def test_broken_links_are_found() -> None:
    text = "# One\n[a](README.md) [b](nowhere.md) [c](#one) [d](#two) ![e](docs/images/none.svg)\n`[f](g.md)`"
    assert broken(ROOT / "page.md", text) == ["nowhere.md", "#two", "docs/images/none.svg"]


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs/images").iterdir())
    assert pictures
    assert all(picture.stat().st_size < 200_000 for picture in pictures)
