"""The models that are served, as every call finds them: by name, name@version, alias or space.

Readers take no lock: the table of names is immutable and replaced by one assignment. A call that
works holds its engine with `using` or `using_space` from its first look to its reply, so that all
of its answer is of one version, and an unload waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType

from twinserve.server.engine import Engine
from twinserve.server.models.table import Served, Table, order

__all__ = ["Models", "order"]

# A name that moves while it is looked up is looked up again; more often than this it cannot move.
_LOOKS = 1000


class Models:
    """Loaded engines. Reading is safe from any thread; whoever changes `table` serialises that.

    Args:
        engines: served from the beginning. Where they have one name, it is what "" means.
    """

    def __init__(self, engines: Iterable[Engine] = ()) -> None:
        served = tuple(Served(engine) for engine in engines)
        names = {one.engine.name for one in served}
        self.table = Table(served, default=names.pop() if len(names) == 1 else "")

    def __iter__(self) -> Iterator[Engine]:
        return iter([one.engine for one in self.table.served])

    def resolve(self, name: str, field: str = "model") -> Engine:
        """Find the engine of a name, name@version or alias; "" is the only one served.

        For a look at it; work holds it, with `using`.

        Args:
            name: as asked for.
            field: path of the request's field that holds it.

        Raises:
            ModelNotFound: no such model, or "" with several served; the message lists them.
        """
        return self.table.find(name, field).engine

    def of_space(self, name: str, space_id: str) -> Engine:
        """Find the engine that embeds into `space_id`, made with model `name`.

        Raises:
            SpaceMismatch: no served model gives that space any more; both are named.
        """
        return self.table.find_space(name, space_id).engine

    def using(self, name: str, field: str = "model") -> AbstractContextManager[Engine]:
        """Hold the engine that `resolve` finds: it is not unloaded while the block runs."""
        return _Using(self, name, field)

    def using_space(self, name: str, space_id: str) -> AbstractContextManager[Engine]:
        """Hold the engine that `of_space` finds: it is not unloaded while the block runs."""
        return _UsingSpace(self, name, space_id)


class _Using:
    # Classes, for a generator costs a microsecond more, once a call.
    __slots__ = ("_held", "_models", "_name", "_what")

    def __init__(self, models: Models, name: str, what: str) -> None:
        self._models = models
        self._name = name
        self._what = what
        self._held: Served

    def __enter__(self) -> Engine:
        for _ in range(_LOOKS):
            held = self._find()
            if held.enter():
                self._held = held
                return held.engine
        raise AssertionError("a retired model is still in the table")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.leave()
        if error is not None:
            # Whoever counts the call's failure learns which model's it was.
            error.__dict__["model"] = self._held.engine.name

    def _find(self) -> Served:
        return self._models.table.find(self._name, self._what)


class _UsingSpace(_Using):
    __slots__ = ()

    def _find(self) -> Served:
        return self._models.table.find_space(self._name, self._what)
