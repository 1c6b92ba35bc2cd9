"""Names and paths that are more than names."""

from __future__ import annotations

from tests.abuse.asking import alike, both, grpc_answer, http_answer, raw
from tests.abuse.cases import theme
from tests.abuse.victim import PIXELS, Victim
from tests.server import wire
from twinserve.v1 import gallery_pb2, model_service_pb2, shared_pb2
from twinserve.v1 import gallery_service_pb2 as pb

case = theme("Names and paths")
PROBE = wire.tensor(PIXELS[0])


@case(
    "loads a model from outside its folder: `../`, an absolute path, a link, a NUL",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT",
)
def load_elsewhere(victim: Victim) -> str:
    outside = str(victim.folder / "outside.onnx")
    files = ["../outside.onnx", "x/../../outside.onnx", outside, "link.onnx", "image.onnx\0.txt"]
    return alike(
        both(victim, "model.LoadModel", model_service_pb2.LoadModelRequest(file=one, name="evil"))
        for one in files
    )


@case(
    "loads what is no model: a device, a folder, a file of keys",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT or NOT_FOUND; 404 NOT_FOUND",
)
def load_no_model(victim: Victim) -> str:
    found = []
    for file in ("/dev/zero", "/proc/self/mem", ".", "../keys.toml"):
        request = model_service_pb2.LoadModelRequest(file=file, name="evil")
        found.append(both(victim, "model.LoadModel", request))
    return alike(found)


@case(
    "a backup outside its folder: `../`, an absolute path, a NUL",
    "gRPC",
    "INVALID_ARGUMENT INVALID_INPUT",
)
def backup_elsewhere(victim: Victim) -> str:
    folders = ["../evil", "a/../../evil", str(victim.folder / "evil"), "evil\0", "."]
    found = alike(
        grpc_answer(victim, "gallery.BackupGalleries", pb.BackupGalleriesRequest(folder=one))
        for one in folders
    )
    assert not (victim.folder / "evil").exists()
    return found


@case(
    "a gallery named `../evil`, with a NUL, a slash, or of 100 KB",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT",
)
def gallery_names(victim: Victim) -> str:
    return alike(_made(victim, name) for name in ("../evil", "a\0b", "a/b", "x" * 100_000, "."))


@case(
    "a gallery whose name only looks like another: full-width, right-to-left, combining",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT",
)
def gallery_unicode(victim: Victim) -> str:
    # Full-width letters, a Cyrillic o, right-to-left override, zero width, a combining accent.
    names = ["\uff4e\uff4frth-1", "n\u043erth-1", "\u202enorth-1", "north\u200b-1", "nor\u0301th"]
    return alike(_made(victim, name) for name in names)


def _made(victim: Victim, name: str) -> str:
    request = pb.CreateGalleryRequest(gallery=gallery_pb2.Gallery(name=name, model="image"))
    return both(victim, "gallery.CreateGallery", request)


@case(
    "an item's id of 100 KB, or with a NUL",
    "both",
    "INVALID_ARGUMENT INVALID_INPUT; 400 INVALID_INPUT",
)
def item_ids(victim: Victim) -> str:
    found = []
    for name in ("x" * 100_000, "a\0b"):
        item = pb.EnrollItem(item=shared_pb2.Item(id=name), input=PROBE)
        request = pb.EnrollRequest(gallery="north-1", items=[item])
        found.append(both(victim, "gallery.Enroll", request))
    return alike(found)


@case(
    "a model's name that is a path, or of 1 MB",
    "both",
    "NOT_FOUND MODEL_NOT_FOUND; 404 MODEL_NOT_FOUND",
)
def model_names(victim: Victim) -> str:
    names = ("../../etc/passwd", "x" * 1_000_000, "\r\nX: y")
    return alike(
        both(victim, "model.GetModel", model_service_pb2.GetModelRequest(name=one)) for one in names
    )


@case("paths of files in the URL: `/../../etc/passwd`, encoded or not", "HTTP", "404")
def url_paths(victim: Victim) -> str:
    paths = ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/metrics/..%2f")
    return alike(http_answer(victim, path) for path in paths)


@case("a protected path by another spelling, without a key", "HTTP", "401 or 404")
def url_spellings(victim: Victim) -> str:
    paths = ("/%6detrics", "/./metrics", "/healthz/../metrics", "//metrics", "/metrics?x=/healthz")
    found = {http_answer(victim, path, key="") for path in paths}
    assert found <= {"401", "404"}, found
    return " or ".join(sorted(found))


@case("the whole URL in the request line, and `*`, without a key", "HTTP", "401, 404, 404")
def url_forms(victim: Victim) -> str:
    lines = (
        b"GET http://elsewhere/metrics HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT a:1 HTTP/1.1",
    )
    return ", ".join(raw(victim.http_port, line + b"\r\nHost: localhost\r\n\r\n") for line in lines)
