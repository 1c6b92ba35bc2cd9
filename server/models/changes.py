"""Every change of what is served: load, unload, aliases, shadow runs; and what a restart restores.

A change is made on the side first (loaded and warm, checked against the galleries, written to the
catalogue) and then becomes visible in one assignment of the table of names. So no call fails for
it, and a process that dies at any instant comes back with the old names or with the new ones. Loads
and unloads come one at a time; an alias moves at once, also while something is being loaded.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from twinserve import manifest as manifests
from twinserve.errors import (
    ConfigError,
    EmptyInput,
    FailedPrecondition,
    InvalidInput,
    ModelNotFound,
    NotFound,
    TwinserveError,
    Unavailable,
)
from twinserve.manifest import Manifest
from twinserve.server.config import ModelSpec
from twinserve.server.models.holding import Models
from twinserve.server.models.loading import digest_of
from twinserve.server.models.records import ModelRecords, Record
from twinserve.server.models.shadow import Report, Shadow
from twinserve.server.models.table import Bound, Origin, Served, Table, order, stranded
from twinserve.server.runtime.machine import give_back_memory

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Seconds that an unload waits for the calls that hold the model.
PATIENCE = 30.0
_WAY_OUT = "or start with --forget-models to serve what --model names and nothing else"


class ModelChanges:
    """The one place that changes `models`. Calls are blocking, and safe from any thread.

    Args:
        models: to be changed.
        load: makes a warm engine of (path, name, file); see `Loader.load`.
        records: what a restart restores.
        galleries: says which there are, and which spaces they need.
        model_dir: the only folder that `load` loads from; None refuses every load.
        forget: told of a name of which no version is served any more.
        patience: seconds that an unload waits for running calls.
        read: gives a file's manifest; see `Loader.read`.
    """

    def __init__(
        self,
        models: Models,
        load: Callable[[Path, str, str], Served],
        records: ModelRecords,
        galleries: Callable[[], Iterable[Bound]],
        model_dir: Path | None,
        forget: Callable[[str], None],
        patience: float = PATIENCE,
        read: Callable[[Path], Manifest] = manifests.read,
    ) -> None:
        self._models = models
        self._read = read
        self._load = load
        self._records = records
        self._galleries = galleries
        self._model_dir = model_dir
        self._forget = forget
        self._patience = patience
        self._shadows: dict[str, Shadow] = {}  # by the candidate's name@version
        self._leaving: Served | None = None  # not in the table; back in it if its calls do not end
        self._loading = threading.Lock()  # held through loads and unloads, which take a while
        self._changing = threading.RLock()  # held for a change of the table

    # -- the start and the end --------------------------------------------------------------------

    def start(self, specs: Sequence[ModelSpec], *, forget: bool = False) -> None:
        """Load what the flags name, and what is remembered unless it is to be forgotten.

        Raises:
            TwinserveError: something cannot be served, or is not what it was; nothing is, then.
        """
        if self._model_dir is not None and not self._model_dir.is_dir():
            raise ConfigError(
                f"--model-dir {self._model_dir} is not a folder; make it, or leave it out"
            )
        for spec in specs:
            served = self._load(spec.path, spec.name, "")
            self._models.table = self._begin(served)
        names = {one.engine.name for one in self._models.table.served}
        default = names.pop() if len(names) == 1 else ""
        self._models.table = replace(self._models.table, default=default)
        if forget:
            self._records.keep(self._models.table)
            return
        for record in self._records.models():
            self._restore(record)
        try:
            self._models.table = replace(self._models.table, aliases=self._records.aliases())
        except FailedPrecondition as error:
            raise ConfigError(
                f"{error.message}. The catalogue remembers this alias: name the model with "
                f"--model again, {_WAY_OUT}"
            ) from error
        if not self._models.table.served:
            raise ConfigError("no model to serve; give at least one --model twin.onnx")

    def close(self) -> None:
        """End shadow runs and free every engine; no call is running any more."""
        for shadow in self.shadows().values():
            shadow.model.mirror = None
            shadow.stop()
        for engine in self._models:
            engine.batcher.close()

    def _begin(self, served: Served) -> Table:
        try:
            return _with(self._models.table, served)
        except FailedPrecondition:
            served.engine.batcher.close()
            raise

    def _restore(self, record: Record) -> None:
        version = f"{record.name}@{record.version}"
        what = f"the catalogue remembers {version}, loaded from {record.file}"
        there = self._models.table.of(version)
        if there is not None:
            if there.origin is None or there.origin.digest != record.digest:
                raise ConfigError(
                    f"{what}, and --model names another file for it; leave that out, {_WAY_OUT}"
                )
            there.origin = replace(there.origin, file=record.file)
            return
        if self._model_dir is None:
            raise ConfigError(f"{what}; give --model-dir, {_WAY_OUT}")
        try:
            path = _below(self._model_dir, record.file)
        except TwinserveError as error:
            raise ConfigError(
                f"{what}, which cannot be loaded any more: {error.message}. Put the file back, "
                f"{_WAY_OUT}"
            ) from error
        if digest_of(path) != record.digest:
            raise ConfigError(
                f"{what}, and that file has other content now; put the right one back, {_WAY_OUT}"
            )
        try:
            self._models.table = self._begin(self._load(path, record.name, record.file))
        except TwinserveError as error:
            raise ConfigError(
                f"{what}, which cannot be served: {error.message}; {_WAY_OUT}"
            ) from error

    # -- changes ----------------------------------------------------------------------------------

    def load(
        self, file: str, name: str = "", aliases: Sequence[str] = (), *, force: bool = False
    ) -> Served:
        """Load a twin from the model folder, warm it, and move the aliases to it.

        What is loaded already, with the same content, is not loaded again.

        Args:
            file: below the model folder.
            name: to serve it under; "" is the manifest's own.
            aliases: that are to point at it.
            force: do it even where galleries are left behind.

        Raises:
            FailedPrecondition: no model folder, not a twin, another file serves under its
                name@version, or galleries would be left behind.
            InvalidInput: a file outside the folder, or a name that is none.
            NotFound: no such file.
        """
        if self._model_dir is None:
            raise FailedPrecondition(
                "this server loads no models: it was started without --model-dir; start it with "
                "the folder that models may be loaded from"
            )
        path = _below(self._model_dir, file)
        if name:
            _check_name(name, "name")
        for i, alias in enumerate(aliases):
            _check_name(alias, f"aliases[{i}]")
        with self._loading, _naming(path, file):
            manifest = self._read(path)
            name = name or manifest.name
            _check_name(name, "name")
            version = f"{name}@{manifest.version}"
            there = self._models.table.of(version)
            before = there.origin if there else None
            if there is not None:
                # From now on it is remembered, also where --model named it.
                there.origin = replace(_check_same(there, path, file), file=file)
            served = there or self._load(path, name, file)
            try:
                pointed = dict.fromkeys(aliases, served.engine.version)
                self._change(lambda table: _with(table, served, pointed), force)
            except BaseException:
                if there is not None:
                    there.origin = before
                else:
                    served.engine.batcher.close()
                    self._forget_unserved(name)
                raise
        log.info("%s is served%s", version, f" as {', '.join(aliases)}" if aliases else "")
        return served

    def unload(self, name: str, version: str = "", *, force: bool = False) -> None:
        """Stop serving a version: new calls do not get it, and once the running ones are done it
        is freed.

        Args:
            name: of the model.
            version: of it; "" where only one is served.
            force: do it even where aliases point at it, which go too, or galleries need it.

        Raises:
            EmptyInput, InvalidInput: no name, or several versions and none named.
            ModelNotFound: it is not served.
            FailedPrecondition: aliases or galleries need it.
            Unavailable: calls held it for too long; it is served on.
        """
        version = self._unload(name, version, force)
        log.info("%s is served no more", version)
        give_back_memory()

    def _unload(self, name: str, version: str, force: bool) -> str:
        with self._loading:
            with self._changing:
                served = self._one(name, version)
                before = self._models.table
                pointing = before.aliases_of(served.engine.version)
                if pointing and not force:
                    raise FailedPrecondition(
                        f"alias {', '.join(pointing)} points at {served.engine.version}; move or "
                        "delete the alias first, or force the unload, which deletes it",
                        resource=("alias", pointing[0]),
                    )
                after = _without(before, served)
                self._check_galleries(before, after, force)
                self._models.table = after
                self._leaving = served
            try:
                self._drain(served, force)
            except BaseException:
                self._put_back(served, dict.fromkeys(pointing, served.engine.version))
                raise
            finally:
                self._leaving = None
            for shadow in list(self.shadows().values()):
                if served.engine in (shadow.model, shadow.candidate):
                    self._stop(shadow)
            served.engine.batcher.close()
            self._forget_unserved(served.engine.name)
        return served.engine.version

    def _forget_unserved(self, name: str) -> None:
        """Let go of what is counted by a name; no load is under way that may count by it."""
        if all(engine.name != name for engine in self._models):
            self._forget(name)

    def set_alias(self, alias: str, name: str, version: str = "", *, force: bool = False) -> Served:
        """Point an alias at a loaded version.

        Args:
            alias: new or not; it may be the model's own name.
            name: of the model.
            version: of it; "" is the newest.
            force: do it even where galleries are left behind.

        Raises:
            InvalidInput: not an alias.
            ModelNotFound: no such model.
            FailedPrecondition: another model has this name, or galleries would be left behind.
            Unavailable: that other model is being unloaded.
        """
        _check_name(alias, "alias")
        with self._changing:
            served = self._one(name, version, newest=True)
            pointed = {alias: served.engine.version}
            self._change(lambda table: _with(table, served, pointed), force)
        log.info("%s is %s", alias, served.engine.version)
        return served

    def delete_alias(self, alias: str, *, force: bool = False) -> None:
        """Take an alias away.

        Args:
            alias: that there is.
            force: do it even where galleries are left behind.

        Raises:
            NotFound: there is none.
            FailedPrecondition: galleries would be left behind.
        """
        if not alias:
            raise EmptyInput("alias is empty; name the alias to delete", field="alias")
        with self._changing:
            if alias not in self._models.table.aliases:
                known = ", ".join(sorted(self._models.table.aliases)) or "none"
                raise NotFound(
                    f"there is no alias {alias[:200]}; those that there are: {known}",
                    field="alias",
                    resource=("alias", alias[:200]),
                )
            self._change(lambda table: _without_alias(table, alias), force)
        log.info("%s is no alias any more", alias)

    # -- shadow runs ------------------------------------------------------------------------------

    def start_shadow(self, candidate: str, model: str, share: float) -> Shadow:
        """Send a share of a model's calls to a candidate too; see shadow.py.

        Raises:
            InvalidInput: a share outside (0, 1], or no names.
            ModelNotFound: one of both is not served.
            FailedPrecondition: both are one, take other inputs, or one of both is in a run.
        """
        if not 0.0 < share <= 1.0:
            raise InvalidInput(
                f"share is {share}; give the share of the calls, above 0 and at most 1",
                field="share",
            )
        with self._changing:
            tried = self._named(candidate, "candidate").engine
            live = self._named(model, "model").engine
            if tried is live:
                raise FailedPrecondition(
                    f"candidate and model are both {live.version}; name two models"
                )
            if tried.manifest.modality != live.manifest.modality:
                raise FailedPrecondition(
                    f"{live.version} takes {live.manifest.modality}, and {tried.version} "
                    f"{tried.manifest.modality}; a candidate must take the model's inputs"
                )
            for shadow in self._shadows.values():
                # In any part: two that were tried on each other would mirror one call for ever.
                parts = shadow.candidate, shadow.model
                if tried in parts or live in parts:
                    raise FailedPrecondition(
                        f"{shadow.candidate.version} is tried on {shadow.model.version} already; "
                        "stop that run first"
                    )
            shadow = self._shadows[tried.version] = Shadow(live, tried, share)
            live.mirror = shadow.mirror
        log.info("%s is tried on %.3g of the calls of %s", tried.version, share, live.version)
        return shadow

    def stop_shadow(self, candidate: str) -> Report:
        """End a shadow run and return its last report.

        Raises:
            ModelNotFound, NotFound: no such model, or it is not tried.
        """
        with self._changing:
            version = self._named(candidate, "candidate").engine.version
            shadow = self._shadows.get(version)
        if shadow is None:
            raise NotFound(
                f"{version} is not the candidate of a shadow run", resource=("shadow", version)
            )
        return self._stop(shadow)

    def shadows(self) -> Mapping[str, Shadow]:
        """The runs by their candidates' name@version."""
        with self._changing:
            return dict(self._shadows)

    def _stop(self, shadow: Shadow) -> Report:
        with self._changing:
            self._shadows.pop(shadow.candidate.version, None)
            if shadow.model.mirror == shadow.mirror:
                shadow.model.mirror = None
        return shadow.stop()

    # -- parts ------------------------------------------------------------------------------------

    def _change(self, make: Callable[[Table], Table], force: bool) -> None:
        """Check a change, make it durable, and then visible."""
        with self._changing:
            before = self._models.table
            after = make(before)
            self._check_leaving(after)
            self._check_galleries(before, after, force)
            self._records.keep(after)
            self._models.table = after

    def _check_leaving(self, after: Table) -> None:
        """Refuse to give the name away of what may have to be served on."""
        leaving = self._leaving
        if leaving is None:
            return
        try:
            _with(after, leaving)
        except FailedPrecondition as error:
            version = leaving.engine.version
            raise Unavailable(
                f"{version} is being unloaded, and served on if its calls do not end: "
                f"{error.message}, or try again when it is unloaded",
                resource=("model", version),
                retry_after=1.0,
            ) from error

    def _check_galleries(self, before: Table, after: Table, force: bool) -> None:
        left = "" if force else stranded(before, after, self._galleries())
        if left:
            raise FailedPrecondition(f"{left}. To do it all the same, force it")

    def _drain(self, served: Served, force: bool) -> None:
        """Wait for the calls that hold what the table names no more, and make that durable."""
        if not served.retire(self._patience):
            raise Unavailable(
                f"{served.engine.version} is still held by {served.holders} calls after "
                f"{self._patience:.0f} s; it is served on. Try again when they are done",
                resource=("model", served.engine.version),
                retry_after=1.0,
            )
        with self._changing:
            after = self._models.table
            # One of those calls may have made a gallery.
            self._check_galleries(_with(after, served), after, force)
            self._records.keep(after)

    def _put_back(self, served: Served, pointing: Mapping[str, str]) -> None:
        with self._changing:
            served.revive()
            table = self._models.table
            free = {alias: at for alias, at in pointing.items() if alias not in table.aliases}
            self._models.table = _with(table, served, free)
            # An alias that moved meanwhile has written down a table without it.
            self._records.keep(self._models.table)

    def _named(self, name: str, field: str) -> Served:
        if not name:
            raise EmptyInput(f"{field} is empty; name a model", field=field)
        return self._models.table.find(name, field)

    def _one(self, name: str, version: str, *, newest: bool = False) -> Served:
        """Find a version of a name, not of an alias."""
        if not name:
            raise EmptyInput("name is empty; name the model", field="name")
        table = self._models.table
        found = [one for one in table.served if one.engine.name == name]
        if version:
            found = [one for one in found if one.engine.manifest.version == version]
        if not found:
            what = f"{name}@{version}" if version else name
            known = ", ".join(one.engine.version for one in table.served) or "none"
            raise ModelNotFound(
                f"model {what[:200]} is not served; those that are: {known}",
                field="name",
                resource=("model", what[:200]),
            )
        if len(found) > 1 and not newest:
            versions = ", ".join(one.engine.manifest.version for one in found)
            raise InvalidInput(
                f"{name} is served in the versions {versions}; name one", field="version"
            )
        return max(found, key=lambda one: order(one.engine))


def _with(table: Table, served: Served, aliases: Mapping[str, str] | None = None) -> Table:
    others = tuple(one for one in table.served if one is not served)
    return replace(table, served=(*others, served), aliases={**table.aliases, **(aliases or {})})


def _without(table: Table, served: Served) -> Table:
    return replace(
        table,
        served=tuple(one for one in table.served if one is not served),
        aliases={alias: at for alias, at in table.aliases.items() if at != served.engine.version},
    )


def _without_alias(table: Table, alias: str) -> Table:
    return replace(table, aliases={a: at for a, at in table.aliases.items() if a != alias})


def _check_name(name: str, field: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidInput(
            f"{field} {name[:200]!r} is not 1 to 128 of A-Z a-z 0-9 . _ -, beginning with a letter "
            "or digit",
            field=field,
        )


def _check_same(there: Served, path: Path, file: str) -> Origin:
    """Refuse a second file under one name@version; the same content again is no change."""
    origin = there.origin
    if origin is not None and digest_of(path) == origin.digest:
        return origin
    raise FailedPrecondition(
        f"{there.engine.version} is served already, from "
        f"{origin.file or 'a --model' if origin else 'another file'}, and {file} has other "
        "content; give it another version when exporting, or load it under another name",
        field="file",
        resource=("model", there.engine.version),
    )


def _below(folder: Path, file: str) -> Path:
    """Return the path of a file below a folder, and of nothing outside it.

    Raises:
        EmptyInput, InvalidInput: no name, or one that leads outside.
        NotFound: no such file.
    """
    if not file:
        raise EmptyInput("file is empty; name a twin below the model folder", field="file")
    shown = file[:200]
    parts = Path(file).parts
    if "\0" in file or file.startswith("/") or ".." in parts or "\\" in file:
        raise InvalidInput(
            f"file {shown!r} is not a path below the model folder; give one such as "
            "faces/v3.onnx, without ..",
            field="file",
        )
    try:
        root = folder.resolve(strict=True)
        path = (root / file).resolve(strict=True)
    except (OSError, RuntimeError):
        raise _no_file(shown) from None
    if not path.is_relative_to(root):
        raise InvalidInput(
            f"file {shown!r} leads out of the model folder through a link; put the file itself "
            "there",
            field="file",
        )
    if not path.is_file():
        raise _no_file(shown)
    return path


def _no_file(file: str) -> NotFound:
    return NotFound(
        f"there is no file {file!r} in the server's model folder; put it there, or check the name",
        field="file",
        resource=("file", file),
    )


@contextlib.contextmanager
def _naming(path: Path, file: str) -> Iterator[None]:
    """Name a file in errors as the caller did; where the folder lies is none of its business."""
    try:
        yield
    except TwinserveError as error:
        if str(path) not in error.message:
            raise
        named = error.at(error.field or "file")
        named.message = error.message.replace(str(path), file)
        named.args = (named.message,)
        raise named from error
