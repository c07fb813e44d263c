"""Secrets in a text: by their shape, and by where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from crashproof.patterns import LazyPattern
from crashproof.rules.secrets.names import (
    NameKind,
    is_certain_secret,
    is_secret_text,
    kind_of_name,
    looks_random,
    reads_as_words,
)
from crashproof.rules.secrets.placeholder import PLACEHOLDER, hidden

__all__ = ["hide_secrets", "is_option", "without_secrets"]


class Placeholder(Protocol):
    """What stands in place of a secret."""

    def __call__(self, secret: str, *, is_certain: bool = True) -> str:
        """The placeholder of a text that certainly is a secret, or that may be a setting."""
        ...


# A key may follow an escape: a line break in JSON, or a space in an address.
_BEGINNING = r"(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt])|(?<=%[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4}))"
_SHAPES = LazyPattern(
    _BEGINNING
    + "(?:"
    + "|".join(
        [
            r"gh[a-z]_[A-Za-z0-9]{16,}",
            r"github_pat_[A-Za-z0-9_]{16,}",
            r"gl[a-z]{2,5}-[A-Za-z0-9_-]{16,}",
            r"xox[a-z]-[A-Za-z0-9-]{8,}|xapp-[A-Za-z0-9-]{8,}",
            r"A[A-Z]IA[A-Z0-9]{12,}",
            r"AIza[A-Za-z0-9_-]{20,}|ya29\.[A-Za-z0-9_.-]{16,}",
            r"(?:gsk|tgp_v1|npm|dop_v1|dckr_pat|whsec|lsv2_pt|r8|fw|pul|sbp|shpat)_[A-Za-z0-9_]{20,}",
            r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{8,}",
            r"(?:xai|nvapi|pplx|pypi|hvs|dapi|tvly|pcsk|csk|SG)[-_.][A-Za-z0-9_.-]{20,}",
            r"eyJ[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_=-]+){1,4}",
            r"[0-9]{8,10}:[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",
            r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----))*(?:-----END[A-Z0-9 ]*-----)?",
            r"https?://hooks\.slack(?:-gov)?\.com/[^\s\"'<>\\)]+",
            r"https?://(?:[a-z]+\.)?discord(?:app)?\.com/api/(?:v[0-9]+/)?webhooks/[^\s\"'<>\\)]+",
            r"https?://[A-Za-z0-9.-]+\.webhook\.office\.com/[^\s\"'<>\\)]+",
            r"https?://outlook\.office(?:365)?\.com/webhook/[^\s\"'<>\\)]+",
            r"https?://api\.telegram\.org/bot[^\s\"'<>\\)/]+",
        ]
    )
    + ")"
)
_SHAPES_OF_MODELS_TOO = LazyPattern(
    _BEGINNING
    + r"(?:(?P<sk>(?:sk|rk|pk)-[A-Za-z0-9_*-]{8,})|(?P<hf>(?:hf|api_org)_[A-Za-z0-9*]{8,}(?![A-Za-z0-9_])))"
)
"""`sk-learn-random-forest` and `hf_transformers` look like keys, until one sees that they are words."""
_ANNOUNCED = LazyPattern(r"(?i)(?:key|token|secret)[\s:=\"'`]{1,4}\Z")
_SECOND_PART = r"""(?:[^\s/?\#"'<>\\]{1,1024}|(?:(?!://)[^\s"'<>\\]){1,1024})"""
"""Up to the last @ of the host's part; one that holds a slash by mistake, up to the last @."""
_ACCOUNT = LazyPattern(
    # What follows `host:8080/` is a path.
    r"""(?<=://)(?:[^\s:/?\#@"'<>\\]{0,1024}:(?![0-9]{0,5}(?:[/?\#\s"'<>\\]|$))"""
    + _SECOND_PART
    + r"""|(?P<name>[^\s:/?\#@"'<>\\]{1,1024}))(?=@)"""
)
_SCHEMES = "apikey|aws4-hmac-sha256|basic|bearer|digest|negotiate|token"
_BEARER = LazyPattern(rf"(?i:{_BEGINNING}(?P<scheme>bearer|basic)(?:[ ]+|%20|\+))(?P<value>[\w.~+/=%:-]{{3,}})")
_AFTER_BEARER = frozenset({"api", "auth", "authentication", "authorization", "key", "realm", "scheme", "token"})

_HINTS = LazyPattern(
    r"(?i)key|token|secret|pass|pw|auth|cred|cookie|hook|dsn|jwt|conn|bearer|sig|sas|pat|slack|discord|teams|pager|matter"
)
_QUOTE = r"""(?:\\{0,8}["']|&(?:quot|apos|\#0?3[49]|\#x2[27]);|%2[27])"""
# From the beginning of a word alone: tried at each of its letters, a long one would take for ever.
_NAME = LazyPattern(
    rf"""(?x) (?<![\w.-]) (?: (?P<option> --?[A-Za-z][\w.-]*+ ) [^\S\n]+
    | (?P<name> (?: (?i:api|access|secret|private|auth) [ ]+ (?=(?i:key|token)s?\b) )? [\w.-]++ )
      (?P<assigned> {_QUOTE}?[^\S\n]* (?: => | :=? | = | %3[ADad] ) [^\S\n]* ) )"""
)
_OPEN_QUOTE = LazyPattern(rf"[bru]{{0,2}}(?P<quote>{_QUOTE})")
_QUOTED = {quote: LazyPattern(rf"(?s:[^{quote}\\\\]|\\\\.)*+") for quote in "\"'"}
_UNQUOTED = LazyPattern(
    r"""(?:[^\s"'\\&,;<>(){}\[\]] | [&,;](?!\s|[\w.-]+\s*[=:]|$) | \\(?![nrt"'\\])
    | [()\[\]{}<>](?=[^\s,;:"'()\[\]{}<>]))+""",
    re.VERBOSE,
)
_GROUP = LazyPattern(r"\[[^\]]*\]?|\{[^}]*\}?")
_REST_OF_LINE = LazyPattern(r"[^\n\r]+")
_SCHEME = LazyPattern(rf"(?i)(?:{_SCHEMES})(?:[ ]+|%20)")
_LOGIN = LazyPattern(r"(?<!\S)(?:-u|--user|--proxy-user)[ =]*[\"']?[^\s:\"'/]+:(?P<value>(?!\d+\b)[^\s\"']+)")
_OPTION = LazyPattern(r"--?[A-Za-z][\w.-]*")
_FETCHES = LazyPattern(r"\b(?:curl|wget|http|https|httpie|docker[ ]login|svn)\b")
_PLAIN_WORD = LazyPattern(r"[A-Za-z][a-z]*[.,!?]?|[0-9]{1,5}")
_VARIABLE = LazyPattern(r"(?:\$\{[\w.:]+\}|\{\{[^{}]{0,200}\}\})(?=[\s\"'&,;)\]}]|\Z)")
_LONGEST_DOUBTFUL = 512
_LONE_NAMES = frozenset(
    {"auth", "authorization", "bearer", "cookie", "cookies", "secret", "secrets", "token", "tokens"}
)


def without_secrets(text: str) -> str:
    """Text with its secrets hidden, for whatever is journalled, logged or shown."""
    return hide_secrets(text, hidden)


def hide_secrets(text: str, placeholder: Placeholder) -> str:
    """Text with its secrets replaced, and without lone surrogates, which JSON cannot hold."""
    text = text.encode("utf-8", "backslashreplace").decode()
    text = _SHAPES.sub(lambda match: placeholder(match[0]), text)
    text = _SHAPES_OF_MODELS_TOO.sub(lambda match: _hide_unless_words(match, placeholder), text)
    text = _ACCOUNT.sub(lambda match: _hide_account(match, placeholder), text)
    if _HINTS.search(text):
        text = _hide_assigned(text, placeholder)
    text = _BEARER.sub(lambda match: _hide_bearer(match, placeholder), text)
    if _FETCHES.search(text):
        text = _LOGIN.sub(lambda match: _replace_group(match, placeholder), text)
    return text


def is_option(argument: object) -> bool:
    """Whether an argument of a command line is the name of an option, such as `--api-key`."""
    return isinstance(argument, str) and _OPTION.fullmatch(argument) is not None


def _hide_unless_words(match: re.Match[str], placeholder: Placeholder) -> str:
    body = match[0].partition("-" if match["sk"] else "_")[2]
    is_announced = _ANNOUNCED.search(match.string, max(0, match.start() - 10), match.start()) is not None
    return match[0] if reads_as_words(body) and not is_announced else placeholder(match[0])


def _hide_account(match: re.Match[str], placeholder: Placeholder) -> str:
    if PLACEHOLDER.fullmatch(match[0]) or (match["name"] is not None and not looks_random(match["name"])):
        return match[0]
    return placeholder(match[0])


def _hide_bearer(match: re.Match[str], placeholder: Placeholder) -> str:
    value = match["value"]
    is_proper = match["scheme"] == "Bearer"
    if value.lower().rstrip(".:s") in _AFTER_BEARER or (reads_as_words(value) and not is_proper):
        return match[0]
    return _replace_group(match, placeholder)


def _replace_group(match: re.Match[str], placeholder: Placeholder) -> str:
    start, end = match.start("value") - match.start(), match.end("value") - match.start()
    return match[0][:start] + placeholder(match["value"]) + match[0][end:]


def _hide_assigned(text: str, placeholder: Placeholder) -> str:
    pieces: list[str] = []
    done = 0
    for start, end, is_certain in _assigned_secrets(text):
        pieces += text[done:start], placeholder(text[start:end], is_certain=is_certain)
        done = end
    return "".join([*pieces, text[done:]])


def _assigned_secrets(text: str) -> Iterator[tuple[int, int, bool]]:
    """Where the secrets are that follow their names, as in `api_key=…`, and whether each is certainly one."""
    position = 0
    while match := _NAME.search(text, position):
        position = match.end()
        name = match["option"] or match["name"]
        kind = kind_of_name(name)
        if kind is NameKind.HARMLESS:
            continue
        is_certain = kind in (NameKind.SECRET, NameKind.PASSWORD)
        # A value that is no secret is searched for further names, so it must not be read to its end each time.
        end = len(text) if is_certain else min(len(text), position + _LONGEST_DOUBTFUL)
        found = _value_at(text, match, end)
        if found is not None and _is_assigned_secret(text, match, *found, takes_groups=is_certain):
            start, end = found
            yield start, end, is_certain_secret(name, text[start:end])
            position = end


def _value_at(text: str, name: re.Match[str], limit: int) -> tuple[int, int] | None:
    start = name.end()
    # Several words belong to a cookie and to some schemes: all of the header's line, or of its quotes.
    takes_line = (name["name"] or "").lower().endswith("cookie")
    before = text[name.start() - 1 : name.start()]
    end_of_line = text.find(before, start, limit) if before in _QUOTED else -1
    if opened := _OPEN_QUOTE.match(text, start, limit):
        end = _end_of_quoted(text, opened.end(), limit, opened["quote"])
        scheme = _SCHEME.match(text, opened.end(), end)
        start = scheme.end() if scheme else opened.end()
        return (start, end) if start < end else None
    if scheme := _SCHEME.match(text, start, limit):
        if scheme[0].lower().startswith(("digest", "aws4")):
            takes_line = True
        start = scheme.end()
    if PLACEHOLDER.match(text, start) or _VARIABLE.match(text, start):
        return None
    if takes_line:
        value = _REST_OF_LINE.match(text, start, limit if end_of_line < 0 else end_of_line)
    else:
        value = _GROUP.match(text, start, limit) or _UNQUOTED.match(text, start, limit)
    return None if value is None else value.span()


def _end_of_quoted(text: str, start: int, limit: int, quote: str) -> int:
    """Where a quoted value ends; without a closing quote, at the end of its line."""
    inside = _QUOTED.get(quote)
    if inside is None:
        end = text.find(quote, start, limit)
    else:
        closing = inside.match(text, start, limit)
        end = closing.end() if closing and text.startswith(quote, closing.end()) else -1
    if start <= end < limit:
        return end
    line_end = text.find("\n", start, limit)
    return line_end if line_end >= 0 else limit


def _is_assigned_secret(text: str, match: re.Match[str], start: int, end: int, *, takes_groups: bool) -> bool:
    name, value = match["option"] or match["name"], text[start:end]
    if PLACEHOLDER.fullmatch(value) or (match["option"] and value.startswith("-")):
        return False
    if value[0] in "[{" and match.end() == start:
        return takes_groups and any(map(str.isalnum, PLACEHOLDER.sub("", value)))
    if not is_secret_text(name, value):
        return False
    if name.lower() in _LONE_NAMES and match.end() == start and "=" not in (match["assigned"] or "="):
        # In prose: "invalid token: expected a comma".
        return _PLAIN_WORD.fullmatch(value) is None or text[end : end + 1] in ("\n", "")
    return True
