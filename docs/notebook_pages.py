"""Makes pages of the site of the notebooks: text as it is, code in fences. A hook of mkdocs."""

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds a page for each notebook; the notebook itself stays, to be downloaded."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        content = to_markdown(Path(file.abs_src_path))
        files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lets links to notebooks lead to their pages."""
    return markdown if page.file.src_uri.startswith("notebooks/") else lead_to_pages(markdown)


def lead_to_pages(text: str) -> str:
    """The same with links to pages where they led to notebooks."""
    return re.sub(r"(\]\([^):]*)\.ipynb\)", r"\1.md)", text)


def to_markdown(notebook: Path) -> str:
    """A notebook as Markdown; links to notebooks lead to their pages, and one below the heading to the file."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
        else:
            parts.append(lead_to_pages(source))
    heading, _, text = parts[0].partition("\n")
    parts[0] = f"{heading}\n\n[This page as a notebook]({notebook.name})\n{text}"
    return "\n\n".join(parts) + "\n"
