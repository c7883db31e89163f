"""MkDocs hooks: README and changelog as pages, links to files outside the site as text, examples in docstrings."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
#: Pages of the site that are files of the repository's root.
ROOT_PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the repository's root."""
    for page, source in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Replace links to files outside the site by their text."""
    folder = Path(page.file.src_uri).parent

    def replaced(match: re.Match[str]) -> str:
        is_page = files.get_file_from_path((folder / match[2]).as_posix()) is not None
        return match[0] if is_page else match[1]

    return _LINK.sub(replaced, markdown)


class Examples(griffe.Extension):
    """Griffe extension: ``Example:`` in a docstring begins a section of examples."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Use the section name of Griffe."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
