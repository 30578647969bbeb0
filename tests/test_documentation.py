"""The site says what is so: its words are those of the captions, and its pages name what exists."""

import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

from data_prep.composer.instruments import INSTRUMENTS
from data_prep.composer.moods import MOODS
from data_prep.composer.styles import STYLES


ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.mark.parametrize(("name", "things"), [("Instruments", INSTRUMENTS), ("Moods", MOODS), ("Styles", STYLES)])
def test_the_prompt_guide_has_the_words_of_the_captions(name, things):
    (entry,) = re.findall(rf"- \*\*{name}\*\*: (.*?)\n- ", (DOCS / "prompts.md").read_text(), re.DOTALL)
    listed = re.sub(r"\s+", " ", entry).split(", ")
    assert set(listed) == {word for thing in things.values() for word in thing.names}


def test_every_page_of_the_site_is_there():
    def pages(entries):
        for entry in entries:
            for target in entry.values():
                yield from [target] if isinstance(target, str) else pages(target)

    for page in pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]):
        notebook = (DOCS / page).with_suffix(".ipynb")  # which `docs/notebook_pages.py` makes a page of
        assert (DOCS / page).is_file() or notebook.is_file(), page


@pytest.mark.parametrize("page", sorted(DOCS.glob("reference/*.md")), ids=lambda page: page.stem)
def test_the_reference_names_what_exists(page):
    for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE):
        module, _, member = name.rpartition(".")
        found = importlib.import_module(name) if member.islower() else getattr(importlib.import_module(module), member)
        assert found.__doc__


def test_links_between_pages_lead_somewhere():
    pages = {page: page.read_text() for page in DOCS.glob("*.md")}
    for notebook in DOCS.glob("notebooks/*.ipynb"):
        pages[notebook] = "".join(
            line for cell in json.loads(notebook.read_text())["cells"] for line in cell["source"]
        )
    for page, text in pages.items():
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_columns_of_the_table_are_those_that_are_read():
    from data_prep.music_metadata import Note

    text = (DOCS / "own-music.md").read_text()
    (example,) = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    header, first, _ = example.strip().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    row.pop("path")
    note = Note.from_dict(row)
    assert (note.captions, note.fields["quality_score"]) == (("slow blues with electric guitar",), 4.1)
