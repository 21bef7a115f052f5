"""``--change``: Dockerfile instructions that change an image's config, as ``docker commit`` and ``import`` take them.

CMD ENTRYPOINT ENV EXPOSE HEALTHCHECK LABEL ONBUILD STOPSIGNAL USER VOLUME WORKDIR, in the forms of the Dockerfile
reference; ``CMD=value``, which podman takes too. Variables are replaced from the image's own environment, where a
Dockerfile replaces them.
"""

from __future__ import annotations

import json
import posixpath
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import UsageError

Config = dict[str, Any]

_INSTRUCTION = re.compile(r"([A-Za-z]+)(?:[ \t=]\s*(.*))?", re.ASCII | re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|ns)", re.ASCII)
_NANOSECONDS = {"h": 3600e9, "m": 60e9, "s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3, "ns": 1.0}
_REALTIME = re.compile(r"RT(?:MIN(?:\+([0-9]|1[0-5]))?|MAX(?:-([0-9]|1[0-4]))?)", re.ASCII)


def changed(config: Mapping[str, Any], changes: Sequence[str]) -> Config:
    """The image config's "config" object after ``changes``, in order; ``config`` itself stays as it is.

    Each of ``changes`` is an instruction, or several, a line each. ENTRYPOINT drops a CMD that is not among the
    changes, as in a Dockerfile. Raises `UsageError` that quotes the instruction at fault.
    """
    found: Config = json.loads(json.dumps(dict(config)))
    seen: set[str] = set()
    for line in _lines(changes):
        match = _INSTRUCTION.fullmatch(line)
        name = match[1].upper() if match else ""
        handler = _HANDLERS.get(name)
        if match is None or handler is None:
            raise UsageError(
                f"--change {line!r}: no instruction that changes an image's settings",
                hint=f"One of {', '.join(sorted(_HANDLERS))}, as in a Dockerfile.",
            )
        rest = (match[2] or "").strip()
        try:
            if not rest:
                raise ValueError("it says nothing")
            handler(found, rest)
        except ValueError as error:
            raise UsageError(f"--change {line!r}: {error}", hint="Write it as in a Dockerfile.") from None
        seen.add(name)
    if "ENTRYPOINT" in seen and "CMD" not in seen:
        found.pop("Cmd", None)
    return found


def _lines(changes: Sequence[str]) -> list[str]:
    lines = [line.strip() for text in changes for line in re.sub(r"\\[ \t]*\n", " ", text).split("\n")]
    if any(not text.strip() for text in changes):
        raise UsageError("--change: the instruction is empty", hint='For example --change "CMD [\\"sh\\"]".')
    return [line for line in lines if line and not line.startswith("#")]


# --- words


def _split(text: str) -> list[str]:
    """The words of ``text`` as they stand, quotes and all: blanks within quotes or behind a backslash belong to one."""
    words: list[str] = []
    word, quote = "", ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\" and quote != "'" and at + 1 < len(text):
            word += text[at : at + 2]
            at += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char.isspace():
            if word:
                words.append(word)
            word = ""
            at += 1
            continue
        word += char
        at += 1
    if quote:
        raise ValueError(f"a {quote} is not closed")
    return [*words, word] if word else words


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """``text`` without quotes and backslashes, and with the values of variables."""
    found, quote = "", ""
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if quote == "'":
            if char == "'":
                quote = ""
            else:
                found += char
        elif char == "\\" and at < len(text):
            # Within double quotes a backslash stays where it hides nothing.
            found += text[at] if not quote or text[at] in '"$\\' else char + text[at]
            at += 1
        elif quote and char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        elif char == "$":
            value, at = _variable(text, at, env)
            found += value
        else:
            found += char
    if quote:
        raise ValueError(f"a {quote} is not closed")
    return found


def _variable(text: str, at: int, env: Mapping[str, str]) -> tuple[str, int]:
    """The value of the variable behind a ``$`` before ``at``, and where the text goes on."""
    braced = text[at : at + 1] == "{"
    match = _NAME.match(text, at + braced)
    if match is None:
        if braced:
            raise ValueError("a variable has no name")
        return "$", at
    name, at = match[0], match.end()
    if not braced:
        return env.get(name, ""), at
    if text[at : at + 1] == "}":
        return env.get(name, ""), at + 1
    end = _closing(text, at)
    colon = text[at] == ":"
    operator = text[at + colon : at + colon + 1]
    word = text[at + colon + 1 : end]
    there = bool(env.get(name)) if colon else name in env
    if operator == "-":
        return env[name] if there else _expanded(word, env), end + 1
    if operator == "+":
        return _expanded(word, env) if there else "", end + 1
    if operator == "?":
        if not there:
            raise ValueError(f"{name}: {_expanded(word, env) or 'it is not set'}")
        return env[name], end + 1
    raise ValueError(f"${{{name}{text[at:end]}}} is no way to name a variable")


def _closing(text: str, at: int) -> int:
    depth = 1
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if not depth:
                return at
        at += 1
    raise ValueError("a { is not closed")


def _environment(config: Config) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in config.get("Env") or ())


def _pairs(config: Config, text: str) -> list[tuple[str, str]]:
    """``NAME=VALUE ...``, or the old ``NAME VALUE`` whose value is the rest of the line."""
    env = _environment(config)
    words = _split(text)
    if "=" not in words[0]:
        value = text[len(words[0]) :].strip()
        if not value:
            raise ValueError(f"{words[0]} has no value")
        return [(_expanded(words[0], env), _expanded(value, env))]
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} is not NAME=VALUE")
        pairs.append((_expanded(name, env), _expanded(value, env)))
    return pairs


def _strings(text: str) -> list[str] | None:
    """A JSON array of strings, None where it is anything else: Docker then takes the text as it is."""
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def _command(config: Config, text: str) -> list[str]:
    words = _strings(text)
    return words if words is not None else [*(config.get("Shell") or ("/bin/sh", "-c")), text]


def _expanded_words(config: Config, text: str) -> list[str]:
    env = _environment(config)
    words = _strings(text)
    return [_expanded(word, env) for word in (_split(text) if words is None else words)]


def _one(config: Config, text: str) -> str:
    found = _expanded(text, _environment(config)).strip()
    if not found:
        raise ValueError("it comes to nothing")
    return found


# --- instructions


def _cmd(config: Config, text: str) -> None:
    config["Cmd"] = _command(config, text)


def _entrypoint(config: Config, text: str) -> None:
    config["Entrypoint"] = _command(config, text)


def _env(config: Config, text: str) -> None:
    entries: list[str] = list(config.get("Env") or ())
    for name, value in _pairs(config, text):
        if not name or "\0" in name + value:
            raise ValueError(f"{name!r} can't be the name of a variable")
        at = next((n for n, entry in enumerate(entries) if entry.partition("=")[0] == name), None)
        if at is None:
            entries.append(f"{name}={value}")
        else:
            entries[at] = f"{name}={value}"
    config["Env"] = entries


def _label(config: Config, text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(config, text))}


def _expose(config: Config, text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in _expanded_words(config, text):
        match = _PORT.fullmatch(word)
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else 0
        if match is None or not 0 < first <= last < 65536:
            raise ValueError(f"{word!r} is not PORT[-PORT][/tcp|udp|sctp]")
        for port in range(first, last + 1):
            ports[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    config["ExposedPorts"] = ports


def _volume(config: Config, text: str) -> None:
    volumes = dict(config.get("Volumes") or {})
    for path in _expanded_words(config, text):
        if not path.strip():
            raise ValueError("a volume's path is empty")
        volumes[path] = {}
    config["Volumes"] = volumes


def _user(config: Config, text: str) -> None:
    config["User"] = _one(config, text)


def _workdir(config: Config, text: str) -> None:
    path = posixpath.join("/", config.get("WorkingDir") or "/", _one(config, text))
    config["WorkingDir"] = "/" + posixpath.normpath(path).lstrip("/")


def _stopsignal(config: Config, text: str) -> None:
    name = _one(config, text)
    plain = name.upper().removeprefix("SIG")
    known = {number.name.removeprefix("SIG") for number in signal.Signals}
    if not (plain in known or _REALTIME.fullmatch(plain) or (name.isdecimal() and 0 < int(name) <= 64)):
        raise ValueError(f"{name!r} is not a signal")
    config["StopSignal"] = name


def _onbuild(config: Config, text: str) -> None:
    trigger = text.split()[0].upper()
    if trigger in ("ONBUILD", "FROM", "MAINTAINER"):
        raise ValueError(f"{trigger} can't be triggered by ONBUILD")
    config["OnBuild"] = [*(config.get("OnBuild") or ()), text]


def _healthcheck(config: Config, text: str) -> None:
    """In docker's form: durations in nanoseconds; "NONE" switches off the check of an image below."""
    flags = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod"}
    flags["start-interval"] = "StartInterval"
    check: Config = {}
    while text.startswith("--"):
        flag, _, text = text.partition(" ")
        name, equals, value = flag[2:].partition("=")
        text = text.strip()
        if not equals:
            raise ValueError(f"{flag} has no value")
        if name == "retries":
            if not value.isdecimal():
                raise ValueError(f"{value!r} is not a number of retries")
            check["Retries"] = int(value)
        elif name in flags:
            check[flags[name]] = _nanoseconds(value)
        else:
            raise ValueError(f"{flag} is not known")
    kind, _, rest = text.partition(" ")
    if kind.upper() == "NONE" and not rest.strip() and not check:
        check["Test"] = ["NONE"]
    elif kind.upper() == "CMD" and rest.strip():
        words = _strings(rest)
        check["Test"] = ["CMD-SHELL", rest.strip()] if words is None else ["CMD", *words]
    else:
        raise ValueError("a health check is NONE or CMD and a command")
    config["Healthcheck"] = check


def _nanoseconds(text: str) -> int:
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration like 30s or 1m30s")
    return int(sum(float(number) * _NANOSECONDS[unit] for number, unit in parts))


_HANDLERS: dict[str, Callable[[Config, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
