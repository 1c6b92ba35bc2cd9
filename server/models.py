"""The models that are served, by name, name@version or alias."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

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
            if engine.version in self._by_name:
                raise FailedPrecondition(
                    f"{engine.version} is given twice; give one of the two another name "
                    "with --model NAME=twin.onnx"
                )
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

    def of_space(self, name: str, space_id: str) -> Engine:
        """Find the engine that embeds for a gallery of `space_id`, made with model `name`.

        Raises:
            SpaceMismatch: no served model gives that space any more; both are named.
        """
        by_name = self._by_name.get(name)
        candidates = [*([by_name] if by_name else []), *self._engines]
        for engine in candidates:
            if engine.manifest.space_id == space_id:
                return engine
        raise SpaceMismatch(
            f"the gallery is of space {space_id} (model {name}), and the models served give "
            + ", ".join(f"{e.manifest.space_id} ({e.version})" for e in self._engines)
            + "; serve the gallery's model again, or enrol into a new gallery",
            metadata={"space_id": space_id},
        )
