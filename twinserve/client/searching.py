"""Calls of GalleryService that decide: who is this, and is this one of them."""

from __future__ import annotations

from collections.abc import Sequence

from twinserve import messages
from twinserve.client.calls import Call, checked
from twinserve.messages import Filter, Hits, InputLike, Results, Verification
from twinserve.v1 import gallery_service_pb2


def search(
    gallery: str,
    probes: Sequence[InputLike],
    top_k: int = 10,
    far: float | None = None,
    threshold: float | None = None,
    fpir: float | None = None,
    *,
    prompt: str | None = None,
    filter: Filter | None = None,
    max_distance: float | None = None,
    by_item: bool = False,
    exact: bool = False,
    ef: int | None = None,
    mean_of: int = 1,
    full: bool = False,
    at_least: str = "",
    raise_for_errors: bool = False,
    timeout: float | None = None,
) -> Call[Results[Hits]]:
    """Say who each probe is, or nobody.

    Args:
        gallery: name or alias.
        probes: 1 to the server's limit of items.
        top_k: the most hits per probe, up to 1000.
        far: pairwise false accept rate of the decision; or
        threshold: match iff distance <= threshold; or
        fpir: the chance that a probe of nobody in the gallery gets any match.
        prompt: as for `embed`.
        filter: only items with these metadata values.
        max_distance: drop hits farther than this.
        by_item: a hit is an item, not a subject by its nearest item.
        exact: scan every item instead of asking the index.
        ef: breadth of the index search; None is the gallery's.
        mean_of: a subject's distance is the mean of so many of its nearest items, up to 100;
            such hits have no probability.
        full: add metadata and times to the items.
        at_least: a consistency token; the read waits for that state, up to its deadline.
        raise_for_errors: raise the first probe's error instead of leaving it in its place.
        timeout: seconds, in place of the client's own.
    """
    request = gallery_service_pb2.SearchRequest(
        gallery=gallery,
        probes=[messages.to_input(probe, prompt) for probe in probes],
        top_k=top_k,
        filter=messages.to_filter(filter),
        max_distance=max_distance,
        rule=messages.to_rule(far, threshold, fpir),
        group_by=(
            gallery_service_pb2.GROUP_BY_ITEM if by_item else gallery_service_pb2.GROUP_BY_SUBJECT
        ),
        exact=exact,
        ef=ef,
        mean_of=mean_of,
        view=messages.to_view(full),
        at_least=at_least,
    )
    read = checked(messages.from_search_response, raise_for_errors)
    return Call(lambda stubs: stubs.gallery.Search, request, read, timeout)


def verify(
    gallery: str,
    subject: str,
    probe: InputLike,
    far: float | None = None,
    threshold: float | None = None,
    prior: float | None = None,
    *,
    prompt: str | None = None,
    mean_of: int = 1,
    at_least: str = "",
    timeout: float | None = None,
) -> Call[Verification]:
    """Say whether a probe is a subject; `far` holds for the subject as a whole.

    `prompt` is as for `embed`, `mean_of` as for `search`.

    Raises:
        SubjectNotFound: nobody of that name in the gallery.
    """
    request = gallery_service_pb2.VerifyRequest(
        gallery=gallery,
        subject=subject,
        probe=messages.to_input(probe, prompt),
        rule=messages.to_rule(far, threshold),
        at_least=at_least,
        prior=prior,
        mean_of=mean_of,
    )
    return Call(lambda stubs: stubs.gallery.Verify, request, messages.from_verify_response, timeout)
