"""Errors on the wire: a canonical code, a sentence, and details that programs switch on."""

from __future__ import annotations

from urllib.parse import quote

from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2

from twinserve.errors import ModelNotFound, NotFinite, QueueFull, TwinserveError, UndecodableImage
from twinserve.server.services.status import DETAILS_BUDGET, status_of, status_of_items


def find(status: status_pb2.Status, kind: type) -> list:
    found = []
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


def test_an_item_error_names_its_field_and_reason() -> None:
    status = status_of(UndecodableImage("cannot be decoded", field="inputs[3].image"))
    assert status.code == 3
    (info,) = find(status, details.ErrorInfo)
    assert (info.reason, info.domain) == ("IMAGE_UNDECODABLE", "twinserve")
    (bad,) = find(status, details.BadRequest)
    assert bad.field_violations[0].field == "inputs[3].image"


def test_a_full_queue_says_when_to_come_again() -> None:
    status = status_of(QueueFull("full", retry_after=0.25))
    assert status.code == 8
    (retry,) = find(status, details.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 250


def test_what_was_not_found_is_named() -> None:
    (resource,) = find(
        status_of(ModelNotFound("gone", resource=("model", "faces"))), details.ResourceInfo
    )
    assert (resource.resource_type, resource.resource_name) == ("model", "faces")


def test_a_call_whose_items_all_failed_has_the_first_ones_code_and_every_item_in_its_details() -> (
    None
):
    errors: dict[int, TwinserveError] = {
        0: QueueFull("full", retry_after=1.0),
        1: NotFinite("nan", field="inputs[1].embedding"),
    }
    status = status_of_items(errors)
    assert status.code == 8
    items = find(status, status_pb2.Status)
    assert [item.code for item in items] == [8, 3]
    info = find(status, details.ErrorInfo)[0]
    assert (info.metadata["items_failed"], info.metadata["items_left_out"]) == ("2", "0")


def test_a_thousand_failed_items_still_fit_a_trailer() -> None:
    errors: dict[int, TwinserveError] = {
        i: UndecodableImage("x" * 300, field=f"inputs[{i}].image") for i in range(1000)
    }
    status = status_of_items(errors)
    assert status.ByteSize() < DETAILS_BUDGET + 512
    info = find(status, details.ErrorInfo)[0]
    shown = len(find(status, status_pb2.Status))
    assert shown >= 2
    assert info.metadata["items_failed"] == "1000"
    assert info.metadata["items_left_out"] == str(1000 - shown)


def test_a_very_long_message_is_cut() -> None:
    assert len(status_of(NotFinite("x" * 100_000, field="a")).SerializeToString()) < 4096


def test_long_strings_of_a_caller_never_outgrow_the_trailers() -> None:
    long = "名" * 20_000
    status = status_of(
        ModelNotFound(
            f"model {long} is not served",
            field=f"filter.{long}",
            resource=("model", long),
            retry_after=1.0,
            metadata={"space_id": long, "wanted_space_id": long},
        )
    )
    on_the_wire = len(quote(status.message)) + len(status.SerializeToString()) * 4 / 3
    assert on_the_wire < 7500
    assert status.code == 5
