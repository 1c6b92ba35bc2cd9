"""The audit log: what changes anything is told, and nothing that is nobody's business."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2

from tests import twins
from tests.server import wire
from tests.server.security.guarded import Guarded, refusal
from tests.server.wire import Stubs
from twinserve.errors import ConfigError
from twinserve.oip import inference_pb2
from twinserve.server.security import audit
from twinserve.server.services import auditing
from twinserve.v1 import embedding_service_pb2, gallery_pb2, model_service_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as pb

PIXELS, _ = twins.classes_of_pixels(2, 2)
FILES = (embedding_service_pb2, gallery_pb2, pb, model_service_pb2, inference_pb2)


def told(guarded: Guarded, call: Any) -> list[dict[str, Any]]:
    """Return the lines that a call adds, without what differs each time: times, peers, ids."""
    before = len(guarded.lines())
    call()
    lines = guarded.lines()[before:]
    for line in lines:
        assert line.pop("time").endswith("Z")
        assert line.pop("peer").startswith(("ipv4:127.0.0.1:", "ipv6:"))
        if len(line.get("request_id", "")) == 32:  # made by the server
            del line["request_id"]
    return lines


def test_each_call_that_changes_anything_is_one_line(guarded: Guarded) -> None:
    with guarded.server.channel() as channel:
        stubs = Stubs(channel)
        ops = guarded.metadata("ops")
        item = pb.EnrollItem(
            item=shared_pb2.Item(id="secret-id", subject="secret-subject"),
            input=wire.tensor(PIXELS[0]),
        )
        broken = pb.EnrollItem(input=shared_pb2.Input(text="a secret text"))
        two = pb.EnrollRequest(gallery="north-1", items=[item, broken], request_id="r-1")
        gallery = gallery_pb2.Gallery(name="audited")

        def all_calls() -> None:
            gallery_stub = stubs.gallery
            gallery_stub.CreateGallery(pb.CreateGalleryRequest(gallery=gallery), metadata=ops)
            named = (*guarded.metadata("writer"), ("x-request-id", "call-1"))
            gallery_stub.Enroll(two, metadata=named)
            list(gallery_stub.EnrollStream(iter([two, two]), metadata=ops))
            subject = pb.RemoveRequest(gallery="north-1", subject="secret-subject")
            gallery_stub.Remove(subject, metadata=ops)
            refusal(gallery_stub.Enroll, pb.EnrollRequest(gallery="south-1"), ops)
            gallery_stub.DeleteGallery(pb.DeleteGalleryRequest(name="audited"), metadata=ops)
            load = model_service_pb2.LoadModelRequest(file="../x.onnx", aliases=["live"])
            refusal(stubs.model.LoadModel, load, ops)
            list(gallery_stub.BackupGalleries(pb.BackupGalleriesRequest(folder="b"), metadata=ops))
            # Reading is told of nowhere here.
            gallery_stub.CountItems(pb.CountItemsRequest(gallery="north-1"), metadata=ops)

        lines = told(guarded, all_calls)
    enrolled = {"gallery": "north-1", "items": 2, "failed": 1, "idempotency_key": "r-1"}
    enrolled |= {"code": "OK"}
    assert lines == [
        {"key": "ops", "method": "CreateGallery", "gallery": "audited", "code": "OK"},
        {"key": "writer", "method": "Enroll", "request_id": "call-1", **enrolled},
        {"key": "ops", "method": "EnrollStream", **enrolled},
        {"key": "ops", "method": "EnrollStream", **enrolled},
        {
            "key": "ops",
            "method": "Remove",
            "gallery": "north-1",
            "by": "subject",
            "removed": 1,
            "code": "OK",
        },
        {"key": "ops", "method": "Enroll", "gallery": "south-1", "code": "INVALID_ARGUMENT"},
        {"key": "ops", "method": "DeleteGallery", "gallery": "audited", "code": "OK"},
        {
            "key": "ops",
            "method": "LoadModel",
            "file": "../x.onnx",
            "aliases": ["live"],
            "code": "FAILED_PRECONDITION",
        },
        {"key": "ops", "method": "BackupGalleries", "folder": "b", "code": "OK"},
    ]
    text = guarded.audit.read_text() + "".join(guarded.server.errors)
    assert "secret-" not in text
    assert "secret text" not in text


def test_what_a_key_may_not_change_is_told_and_repeated_refusals_once(guarded: Guarded) -> None:
    with guarded.server.channel() as channel:
        stubs = Stubs(channel)
        request = pb.MoveItemsRequest(gallery="north-1", subject="x")

        def denied() -> None:
            for _ in range(5):
                refusal(stubs.gallery.MoveItems, request, guarded.metadata("reader"))
                refusal(stubs.gallery.MoveItems, request, guarded.metadata("tws_reader_wrong"))

        lines = told(guarded, denied)
    assert lines == [{"key": "reader", "method": "MoveItems", "code": "PERMISSION_DENIED"}]
    strangers = [line for line in guarded.server.errors if "without a valid key" in line]
    assert 1 <= len(strangers) <= 5, "many in one line"
    assert "tws_reader_wrong" not in "".join(guarded.server.errors)


def test_a_line_names_the_call_as_the_logs_and_the_client_know_it(guarded: Guarded) -> None:
    url = f"http://127.0.0.1:{guarded.server.http_port}/twinserve.v1.GalleryService/MoveItems"
    with guarded.server.channel() as channel:
        key = guarded.metadata("ops")
        wrong = pb.MoveItemsRequest(gallery="north-1")
        status = refusal(Stubs(channel).gallery.MoveItems, wrong, key)
    told = wire.detail(status, error_details_pb2.ErrorInfo).metadata["request_id"]
    assert guarded.lines()[-1]["request_id"] == told

    # One that the door refuses by HTTP has its id already; another key, not told of just now.
    headers = {"Authorization": f"Bearer {guarded.keys['writer']}", "X-Request-Id": "my-call"}
    headers["Content-Type"] = "application/json"
    refused = urllib.request.Request(url.replace("MoveItems", "CreateGallery"), b"{}", headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(refused, timeout=30)
    caught.value.close()
    line = guarded.lines()[-1]
    assert (line["method"], line["request_id"], line["code"]) == (
        "CreateGallery",
        caught.value.headers["X-Request-Id"],
        "PERMISSION_DENIED",
    )
    assert line["request_id"] == "my-call"


def test_the_file_may_be_moved_away_and_is_its_owner_s_alone(guarded: Guarded) -> None:
    with guarded.client("ops") as client:
        client.set_gallery_alias("rotated", "north-1")
        assert guarded.audit.stat().st_mode & 0o777 == 0o600
        old = guarded.audit.with_suffix(".1")
        os.replace(guarded.audit, old)
        count = len(old.read_text().splitlines())
        client.delete_gallery_alias("rotated")
        assert [line["method"] for line in guarded.lines()] == ["DeleteGalleryAlias"]
        assert len(old.read_text().splitlines()) == count
        # Together again, for those who look at all of it.
        guarded.audit.write_text(old.read_text() + guarded.audit.read_text())


def test_every_changing_method_is_told_of_by_its_own_names() -> None:
    """No request that changes anything is told of by nothing but its method."""
    methods = {
        method.name: method
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(methods) > auditing.CHANGES
    for name in auditing.CHANGES:
        request = methods[name].input_type._concrete_class()
        for field in request.DESCRIPTOR.fields:
            if field.name in ("gallery", "name", "alias", "file", "folder", "candidate"):
                if field.message_type is None:
                    setattr(request, field.name, "told")
                else:
                    request.gallery.name = "told"
        facts = auditing._asked(request)
        assert "told" in facts.values(), name
        assert "gallery" not in request.DESCRIPTOR.fields_by_name or facts["gallery"] == "told"


def test_names_are_cut_and_stay_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    facts: dict[str, audit.Fact] = {"gallery": "a\n{}" * 1000, "aliases": ["b" * 1000] * 1000}
    with audit.written_to(path):
        audit.record(key="k", peer="p", method="M", code="OK", facts=facts)
    assert not audit.is_on()
    (line,) = path.read_text().splitlines()
    written = json.loads(line)
    assert len(written["gallery"]) == 200
    assert len(written["aliases"]) == 200
    audit.record(key="k", peer="p", method="M", code="OK")
    assert len(path.read_text().splitlines()) == 1, "nobody reads it any more"


def test_a_line_that_cannot_be_written_is_an_error_of_the_log_and_not_of_the_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with audit.written_to(Path("/dev/full")), caplog.at_level(logging.ERROR):
        audit.record(key="k", peer="p", method="M", code="OK")
    assert "misses a line" in caplog.text
    with pytest.raises(ConfigError, match="cannot be written"), audit.written_to(tmp_path / "a/b"):
        pass
