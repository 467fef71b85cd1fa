"""A hook of mkdocs: links from the pages to files of the repository, which the site lacks, become plain text."""

import re
from typing import Any


_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)\s]+\)")


def on_page_markdown(markdown: str, *, page: Any, **kwargs: Any) -> str:
    """Only of the pages directly in docs/: `../` leads out of it there."""
    return markdown if "/" in page.file.src_uri else _OUTSIDE.sub(r"\1", markdown)
