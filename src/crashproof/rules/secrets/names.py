"""Secrets by the name that they stand under."""

from __future__ import annotations

import re
from enum import StrEnum, auto
from functools import lru_cache

from crashproof.patterns import LazyPattern

__all__ = [
    "NameKind",
    "is_certain_secret",
    "is_secret_text",
    "kind_of_name",
    "looks_random",
    "may_name_setting",
    "reads_as_words",
]


class NameKind(StrEnum):
    """What a name says of its value."""

    HARMLESS = auto()
    DOUBTFUL = auto()
    """Such as `cache_key`: a secret if its value looks random."""
    ADDRESS = auto()
    """Such as `slack`: a secret if its value is an HTTP address."""
    SECRET = auto()
    PASSWORD = auto()
    """A secret even if its value is a number or a plain word."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_PASSWORDS = _set("passcode passphrase passwd password passwort pw pwd")
_SECRETS = _set("apikey authorization bearer connstr cookie cred credential dsn jwt secret webhook")
_ADDRESSES = _set("discord hook mattermost pagerduty slack teams")
_MAY_BE_SECRET = _set("key pat sas sig signature token")

_SERVICES = _set(
    "ai anthropic aws azure clearml cohere comet databricks deepinfra deepseek fireworks gcp gemini gh git github "
    "gitlab google grok groq hf hub huggingface judge kaggle litellm mistral mlflow modal neptune ngc npm nvidia "
    "openai openrouter perplexity pypi replicate runpod sentry slack teacher telegram together vault vllm wandb xai"
)
_OF_A_KEY = _SERVICES | _set(
    "access account admin api application auth client deploy encryption license master private rsa secret service "
    "session shared signing ssh ssl storage subscription tls"
)
_OF_A_TOKEN = _SERVICES | _set(
    "access account api app auth bearer bot client csrf deploy discord id jwt login oauth personal private refresh "
    "secret security service session user"
)
_OF_A_PASS = _set("account admin db ftp http login mail mysql pg postgres proxy redis root smtp ssh user")
_NO_KEYS = _set(
    "answer attention batch cache column config data dataset dict feature field foreign group hash image index input "
    "join json label lookup map metric monitor output partition primary prompt public query response reward row sort "
    "source state target text value"
)
_NO_TOKENS = _set(
    "additional assistant audio begin blank bod boi bos byte cached cls completion decoder delimiter end eod eoi eom "
    "eos eot extra fim first generated image last mask max middle min new newline next num pad per prefix prompt "
    "reasoning sample seen sep separator space special start stop sub suffix system target text think thinking tool "
    "total trained unk video vocab word"
)
_NEUTRAL = _set(
    "b64 backup base64 current data default dev hex live main new old pem plain prod production raw secondary "
    "staging str test text val value"
)
"""At the end of a name, they say which one or how it is written, not what it is."""
_ADDRESS_WORDS = _set("address endpoint link uri url")

_HUMP = LazyPattern(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = LazyPattern(r"[a-z]+[0-9]*|[0-9]+")
_JOINED = LazyPattern(
    rf"(?P<first>.*?)(?P<last>(?:(?:api|access|auth|secret|private|{'|'.join(sorted(_SERVICES))})(?:key|token))"
    r"|password|passwd|passphrase|webhook|credential|secret)(?P<url>url)?"
)
_LONGEST_NAME = 200

_WORDLIKE = LazyPattern(r"[A-Z]?[a-z]{1,14}|[A-Z]{1,6}|[a-z]?[0-9]{1,8}[A-Za-z]{0,2}")
_BETWEEN_WORDS = LazyPattern(r"[-_./:,\\ ]+")
_LIKE_KEY = LazyPattern(r"(?=[^0-9]*[0-9])[\w.~+/=-]+", re.ASCII)
_REFERENCE = LazyPattern(r"env:\w+|\$\{[\w.:]+\}|\{\{[^{}]*\}\}|\*+|\$[A-Z][A-Z0-9_]*")
_SPECIAL_TOKEN = LazyPattern(r"<[^<>\s]*>|\[[A-Za-z_]+\]|</?s>")
_SETTINGS = _set(
    "apikey auto basic bearer default digest env false iam kerberos key no none null oauth oauth2 off on required "
    "token true yes"
)
_LEAST_RANDOM = 16
_MAY_NAME_SETTINGS = _set("auth cookie cookies secret secrets token tokens")


@lru_cache(maxsize=1024)
def _kind_of_short_name(name: str) -> NameKind:
    words = [_singular(word.rstrip("0123456789") or word) for word in _words_of(name)]
    if words[-3:] in (["access", "key", "id"], ["aws", "key", "id"]) or words[-2:] == ["connection", "string"]:
        return NameKind.SECRET
    if words[-1:] == ["header"] and words[-2:-1] in (["auth"], ["authorization"]):
        return NameKind.SECRET
    while len(words) > 1 and (words[-1] in _NEUTRAL or words[-1].isdigit()):
        words.pop()
    if len(words) > 1 and words[-1] in _ADDRESS_WORDS:
        kind = _kind_of_head(words[:-1])
        is_secret = kind is NameKind.ADDRESS or words[-2] in ("webhook", "dsn")
        return kind if is_secret else NameKind.HARMLESS
    return _kind_of_head(words)


def kind_of_name(name: str) -> NameKind:
    """What the name of a config key, a variable, a header or an option says of its value."""
    return _kind_of_short_name(name[-_LONGEST_NAME:])


def is_secret_text(name: str, value: str) -> bool:
    """Whether a text is a secret under a name."""
    kind = kind_of_name(name)
    text = value.strip()
    if kind is NameKind.HARMLESS or not text or _REFERENCE.fullmatch(text):
        return False
    if kind is NameKind.PASSWORD:
        return True
    if kind is NameKind.ADDRESS:
        return text.lower().startswith(("http://", "https://"))
    if text.lower() in _SETTINGS or _SPECIAL_TOKEN.fullmatch(text):
        return False
    return kind is NameKind.SECRET or looks_random(text)


def is_certain_secret(name: str, value: str) -> bool:
    """Whether a text that is hidden under a name is no setting: under `token`, only what looks like a key."""
    kind = kind_of_name(name)
    if kind is NameKind.DOUBTFUL or (kind is NameKind.SECRET and may_name_setting(name)):
        return looks_random(value) and _LIKE_KEY.fullmatch(value) is not None
    return True


def may_name_setting(name: str) -> bool:
    """Whether a name alone, such as `token` or `cookies`, may also be that of a setting."""
    return name.lower().lstrip("-") in _MAY_NAME_SETTINGS


def looks_random(text: str) -> bool:
    """Whether a text is long, of one piece, and no name that people would give."""
    return len(text) >= _LEAST_RANDOM and not any(map(str.isspace, text)) and not reads_as_words(text)


def reads_as_words(text: str) -> bool:
    """Whether a text consists of words and numbers, like `gpt2-xl` or `2026-01-31`."""
    return all(_WORDLIKE.fullmatch(part) for part in _BETWEEN_WORDS.split(text) if part)


def _kind_of_head(words: list[str]) -> NameKind:
    """By the last word, which says what a compound is: a `key_size` is a size."""
    if not words:
        return NameKind.HARMLESS
    head, before = words[-1], words[-2] if len(words) > 1 else ""
    if head in _PASSWORDS or (head == "pass" and before in _OF_A_PASS):
        return NameKind.PASSWORD
    if head in _SECRETS or head == "auth":
        return NameKind.SECRET
    if head in _ADDRESSES:
        return NameKind.ADDRESS
    if head == "key" and before in _OF_A_KEY:
        return NameKind.SECRET
    if head == "token" and (before in _OF_A_TOKEN or not before):
        return NameKind.SECRET
    if head not in _MAY_BE_SECRET or before in (_NO_KEYS if head == "key" else _NO_TOKENS):
        return NameKind.HARMLESS
    return NameKind.DOUBTFUL


def _words_of(name: str) -> list[str]:
    """`openaiApiKey`, `OPENAI-API-KEY` and `openai_apikey` are all `openai api key`."""
    words: list[str] = []
    for word in _WORD.findall(_HUMP.sub("_", name).lower()):
        joined = _JOINED.fullmatch(word.removesuffix("s"))
        if joined is None:
            words.append(word)
            continue
        last = joined["last"]
        ending = next((each for each in ("key", "token") if last.endswith(each)), None)
        words += [part for part in (joined["first"], last[: -len(ending)] if ending else "", ending or last) if part]
        words += ["url"] if joined["url"] else []
    return words


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
