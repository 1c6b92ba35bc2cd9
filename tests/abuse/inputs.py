"""Pictures, texts, tensors and vectors that are more, or less, than they say."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from tests.abuse.asking import alike, both
from tests.abuse.cases import theme
from tests.abuse.victim import PIXELS, SOUND, Victim
from tests.server import wire
from twinserve.v1 import embedding_service_pb2 as embedding
from twinserve.v1 import gallery_service_pb2 as pb
from twinserve.v1.shared_pb2 import DATA_TYPE_FLOAT32, DATA_TYPE_UINT8, Embedding, Input, Tensor

case = theme("Inputs")
PNG = b"\x89PNG\r\n\x1a\n"


def embed(victim: Victim, inputs: Iterable[Input], model: str = "image") -> str:
    """Embed each on its own, on both ports."""
    found = []
    for one in inputs:
        request = embedding.EmbedRequest(model=model, inputs=[one])
        found.append(both(victim, "embedding.Embed", request))
    return alike(found)


def chunk(kind: bytes, data: bytes, size: int | None = None) -> bytes:
    """Write a part of a PNG, which may say that it has another size."""
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data) if size is None else size) + kind + data + check


def head(width: int, height: int) -> bytes:
    return PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def packed_bytes(mib: int, byte: int = 0) -> bytes:
    """Pack so many MiB of one byte, in no time: each MiB is packed as the one before it."""
    pack = zlib.compressobj()
    start, one = pack.flush(zlib.Z_FULL_FLUSH), bytes([byte]) * (1 << 20)
    start += pack.compress(one) + pack.flush(zlib.Z_FULL_FLUSH)
    return start + start[2:] * (mib - 1) + b"\3\0"  # without its checksum


def picture(form: str, size: tuple[int, int] = (28, 28)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, 7).save(file, form)
    return file.getvalue()


@case(
    "a decompression bomb: a PNG of 20,000 x 20,000 pixels in 400 KB",
    "both",
    "INVALID_ARGUMENT LIMIT_EXCEEDED; 400 LIMIT_EXCEEDED",
)
def bomb(victim: Victim) -> str:
    bomb = head(20_000, 20_000) + chunk(b"IDAT", packed_bytes(400)) + chunk(b"IEND", b"")
    assert len(bomb) < 500_000
    return embed(victim, [Input(image=bomb)])


@case("a small picture whose data unpack to 500 MB", "both", "OK; 200")
def hidden_bomb(victim: Victim) -> str:
    data = chunk(b"IDAT", packed_bytes(500, 1))
    return embed(victim, [Input(image=head(28, 28) + data + chunk(b"IEND", b""))])


@case(
    "a PNG whose text, or colour profile, unpacks to 100 MB",
    "both",
    "INVALID_ARGUMENT IMAGE_UNDECODABLE; 400 IMAGE_UNDECODABLE",
)
def text_bomb(victim: Victim) -> str:
    data = packed_bytes(100)
    good = picture("PNG")
    bombs = [chunk(b"zTXt", b"a\0\0" + data), chunk(b"iCCP", b"a\0\0" + data)]
    bombs += [chunk(b"iTXt", b"a\0\1\0\0\0" + data)]
    return embed(victim, [Input(image=good[:33] + one + good[33:]) for one in bombs])


@case(
    "a GIF, a BMP of 60,000 x 60,000 pixels in some bytes",
    "both",
    "INVALID_ARGUMENT LIMIT_EXCEEDED; 400 LIMIT_EXCEEDED",
)
def huge_gif(victim: Victim) -> str:
    gif = bytearray(picture("GIF"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    bmp = bytearray(picture("BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    return embed(victim, [Input(image=bytes(gif)), Input(image=bytes(bmp))])


@case("an image of 0 bytes", "both", "INVALID_ARGUMENT EMPTY_INPUT; 400 EMPTY_INPUT")
def no_bytes(victim: Victim) -> str:
    return embed(victim, [Input(image=b"")])


@case("a truncated PNG, JPEG", "both", "INVALID_ARGUMENT IMAGE_UNDECODABLE; 400 IMAGE_UNDECODABLE")
def truncated(victim: Victim) -> str:
    files = (picture(form, (200, 200)) for form in ("PNG", "JPEG", "BMP"))
    return embed(victim, [Input(image=file[: len(file) // 2]) for file in files])


@case(
    "SVG, HTML, PDF, EPS, a ZIP as an image",
    "both",
    "INVALID_ARGUMENT IMAGE_UNDECODABLE; 400 IMAGE_UNDECODABLE",
)
def no_picture(victim: Victim) -> str:
    files = [
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        b"<!doctype html><script>alert(1)</script>",
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ls) system\n",
        b"PK\x03\x04" + bytes(100),
    ]
    return embed(victim, [Input(image=file) for file in files])


@case(
    "a PNG with a part that says it has 100 MB, or 2 GB",
    "both",
    "INVALID_ARGUMENT IMAGE_UNDECODABLE; 400 IMAGE_UNDECODABLE",
)
def huge_part(victim: Victim) -> str:
    parts = (chunk(b"IDAT", bytes(100), size) for size in (100 << 20, (1 << 31) - 1))
    return embed(victim, [Input(image=head(28, 28) + one) for one in parts])


@case("a text of 1 MB", "both", "INVALID_ARGUMENT LIMIT_EXCEEDED; 400 LIMIT_EXCEEDED")
def long_text(victim: Victim) -> str:
    return embed(victim, [Input(text="a" * (1 << 20))], "text")


@case("texts of 60 KB in one call that are all tokens", "both", "OK; 200")
def token_flood(victim: Victim) -> str:
    # Each letter apart is a token of its own; the twin cuts what is too long for it.
    request = embedding.EmbedRequest(
        model="text", inputs=[Input(text=f"{i} " + "x " * 30_000) for i in range(2)]
    )
    return both(victim, "embedding.Embed", request)


@case("a text that is no UTF-8", "gRPC", "INTERNAL")
def no_utf8(victim: Victim) -> str:
    request = b"\x0a\x04text\x12\x04\x12\x02\xff\xfe"  # the model, an input, its text
    return raw_grpc(victim, request)


def raw_grpc(victim: Victim, data: bytes, method: str = "EmbeddingService/Embed") -> str:
    """Send these bytes as the message of a call."""
    import grpc

    call = victim.channel.unary_unary(f"/twinserve.v1.{method}")
    try:
        call(data, metadata=[("authorization", victim.bearer("ops"))], timeout=10)
    except grpc.RpcError as error:
        from google.rpc import status_pb2
        from grpc_status import rpc_status

        from tests.abuse.asking import worded

        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        return worded(status or status_pb2.Status(code=error.code().value[0]))
    return "OK"


def shaped(shape: Iterable[int], data: bytes = b"", kind: int = DATA_TYPE_FLOAT32) -> Input:
    return Input(tensor=Tensor(data_type=kind, shape=shape, data=data))  # type: ignore[arg-type]


@case(
    "a tensor whose shape overflows (2^62 x 4, 2^32 x 2^32), or has 10,000 axes",
    "both",
    "INVALID_ARGUMENT WRONG_SHAPE; 400 WRONG_SHAPE",
)
def overflow(victim: Victim) -> str:
    shapes = [(1 << 62, 4), (1 << 32, 1 << 32), (1 << 63) - 1, [1] * 10_000]
    inputs = [shaped(one if isinstance(one, tuple | list) else (one,), bytes(32)) for one in shapes]
    return embed(victim, inputs, "vectors")


@case(
    "a tensor with a negative extent, one of 0",
    "both",
    "INVALID_ARGUMENT WRONG_SHAPE; 400 WRONG_SHAPE",
)
def negative(victim: Victim) -> str:
    shapes = [(-1, 28, 1), (-(1 << 63),), (0,), (-2, -4)]
    return embed(victim, [shaped(one, bytes(32)) for one in shapes], "vectors")


@case(
    "a tensor whose data do not fill its shape, or overfill it",
    "both",
    "INVALID_ARGUMENT WRONG_SHAPE; 400 WRONG_SHAPE",
)
def mismatch(victim: Victim) -> str:
    inputs = [shaped((8,), bytes(size)) for size in (0, 31, 33, 64)]
    found = embed(victim, inputs, "vectors")
    pixels = [shaped((28, 28, 1), bytes(783), DATA_TYPE_UINT8), shaped((28, 28, 3), bytes(2352), 1)]
    return alike([found, embed(victim, pixels)])


@case("a tensor that holds NaN or infinity", "both", "INVALID_ARGUMENT NOT_FINITE; 400 NOT_FINITE")
def no_number(victim: Victim) -> str:
    rows = [np.full(8, value, np.float32) for value in (np.nan, np.inf, -np.inf)]
    return embed(victim, [wire.tensor(one) for one in rows], "vectors")


def space_of(victim: Victim, model: str = "image") -> str:
    metadata = [("authorization", victim.bearer("ops"))]
    return victim.stubs.embedding.Embed(SOUND, metadata=metadata).space_id


def search(victim: Victim, values: Iterable[float], space: str | None = None) -> str:
    """Search with a vector that the caller made up."""
    probe = Input(
        embedding=Embedding(values=values, space_id=space_of(victim) if space is None else space)
    )
    request = pb.SearchRequest(gallery="north-1", probes=[probe])
    return both(victim, "gallery.Search", request)


@case("a vector that holds NaN or infinity", "both", "INVALID_ARGUMENT NOT_FINITE; 400 NOT_FINITE")
def no_number_vector(victim: Victim) -> str:
    return alike(search(victim, [value, *[1.0] * 15]) for value in (np.nan, np.inf, -np.inf))


@case(
    "a vector of zeros, where the cosine decides",
    "both",
    "INVALID_ARGUMENT ZERO_VECTOR; 400 ZERO_VECTOR",
)
def zeros(victim: Victim) -> str:
    return search(victim, [0.0] * 16)


@case("a vector whose square overflows, or vanishes", "both", "OK; 200")
def extremes(victim: Victim) -> str:
    return alike(search(victim, [value] * 16) for value in (3e38, 1e-45))


@case(
    "a vector of another space, or of none",
    "both",
    "FAILED_PRECONDITION SPACE_MISMATCH; 400 SPACE_MISMATCH",
)
def other_space(victim: Victim) -> str:
    return alike(search(victim, [1.0] * 16, one) for one in ("", "other", "x" * 10_000))


@case(
    "a vector of 15, of 20,000 coordinates",
    "both",
    "INVALID_ARGUMENT WRONG_SHAPE; 400 WRONG_SHAPE",
)
def wrong_dimension(victim: Victim) -> str:
    return alike(search(victim, [1.0] * count) for count in (15, 20_000))


@case(
    "rows in one block (packed): half a vector, two for one item",
    "both",
    "INVALID_ARGUMENT WRONG_SHAPE; 400 WRONG_SHAPE",
)
def packed(victim: Victim) -> str:
    good = np.ones(16, "<f4").tobytes()
    space = space_of(victim)
    return alike(enroll_packed(victim, data, space) for data in (good[:-1], good * 2))


@case(
    "rows in one block of another space",
    "both",
    "FAILED_PRECONDITION SPACE_MISMATCH; 400 SPACE_MISMATCH",
)
def packed_elsewhere(victim: Victim) -> str:
    return enroll_packed(victim, np.ones(16, "<f4").tobytes(), "other")


@case("rows in one block that hold NaN", "both", "INVALID_ARGUMENT NOT_FINITE; 400 NOT_FINITE")
def packed_no_number(victim: Victim) -> str:
    return enroll_packed(victim, np.full(16, np.nan, "<f4").tobytes(), space_of(victim))


def enroll_packed(victim: Victim, data: bytes, space: str) -> str:
    request = pb.EnrollRequest(gallery="north-1", embeddings=data, space_id=space)
    request.items.add().item.id = "packed"
    return both(victim, "gallery.Enroll", request)


@case(
    "a picture to a model of texts, a text to one of pictures",
    "both",
    "INVALID_ARGUMENT WRONG_MODALITY; 400 WRONG_MODALITY",
)
def modality(victim: Victim) -> str:
    return alike(
        [
            embed(victim, [wire.image(PIXELS[0])], "text"),
            embed(victim, [Input(text="word1")], "image"),
        ]
    )
