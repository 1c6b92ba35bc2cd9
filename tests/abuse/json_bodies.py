"""Bodies of JSON that try the reader."""

from __future__ import annotations

import base64

from tests.abuse.asking import alike, http_answer
from tests.abuse.cases import theme
from tests.abuse.victim import Victim

case = theme("JSON")
EMBED = "/twinserve.v1.EmbeddingService/Embed"
OPENAI = "/v1/embeddings"


def asked(victim: Victim, *bodies: bytes, path: str = OPENAI) -> str:
    return alike(http_answer(victim, path, body) for body in bodies)


@case('100,000 brackets: `[[[[…`, `{"a":{"a":…`', "HTTP", "400 INVALID_INPUT")
def nesting(victim: Victim) -> str:
    lists, trees = b"[" * 100_000, b'{"a":' * 100_000
    whole = b'{"model":"text","input":' + lists + b"]" * 100_000 + b"}"
    bodies = (lists, trees, whole, lists + b"]" * 100_000)
    return alike([asked(victim, *bodies), asked(victim, *bodies, path=EMBED)])


@case(
    "nested as deep as the reader allows, where a number is expected", "HTTP", "400 INVALID_INPUT"
)
def nesting_within(victim: Victim) -> str:
    for depth in (100, 200, 1000):
        inner = b'{"not":' * depth + b"{}" + b"}" * depth
        body = b'{"gallery":"north-1","filter":' + inner + b"}"
        found = http_answer(victim, "/twinserve.v1.GalleryService/Search", body)
        assert found.startswith("400"), found
    return found


@case("the same field twice", "HTTP", "200")
def duplicates(victim: Victim) -> str:
    return asked(victim, b'{"model":"nobody","model":"text","input":"word1","input":"word2"}')


@case("numbers of 100,000 digits, of 1e999", "HTTP", "400 INVALID_INPUT or 404 MODEL_NOT_FOUND")
def huge_numbers(victim: Victim) -> str:
    found = []
    for number in (b"9" * 100_000, b"1e999", b"-1e999", b"1e-99999", b"NaN", b"Infinity"):
        tensor = b'{"inputs":[{"embedding":{"values":[' + number + b'],"spaceId":"x"}}]}'
        found.append(asked(victim, tensor, path=EMBED))
        found.append(
            asked(victim, b'{"model":"text","input":"word1","dimensions":' + number + b"}")
        )
    return alike(found)


@case(
    "another content type: none, a form, text, XML (what a page of any site may send)",
    "HTTP",
    "415 NOT_BUILT",
)
def content_types(victim: Victim) -> str:
    kinds = (
        "",
        "application/x-www-form-urlencoded",
        "text/plain",
        "multipart/form-data; boundary=x",
    )
    kinds += ("text/xml", "application/json/../x", "application/jsonp")
    body = b'{"model":"text","input":"word1"}'
    return alike(
        http_answer(victim, path, body, headers=[("Content-Type", kind)])
        for kind in kinds
        for path in (OPENAI, EMBED)
    )


@case("JSON that is no UTF-8, UTF-16, half a character", "HTTP", "400 INVALID_INPUT")
def no_utf8(victim: Victim) -> str:
    text = '{"model":"text","input":"wörd"}'
    bodies = (text.encode("latin-1"), text.encode("utf-16"), b'{"input":"\xff\xfe"}')
    half = b'{"model":"text","input":"\\ud800"}'
    return alike([asked(victim, *bodies, half), asked(victim, *bodies, path=EMBED)])


@case("no object: a list, a number, nothing, a comma too many", "HTTP", "400 INVALID_INPUT")
def no_object(victim: Victim) -> str:
    bodies = (b"[]", b"1", b"null", b"", b'{"input":"a",}', b'{"input":"a"} {}')
    return alike([asked(victim, *bodies), asked(victim, *bodies, path=EMBED)])


@case(
    "a `data:` URL that is no image, whose base64 is none",
    "HTTP",
    "400 IMAGE_UNDECODABLE or 400 INVALID_INPUT or 400 EMPTY_INPUT",
)
def data_urls(victim: Victim) -> str:
    urls = [
        b"data:image/png;base64," + base64.b64encode(b"<html>"),
        b"data:image/png;base64,!!!!",
        b"data:image/svg+xml;utf8,<svg/>",
        b"data:image/png;base64,",
    ]
    return asked(victim, *(b'{"model":"image","input":"' + url + b'"}' for url in urls))


@case("a URL to fetch in the place of a picture (nothing is fetched)", "HTTP", "400 WRONG_MODALITY")
def fetch(victim: Victim) -> str:
    urls = (b"http://169.254.169.254/latest/meta-data/", b"file:///etc/passwd")
    return asked(victim, *(b'{"model":"image","input":"' + url + b'"}' for url in urls))


@case("fields that are unknown, `__proto__`, `@type`", "HTTP", "400 INVALID_INPUT")
def unknown_fields(victim: Victim) -> str:
    fields = (b'"__proto__":{}', b'"@type":"type.googleapis.com/x"', b'"inputz":[]')
    bodies = [b"{" + one + b"}" for one in fields]
    return alike([asked(victim, *bodies), asked(victim, *bodies, path=EMBED)])


@case("base64 in which a byte is wrong", "HTTP", "400 INVALID_INPUT")
def bad_base64(victim: Victim) -> str:
    bodies = [b'{"inputs":[{"image":"' + one + b'"}]}' for one in (b"@@@@", b"AAAAA", "é".encode())]
    return asked(victim, *bodies, path=EMBED)
