"""Which name means which model: an immutable table that readers look things up in without a lock.

A request's name@version says which file runs, so no two files may share one; the precisions of one
twin are told apart by names of their own. A gallery is bound to a space, not to a file: whichever
precision of its twin is served embeds for it. A change makes a new table; `stranded` says which
galleries it would leave behind.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from twinserve.errors import FailedPrecondition, ModelNotFound, SpaceMismatch
from twinserve.server.engine import Engine


@dataclass(frozen=True)
class Origin:
    """Where an engine came from."""

    path: Path
    digest: str  # SHA-256 of the file, hexadecimal
    file: str = ""  # below --model-dir; empty where --model named it
    seconds: float = 0.0  # that loading and warming took


class Served:
    """A loaded engine, and how many calls hold it. Safe from any thread."""

    __slots__ = ("_idle", "_lock", "_retired", "engine", "holders", "origin")

    def __init__(self, engine: Engine, origin: Origin | None = None) -> None:
        self.engine = engine
        self.origin = origin
        self.holders = 0
        self._retired = False
        self._lock = threading.Lock()
        self._idle = threading.Event()

    def enter(self) -> bool:
        """Hold the engine; False where it is retired, and the table has another answer by now."""
        with self._lock:
            if self._retired:
                return False
            self.holders += 1
            return True

    def leave(self) -> None:
        """Hold it no more."""
        with self._lock:
            self.holders -= 1
            if self._retired and not self.holders:
                self._idle.set()

    def retire(self, patience: float) -> bool:
        """Let nobody in any more and wait for those inside; False when they stay for too long.

        Args:
            patience: seconds.
        """
        with self._lock:
            self._retired = True
            if not self.holders:
                return True
            self._idle.clear()
        return self._idle.wait(patience)

    def revive(self) -> None:
        """Let callers in again."""
        with self._lock:
            self._retired = False


def order(engine: Engine) -> tuple[str, list[tuple[int, int, str]]]:
    """Sort by name, then by version with its numbers read as numbers: 1.9 before 1.10."""
    words = re.findall(r"\d+|[^\d]+", engine.manifest.version)
    return engine.name, [(1, int(word), "") if word.isdigit() else (0, 0, word) for word in words]


@dataclass(frozen=True)
class Table:
    """What is served; the newest version of a name answers to the bare name, unless an alias does.

    Raises:
        FailedPrecondition: two files of one name@version; an alias of what is not served, or with
            the name of another model.
    """

    served: tuple[Served, ...] = ()  # by name and version
    aliases: Mapping[str, str] = field(default_factory=dict)  # to a name@version
    default: str = ""  # the name that "" means while other names are served too
    _by_name: dict[str, Served] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found: dict[str, Served] = {}
        ordered = tuple(sorted(self.served, key=lambda one: order(one.engine)))
        object.__setattr__(self, "served", ordered)
        for one in ordered:
            other = found.get(one.engine.version)
            if other is not None:
                raise FailedPrecondition(twice(other.engine, one.engine))
            found[one.engine.version] = one
            found[one.engine.name] = one
        names = {one.engine.name for one in ordered}
        for alias, version in self.aliases.items():
            target = found.get(version)
            if target is None:
                raise FailedPrecondition(
                    f"alias {alias} points at {version}, which is not served; load it, or move or "
                    "delete the alias",
                    resource=("alias", alias),
                )
            if alias in names and alias != target.engine.name:
                raise FailedPrecondition(
                    f"{alias} is the name of a served model and would be an alias of {version} "
                    "too; take another alias, or load the model under another name",
                    resource=("alias", alias),
                )
        for alias, version in self.aliases.items():
            found[alias] = found[version]
        unnamed = self.default if self.default in names else ""
        if not unnamed and len(names) == 1:
            (unnamed,) = names
        if unnamed:
            found[""] = found[unnamed]
        object.__setattr__(self, "_by_name", found)

    def of(self, name: str) -> Served | None:
        """Return what a name, name@version or alias means; None where it means nothing."""
        return self._by_name.get(name)

    def find(self, name: str, field: str = "model") -> Served:
        """Find a name, name@version or alias; "" is the only one served.

        Where a load at run time brought other names in, "" stays the one that the server began
        with.

        Args:
            name: as asked for.
            field: path of the request's field that holds it.

        Raises:
            ModelNotFound: no such model, or "" with several served; the message lists them.
        """
        found = self._by_name.get(name)
        if found is None:
            versions = ", ".join(one.engine.version for one in self.served)
            wrong = f"model {name[:200]} is not served" if name else "several models are served"
            instead = f"name one of {versions}"
            if not self.served:
                wrong, instead = "no model is served", "load one"
            raise ModelNotFound(f"{wrong}; {instead}", field=field, resource=("model", name[:200]))
        return found

    def find_space(self, name: str, space_id: str) -> Served:
        """Find what embeds into `space_id`, made with model `name`.

        The one served under that name goes first, in whatever precision it is; then any other that
        gives the space, full or truncated, by name and version.

        Raises:
            SpaceMismatch: no served model gives that space any more; both are named.
        """
        by_name = self._by_name.get(name)
        for one in (*([by_name] if by_name else []), *self.served):
            if space_id in one.engine.spaces:
                return one
        engines = [one.engine for one in self.served]
        raise SpaceMismatch(
            f"the gallery is of space {space_id} (model {name}), and the models served give "
            + ", ".join(f"{e.manifest.space_id} ({e.version})" for e in engines)
            + "; serve the gallery's model again, or enrol into a new gallery",
            metadata={
                "space_id": ", ".join(e.manifest.space_id for e in engines),
                "wanted_space_id": space_id,
            },
        )

    def aliases_of(self, version: str) -> tuple[str, ...]:
        """Return the aliases that point at a name@version, in order."""
        return tuple(sorted(alias for alias, at in self.aliases.items() if at == version))

    def names(self) -> set[str]:
        """Return the names that may come to mean another version: bare ones and aliases."""
        return {name for name in self._by_name if name and "@" not in name}

    def spaces(self) -> set[str]:
        """Return every space that something served gives."""
        return {space for one in self.served for space in one.engine.spaces}


@dataclass(frozen=True)
class Bound:
    """A gallery, as far as models are concerned."""

    gallery: str
    model: str  # name that it was made with
    space_id: str


def stranded(before: Table, after: Table, galleries: Iterable[Bound]) -> str:
    """Say which galleries a change would leave behind, and what to do instead; "" where none.

    Left behind is a gallery whose space nothing served gives any more, and one whose model's name,
    or an alias of its model, moves to something that does not give its space: callers that embed
    under that name would find their vectors refused. A name that nothing served had moves too when
    another twin takes it.
    """
    lost = before.spaces() - after.spaces()
    moved: list[tuple[str, Served, Served]] = []
    for name in sorted(before.names() & after.names()):
        old, new = before.of(name), after.of(name)
        if old is not None and new is not None and old is not new:
            moved.append((name, old, new))
    unserved: list[str] = []
    moving: dict[tuple[str, str, str], list[str]] = {}
    taken: dict[tuple[str, str], list[str]] = {}
    for bound in galleries:
        if bound.space_id in lost:
            unserved.append(bound.gallery)
            continue
        for name, old, new in moved:
            if (
                bound.model == old.engine.name
                and bound.space_id in old.engine.spaces
                and bound.space_id not in new.engine.spaces
            ):
                key = (name, old.engine.version, new.engine.version)
                moving.setdefault(key, []).append(bound.gallery)
                break
        taker = after.of(bound.model)
        if (
            taker is not None
            and before.of(bound.model) is None
            and bound.space_id not in taker.engine.spaces
        ):
            taken.setdefault((bound.model, taker.engine.version), []).append(bound.gallery)
    sentences = []
    if unserved:
        sentences.append(
            f"no model would be left that gives the space of {_listed(unserved)}; keep it loaded, "
            "or first delete them or re-enrol their items with another model"
        )
    for (name, old_version, new_version), names in moving.items():
        sentences.append(
            f"{name} would move from {old_version} to {new_version}, which is of another space "
            f"than {_listed(names)}; re-enrol into a gallery of the new space first, or keep "
            f"{name} where it is with an alias: {name} at {old_version}"
        )
    for (name, new_version), names in taken.items():
        sentences.append(
            f"{name} would be {new_version}, which is of another space than {_listed(names)}, made "
            f"with a {name} of before; load it under another name"
        )
    return ". ".join(sentences)


def twice(some: Engine, other: Engine) -> str:
    """Say what two files under one name@version have to do with each other, and the way out."""
    precisions = some.manifest.precision, other.manifest.precision
    if some.manifest.space_id != other.manifest.space_id:
        wrong = "by two different twins; give one of them another name"
    elif precisions[0] == precisions[1]:
        wrong = "twice; leave one of the two out, or give it another name"
    else:
        wrong = f"in two precisions, {' and '.join(sorted(precisions))}; give one a name of its own"
    example = f"--model {some.name}-{precisions[1]}=twin.{precisions[1]}.onnx"
    return f"{some.version} is given {wrong}, such as {example}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:10])
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{'gallery' if len(names) == 1 else 'galleries'} {shown}{more}"
