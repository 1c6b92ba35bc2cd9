"""Settings of a program by flag, then environment, then a TOML file, then default.

In: an argparse parser, of which every long option is a setting: `--grpc-port` on the command line,
`TWINSERVE_GRPC_PORT` in the environment, `grpc_port` in the file. Out: the namespace that argparse
would give, with where each value came from. Nothing is declared twice, so an option that is added
to the parser has all three ways at once.

An option's `type` takes text, and takes the text of its own value again: `as_toml` prints values,
and what it prints can be read back.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinserve.errors import ConfigError
from twinserve.suggestions import did_you_mean, nearest

PREFIX = "TWINSERVE_"
# Variables of ours that are no settings of a server, and those of its clients.
_CLIENTS = f"{PREFIX}CLIENT_"
_OTHERS = ("API_KEY", "CONFIG", "DEBUG", "LOG", "TARGET")
_TLS = ("CLIENT_TLS", "CLIENT_TLS_CA", "CLIENT_TLS_CERT", "CLIENT_TLS_KEY")
OTHERS = frozenset(f"{PREFIX}{name}" for name in (*_OTHERS, *_TLS))

_APART = ("help", "config", "print_config")
_UNSET: Any = object()
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
# Words at the end of a name whose value is a secret, unless it is the path of one.
_SECRET = frozenset(("key", "token", "password", "passphrase", "secret", "headers"))
# So alike that it can hardly be anything else: other programs have variables of this prefix, too.
_ALIKE = 0.8
# Kubernetes sets NAME_PORT=tcp://10.0.0.7:50051 for each Service in a pod's namespace; one that is
# named twinserve-grpc would set our port.
_KUBERNETES = re.compile(r"(tcp|udp|sctp)://\S+")


@dataclass(frozen=True)
class Setting:
    """One setting as it is in effect."""

    name: str  # as in the file
    value: Any
    origin: str  # such as "flag --grpc-port", "environment TWINSERVE_GRPC_PORT" or "default"
    secret: bool = False

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return "--" + self.name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config and --print-config to a parser whose options are settings."""
    group = parser.add_argument_group(
        "settings",
        # By hand: the parsers keep the line ends of their examples, and so of this.
        f"Every flag can also be given as {PREFIX}NAME in the environment or as name\n"
        f"in a TOML file: --grpc-port, {PREFIX}GRPC_PORT, grpc_port. A flag goes before\n"
        "the environment, and that before the file. docs/settings.md lists them all.",
    )
    group.add_argument(
        "--config", metavar="FILE.toml", help=f"file with settings (or {PREFIX}CONFIG)"
    )
    group.add_argument(
        "--print-config",
        action="store_true",
        help="print the settings in effect as such a file, each with where it came from, and exit",
    )


def options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the settings of a parser by name, each with the option that declares it."""
    found = {}
    for action in parser._actions:  # argparse tells them in no public way
        long = [text for text in action.option_strings if text.startswith("--")]
        if long and action.dest not in _APART:
            found[long[0].removeprefix("--").replace("-", "_")] = action
    return found


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def parse(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    environment: Mapping[str, str] = os.environ,
    *,
    needed: Collection[str] = (),
) -> argparse.Namespace:
    """Return the parsed arguments, with what the flags leave open from environment and file.

    The namespace has `settings` besides: a `Setting` of each, in the parser's order; and
    `settings_warnings`, sentences about variables that were ignored.

    Args:
        parser: whose options are settings; none of them is required, since another layer may have
            what the command line has not.
        argv: the command line; that of the process by default.
        environment: variables by name.
        needed: names of settings that must be given somewhere.

    Raises:
        ConfigError: a file that cannot be read, an unknown name in it, a value that cannot be, or
            a setting that is needed and given nowhere.
    """
    known = options(parser)
    arguments = _parse_flags(parser, known, argv)
    path = arguments.config or environment.get(f"{PREFIX}CONFIG") or None
    file = {} if path is None else _read_file(Path(path), known)
    warnings: list[str] = []
    in_environment = dict(_read_environment(environment, known, warnings))
    settings = []
    for name, action in known.items():
        value, origin = getattr(arguments, action.dest), f"flag {_flag(action)}"
        if value is _UNSET or value is None:
            value, origin = in_environment.get(name) or file.get(name) or (_UNSET, "default")
        if value is _UNSET:
            if name in needed:
                where = "" if path is None else f", and is not in {path}"
                raise ConfigError(
                    f"{_flag(action)} is needed{where}; give the flag, {variable(name)}, or "
                    f"{name} in a --config file"
                )
            value = _default(action)
        setattr(arguments, action.dest, value)
        if action.nargs == 0 and action.const is not None:
            value = value == action.const  # whether the switch is on, also of a --no-…
        settings.append(Setting(name, value, origin, _is_secret(name, action)))
    arguments.settings = tuple(settings)
    arguments.settings_warnings = tuple(warnings)
    return arguments


def as_toml(settings: Sequence[Setting]) -> str:
    """Return settings as a TOML file that `parse` reads, their origins as comments."""
    lines = []
    for setting in settings:
        if setting.value is None:
            lines.append(f"# {setting.name} is not set")
        elif setting.secret:
            lines.append(f'# {setting.name} = "***"  # {setting.origin}; secret, so left out')
        else:
            lines.append(f"{setting.name} = {_literal(setting.value)}  # {setting.origin}")
    return "\n".join(lines) + "\n"


def with_origins(error: ConfigError, settings: Sequence[Setting]) -> ConfigError:
    """Return the error with the origin of each setting that it names by a flag nobody gave."""
    named = set(re.findall(r"--[a-z][a-z-]*", error.message))
    elsewhere = [
        f"{setting.flag} is from {setting.origin}"
        for setting in settings
        if setting.flag in named and setting.origin.startswith(("environment ", "file "))
    ]
    return ConfigError(f"{error.message} ({', '.join(elsewhere)})") if elsewhere else error


def _parse_flags(
    parser: argparse.ArgumentParser,
    known: Mapping[str, argparse.Action],
    argv: Sequence[str] | None,
) -> argparse.Namespace:
    """Parse the command line alone; what is not on it stays unset."""
    unset = argparse.Namespace()
    for action in known.values():
        # Lists are appended to, for which argparse wants None.
        setattr(unset, action.dest, None if _is_list(action) else _UNSET)
    return parser.parse_args(argv, unset)


def _read_file(path: Path, known: Mapping[str, argparse.Action]) -> dict[str, tuple[Any, str]]:
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # TOML's errors tell line and column
        raise ConfigError(f"the settings file {path} is no TOML: {error}") from error
    found = {}
    for name, value in content.items():
        place = f"{path}, line {_line(text, name)}"
        if name not in known:
            raise ConfigError(f"{place}: {name} is no setting{did_you_mean(name, known)}")
        found[name] = (_value(known[name], value, f"{place}: {name}"), f"file {place}")
    return found


def _read_environment(
    environment: Mapping[str, str], known: Mapping[str, argparse.Action], warnings: list[str]
) -> Iterator[tuple[str, tuple[Any, str]]]:
    variables = {variable(name): name for name in known}
    for key, text in environment.items():
        if not text or not key.startswith(PREFIX):
            continue  # set to nothing is how a compose file leaves a variable out
        if key in variables:
            action = known[variables[key]]
            if action.type is int and _KUBERNETES.fullmatch(text):
                warnings.append(
                    f"{key}={text} is Kubernetes' word for a Service, not a setting, and is "
                    "ignored; enableServiceLinks: false in the pod keeps such variables away"
                )
                continue
            value: Any = text
            if _is_list(action):
                value = [part.strip() for part in text.split(",") if part.strip()]
            yield variables[key], (_value(action, value, key), f"environment {key}")
        elif not (key in OTHERS or key.startswith(_CLIENTS) or _KUBERNETES.fullmatch(text)):
            meant = nearest(key.removeprefix(PREFIX), [name.upper() for name in known], _ALIKE)
            if meant is not None:
                warnings.append(
                    f"{key} is no setting and is ignored; did you mean {PREFIX}{meant}?"
                )


def _value(action: argparse.Action, value: Any, place: str) -> Any:
    """Return a value of the file or the environment as argparse would give it.

    Raises:
        ConfigError: it cannot be.
    """
    if _is_list(action):
        return [_one(action, one, place) for one in (value if isinstance(value, list) else [value])]
    if action.nargs == 0:
        word = str(value).lower()
        if word not in _YES + _NO:
            raise ConfigError(f"{place} is {value!r}; give true or false")
        yes = word in _YES
        return yes if action.const is None else action.const if yes else not action.const
    return _one(action, value, place)


def _one(action: argparse.Action, value: Any, place: str) -> Any:
    if isinstance(value, bool | list | dict):
        kind = {bool: "true or false", list: "an array", dict: "a table"}[type(value)]
        raise ConfigError(f"{place} is {kind}; give a single {_kind(action)}")
    try:
        made = action.type(str(value)) if callable(action.type) else str(value)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{place}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place} is {value!r}; give a {_kind(action)}") from error
    if action.choices is not None and made not in action.choices:
        known = [str(one) for one in action.choices]
        raise ConfigError(
            f"{place} is {value!r}; give one of {', '.join(known)}{did_you_mean(str(value), known)}"
        )
    return made


def _default(action: argparse.Action) -> Any:
    default = action.default
    if isinstance(default, str) and callable(action.type):
        return action.type(default)
    return list(default) if isinstance(default, list) else default


def _flag(action: argparse.Action) -> str:
    return next(text for text in action.option_strings if text.startswith("--"))


def _is_list(action: argparse.Action) -> bool:
    appends = isinstance(action, argparse._AppendAction)  # named in no public way
    return appends or action.nargs in ("+", "*")


def _is_secret(name: str, action: argparse.Action) -> bool:
    is_path = action.type is Path or str(action.metavar).split(".")[0] in ("FILE", "DIR", "PATH")
    # A switch that is named after a secret (--metrics-without-key) holds none.
    return not is_path and action.nargs != 0 and name.rsplit("_", 1)[-1] in _SECRET


def _kind(action: argparse.Action) -> str:
    return "whole number" if action.type is int else "number" if action.type is float else "text"


def _line(text: str, name: str) -> int:
    """Return the line of a top-level key, from 1; that of its table where it is one."""
    key = re.escape(name)
    found = re.search(rf"""^[ \t]*(\[+[ \t]*)?["']?{key}["']?[ \t]*[=.\]]""", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(one) for one in value)}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
