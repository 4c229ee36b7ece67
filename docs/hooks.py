"""What the site needs beyond MkDocs: pages that lie at the repository's root, links out of the site.

Links are written so that they work where the repository is browsed. Those to the root's pages are led
to the site's copies; of those to other files, which the site does not have, the text is kept.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]+)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave `docs/`, or come from the root, to pages of the site."""
    here = posixpath.dirname(page.file.src_uri)
    source = "" if page.file.src_uri in ROOT_PAGES.values() else posixpath.join("docs", here)

    def led(link: re.Match[str]) -> str:
        text, path, anchor = link.groups()
        target = posixpath.normpath(posixpath.join(source, path))
        if not (ROOT / target).exists():
            return link[0]  # another site, or code that looks like a link; a strict build tells
        if target in ROOT_PAGES:
            target = posixpath.join("docs", ROOT_PAGES[target])
        if not target.startswith("docs/"):
            return text
        return f"[{text}]({posixpath.relpath(target, posixpath.join('docs', here))}{anchor or ''})"

    return _LINK.sub(led, markdown)
