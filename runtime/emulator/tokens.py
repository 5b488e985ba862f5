"""A tokenizer for Metal source, shared by reflection and lint."""

from __future__ import annotations

import re
from typing import NamedTuple

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(\w*)[^\n]*", re.MULTILINE)
_TOKEN = re.compile(
    r"""[A-Za-z_]\w*
      | (?:0[xX][0-9a-fA-F]+|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)\w*
      | "(?:\\.|[^"\\])*"
      | \[\[|\]\]|::|->|<<|>>|&&|\|\||\+\+|--|[-+*/%&|^!=<>]=|\S""",
    re.VERBOSE,
)


class Token(NamedTuple):
    """One token and the line (from 1) that it stands on."""

    text: str
    line: int

    @property
    def is_name(self) -> bool:
        return self.text[0].isalpha() or self.text[0] == "_"


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n") or " "


def directives(source: str) -> list[Token]:
    """The preprocessor directives of `source` by name (`include`, `define`, ...), comments disregarded."""
    text = _COMMENT.sub(_blank, source)
    return [Token(m[1] or "#", text.count("\n", 0, m.start()) + 1) for m in _DIRECTIVE.finditer(text)]


def tokenize(source: str) -> list[Token]:
    """The tokens of `source` without comments and preprocessor lines."""
    text = _DIRECTIVE.sub(_blank, _COMMENT.sub(_blank, source))
    tokens, line, at = [], 1, 0
    for match in _TOKEN.finditer(text):
        line += text.count("\n", at, match.start())
        at = match.start()
        tokens.append(Token(match[0], line))
    return tokens


def closing(tokens: list[Token], opening: int) -> int:
    """Index of the bracket that closes the one at `opening`; `len(tokens)` when there is none."""
    close = {"(": ")", "{": "}", "[": "]", "[[": "]]", "<": ">"}[tokens[opening].text]
    depth = 0
    for i in range(opening, len(tokens)):
        depth += (tokens[i].text == tokens[opening].text) - (tokens[i].text == close)
        if depth == 0:
            return i
    return len(tokens)
