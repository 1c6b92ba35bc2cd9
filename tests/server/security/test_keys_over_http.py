"""Keys, roles, galleries, rates and the audit log hold over HTTP as over gRPC."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests import twins
from tests.server.security.guarded import Guarded

PIXELS, _ = twins.classes_of_pixels(2, 2)
GALLERY = "/twinserve.v1.GalleryService/"


def post(guarded: Guarded, path: str, body: Any, key: str) -> tuple[int, Any, Any]:
    """Return the status, the JSON and the headers of an answer."""
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {guarded.keys.get(key, key)}"
    url = f"http://127.0.0.1:{guarded.server.http_port}{path}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.load(reply), reply.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers


@pytest.mark.parametrize("key", ["", "tws_reader_" + "A" * 43, "old"])
def test_without_a_valid_key_nothing_is_answered(guarded: Guarded, key: str) -> None:
    for path in ("/v1/embeddings", f"{GALLERY}ListGalleries", f"{GALLERY}Enroll"):
        status, answer, _ = post(guarded, path, {}, key)
        assert status == 401, (path, answer)


def test_a_role_allows_its_own_and_no_more(guarded: Guarded) -> None:
    assert post(guarded, f"{GALLERY}DeleteGallery", {"name": "x"}, "writer")[0] == 403
    assert post(guarded, f"{GALLERY}Enroll", {"gallery": "north-1"}, "reader")[0] == 403
    status, answer, _ = post(guarded, f"{GALLERY}GetGallery", {"name": "north-1"}, "reader")
    assert (status, answer["gallery"]["name"]) == (200, "north-1")


def test_another_keys_gallery_is_refused_and_not_listed(guarded: Guarded) -> None:
    for name in ("south-1", "south-9", "shared"):
        assert post(guarded, f"{GALLERY}GetGallery", {"name": name}, "north")[0] == 403
    _, answer, _ = post(guarded, f"{GALLERY}ListGalleries", {}, "south")
    assert [one["name"] for one in answer["galleries"]] == ["south-1"]


def test_changes_by_http_are_in_the_audit_log(guarded: Guarded) -> None:
    before = len(guarded.lines())
    gallery = {"gallery": {"name": "http-1"}}
    assert post(guarded, f"{GALLERY}CreateGallery", gallery, "ops")[0] == 200
    assert post(guarded, f"{GALLERY}DeleteGallery", {"name": "http-1"}, "ops")[0] == 200
    assert post(guarded, f"{GALLERY}DeleteGallery", {"name": "http-1"}, "ops")[0] == 404
    lines = guarded.lines()[before:]
    assert [(line["method"], line["key"], line["code"]) for line in lines] == [
        ("CreateGallery", "ops", "OK"),
        ("DeleteGallery", "ops", "OK"),
        ("DeleteGallery", "ops", "NOT_FOUND"),
    ]
    assert all("127.0.0.1" in line["peer"] for line in lines)
    assert all(line["gallery"] == "http-1" for line in lines)


def test_over_its_rate_a_key_hears_when_to_come_back(guarded: Guarded) -> None:
    answers = [post(guarded, f"{GALLERY}ListGalleries", {}, "slow") for _ in range(3)]
    status, _, headers = answers[-1]
    assert status == 429
    assert 1 <= int(headers["Retry-After"]) <= 10
