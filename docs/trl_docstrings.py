"""A Griffe extension: docstrings in trl's grammar, for mkdocstrings, which reads Google's.

- Arguments, "name (`type`, *optional*, defaults to `x`):", lose their backticks and what the signature says anyway.
- [`name`] becomes a link where this package documents that name, and code elsewhere: [`~transformers.Trainer`].
- "> [!NOTE]" becomes a note; headings inside of a list of arguments are left out.
"""

import re
from typing import Any

import griffe


_ARGUMENT = re.compile(r"^(\s+\*{0,2}\w+) \((.+)\):$", flags=re.MULTILINE)
_GIVEN = re.compile(
    r"^(Returns:\n\s+)((?:`[^`\n]+`|\[`[^`\n]+`\])(?: (?:of shape|or) `[^`\n]+`)*)(?=: )", flags=re.MULTILINE
)
_CROSS_REFERENCE = re.compile(r"\[`~?([\w.]+)`\](?![(\[])")
_NOTE = re.compile(r"^> \[!(\w+)\]\n((?:>.*(?:\n|$))+)", flags=re.MULTILINE)
_HEADING_AMONG_ARGUMENTS = re.compile(r"^ +> .*\n\n?", flags=re.MULTILINE)


def plain_type(written: str) -> str:
    """A type without its markup, and without what the signature says."""
    written = re.sub(r",? ?\*optional\*|,? ?defaults to .*$|, `choices`.*$", "", written)
    return re.sub(r"\[`~?([\w.]+)`\]", r"\1", written).replace("`", "").strip()


def note(match: re.Match) -> str:
    """An admonition from a GitHub alert."""
    lines = [line.removeprefix(">").removeprefix(" ") for line in match[2].rstrip("\n").split("\n")]
    if "- " in [line[:2] for line in lines]:  # Markdown's lists need an empty line before them
        lines.insert([line[:2] for line in lines].index("- "), "")
    return "\n".join([f"!!! {match[1].lower()}", "", *(f"    {line}" for line in lines), ""])


class TrlDocstrings(griffe.Extension):
    """Rewrites every docstring of the package before it is parsed."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite, once everything is loaded."""
        paths = dict(self._documented(pkg))
        for owner in self._objects(pkg):
            if owner.docstring is not None:
                owner.docstring.value = self._rewrite(owner.docstring.value, owner, paths)

    def _objects(self, owner: griffe.Object) -> Any:
        yield owner
        for member in owner.members.values():
            if not member.is_alias:
                yield from self._objects(member)

    def _documented(self, pkg: griffe.Module) -> Any:
        """Public classes, methods and functions by the names that docstrings call them."""
        for found in self._objects(pkg):
            if (found.is_class or found.is_function) and not found.name.startswith("_"):
                within = found.path.removeprefix(f"{found.module.path}.")
                yield within, found.path

    def _rewrite(self, text: str, owner: griffe.Object, paths: dict[str, str]) -> str:
        def link(match: re.Match) -> str:
            name = match[1]
            path = paths.get(name) or paths.get(f"{owner.name}.{name}")
            # Optional: not every name has a page.
            return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>' if path else f"`{name}`"

        text = _NOTE.sub(note, text)
        text = _HEADING_AMONG_ARGUMENTS.sub("", text)
        text = _ARGUMENT.sub(lambda match: f"{match[1]} ({plain_type(match[2])}):", text)
        text = _GIVEN.sub(lambda match: match[1] + plain_type(match[2]), text)
        return _CROSS_REFERENCE.sub(link, text)
