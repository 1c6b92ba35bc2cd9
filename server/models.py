"""The models that are served, by name, name@version or alias, and by the space that they give.

A request's name@version says which file runs, so no two files may share one; the precisions of one
twin are told apart by names of their own. A gallery is bound to a space, not to a file: whichever
precision of its twin is served embeds for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from twinserve.errors import FailedPrecondition, ModelNotFound, SpaceMismatch
from twinserve.server.engine import Engine


def order(engine: Engine) -> tuple[str, list[tuple[int, int, str]]]:
    """Sort by name, then by version with its numbers read as numbers: 1.9 before 1.10."""
    words = re.findall(r"\d+|[^\d]+", engine.manifest.version)
    return engine.name, [(1, int(word), "") if word.isdigit() else (0, 0, word) for word in words]


class Models:
    """Loaded engines; the newest version of a name answers to the bare name."""

    def __init__(self, engines: Iterable[Engine]) -> None:
        self._engines = tuple(sorted(engines, key=order))
        self._by_name: dict[str, Engine] = {}
        for engine in self._engines:
            other = self._by_name.get(engine.version)
            if other is not None:
                raise FailedPrecondition(_twice(other, engine))
            self._by_name[engine.version] = engine
            self._by_name[engine.name] = engine

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines)

    def resolve(self, name: str, field: str = "model") -> Engine:
        """Find the engine of a name, name@version or alias; "" is the only one served.

        Args:
            name: as asked for.
            field: path of the request's field that holds it.

        Raises:
            ModelNotFound: no such model, or "" with several served; the message lists them.
        """
        if not name and len(self._engines) == 1:
            return self._engines[0]
        engine = self._by_name.get(name)
        if engine is None:
            served = ", ".join(engine.version for engine in self._engines)
            wrong = f"model {name} is not served" if name else "several models are served"
            raise ModelNotFound(
                f"{wrong}; name one of {served}", field=field, resource=("model", name)
            )
        return engine

    @contextmanager
    def using(self, name: str, field: str = "model") -> Iterator[Engine]:
        """Hold the engine that `resolve` finds: it is not unloaded while the block runs."""
        yield self.resolve(name, field)

    @contextmanager
    def using_space(self, name: str, space_id: str) -> Iterator[Engine]:
        """Hold the engine that `of_space` finds: it is not unloaded while the block runs."""
        yield self.of_space(name, space_id)

    def of_space(self, name: str, space_id: str) -> Engine:
        """Find the engine that embeds into `space_id`, made with model `name`.

        The one served under that name goes first, in whatever precision it is; then any other that
        gives the space, full or truncated, by name and version.

        Raises:
            SpaceMismatch: no served model gives that space any more; both are named.
        """
        by_name = self._by_name.get(name)
        candidates = [*([by_name] if by_name else []), *self._engines]
        for engine in candidates:
            if space_id in engine.spaces:
                return engine
        raise SpaceMismatch(
            f"the gallery is of space {space_id} (model {name}), and the models served give "
            + ", ".join(f"{e.manifest.space_id} ({e.version})" for e in self._engines)
            + "; serve the gallery's model again, or enrol into a new gallery",
            metadata={
                "space_id": ", ".join(e.manifest.space_id for e in self._engines),
                "wanted_space_id": space_id,
            },
        )


def _twice(some: Engine, other: Engine) -> str:
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
