"""Items made ready for the writing thread: checked, digested, and as they will be stored.

In: the items of an Enroll. Out: what the transaction writes, with each item that is refused as the
error in its place.
"""

from __future__ import annotations

import re
import string
import uuid
from collections.abc import Sequence

import numpy as np

from twinserve.distance import are_sound, check_vectors
from twinserve.errors import InvalidInput, LimitExceeded, TwinserveError, WrongShape
from twinserve.server.gallery import metadata
from twinserve.server.gallery.transactions import Batch, Prepared, digest, digests
from twinserve.server.gallery.types import GalleryLimits, GallerySettings, NewItem, PackedItems

MAX_ID_CHARACTERS = 128
_ID_CHARACTERS = string.ascii_letters.encode() + string.digits.encode() + b"._:-"
ITEM_ID = re.compile(rf"[A-Za-z0-9._:-]{{1,{MAX_ID_CHARACTERS}}}")


class Preparer:
    """The checks of one gallery; any thread."""

    def __init__(self, settings: GallerySettings, limits: GalleryLimits) -> None:
        self._name = settings.name
        self._dimension = settings.dimension
        self._metric = settings.metric
        self._declared = dict(settings.metadata_keys)
        self._limits = limits

    def prepared(self, items: Sequence[NewItem]) -> list[Prepared | TwinserveError]:
        """The items as they will be stored, or in its place what is wrong with one."""
        prepared: list[Prepared | TwinserveError] = []
        seen: set[str] = set()
        checked = self._all_sound(items)
        for number, item in enumerate(items):
            try:
                ready = self._prepare(item, checked)
                if ready.id in seen:  # named by id: the caller may count otherwise than we do
                    raise InvalidInput(
                        f"item {ready.id!r} is in the request twice; send it once",
                        field="item.id",
                    )
                seen.add(ready.id)
                prepared.append(ready)
            except TwinserveError as error:
                where = f"items[{number}]" + (f".{error.field}" if error.field else "")
                prepared.append(error.at(where))
        return prepared

    def batch(self, items: PackedItems) -> Batch | None:
        """The same in bulk; None where some item is wrong, which `prepared` tells of by name."""
        embeddings = items.embeddings
        if (
            not len(items)
            or embeddings.shape != (len(items), self._dimension)
            or embeddings.dtype != np.float32
            or not are_sound(embeddings, self._metric)
            or not _are_ids(items.ids)
        ):
            return None
        try:
            for subject in set(items.subjects):
                self.check_subject(subject, "item.subject")
            texts = [
                metadata.encode(one, self._declared, self._limits) if one else "[]"
                for one in items.metadata
            ]
        except TwinserveError:
            return None
        ids = items.ids if all(items.ids) else [one or uuid.uuid4().hex for one in items.ids]
        vectors = embeddings.astype("<f4", copy=False).tobytes()
        return Batch(ids, items.subjects, texts, vectors, digests(vectors, len(ids)))

    def _all_sound(self, items: Sequence[NewItem]) -> bool:
        """Whether all embeddings pass their check; one question, since most requests are good."""
        embeddings = [item.embedding for item in items if item.embedding is not None]
        shape = (self._dimension,)
        if not embeddings or any(
            embedding.shape != shape or embedding.dtype != np.float32 for embedding in embeddings
        ):
            return False
        try:
            check_vectors(np.stack(embeddings), self._metric)
        except TwinserveError:
            return False
        return True

    def _prepare(self, item: NewItem, checked: bool) -> Prepared:
        if item.id and not ITEM_ID.fullmatch(item.id):
            raise InvalidInput(
                f"item id {item.id[:140]!r} is not 1 to 128 of the characters A-Z a-z 0-9 . _ : -",
                field="item.id",
            )
        self.check_subject(item.subject, "item.subject")
        try:
            text = metadata.encode(item.metadata, self._declared, self._limits)
        except TwinserveError as error:
            raise error.at(f"item.{error.field or 'metadata'}") from None
        if item.embedding is None:
            if not item.id:
                raise InvalidInput(
                    "an item without an embedding changes one that is there; name its id",
                    field="item.id",
                )
            return Prepared(item.id, item.subject, text, None, b"", b"")
        embedding = item.embedding
        if embedding.shape != (self._dimension,) or embedding.dtype != np.float32:
            raise WrongShape(
                f"the embedding is {embedding.dtype} {list(embedding.shape)}; gallery "
                f"{self._name!r} takes float32 [{self._dimension}]",
                field="input",
            )
        if not checked:
            try:
                check_vectors(embedding[None, :], self._metric)
            except TwinserveError as error:
                raise error.at("input") from None
        vector = embedding.astype("<f4", copy=False).tobytes()
        key = digest(vector)
        return Prepared(
            item.id or uuid.uuid4().hex, item.subject, text, vector, item.digest or key, key
        )

    def check_subject(self, subject: str, field: str) -> None:
        try:
            size = len(metadata.encode_text(subject, "the subject"))
        except InvalidInput as error:
            raise error.at(field) from None
        if size > self._limits.max_subject_bytes:
            raise LimitExceeded(
                f"the subject takes {size} bytes; use at most {self._limits.max_subject_bytes}",
                field=field,
            )


def _are_ids(ids: Sequence[str]) -> bool:
    """Whether all are good as `ITEM_ID`s, or empty, and none is there twice."""
    text = "\n".join(ids)
    if not text.isascii() or len(max(ids, key=len)) > MAX_ID_CHARACTERS:
        return False
    # What is left without the characters of ids are the line ends between them.
    if text.encode().translate(None, _ID_CHARACTERS) != b"\n" * (len(ids) - 1):
        return False
    given = list(filter(None, ids))
    return len(set(given)) == len(given)
