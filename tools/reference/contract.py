"""Writes the reference of the calls: every service, RPC, message and field of protos/, commented.

In: the .proto files of one package, compiled by protoc with their comments. Out: one Markdown page.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import google.rpc.status_pb2
from google.protobuf import descriptor_pb2 as pb
from grpc_tools import protoc

# Numbers of fields in descriptor.proto, of which the paths to comments are made.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6  # of FileDescriptorProto
_FIELDS, _NESTED, _NESTED_ENUMS, _ONEOFS = 2, 3, 4, 8  # of DescriptorProto
_METHODS = _VALUES = 2  # of ServiceDescriptorProto, of EnumDescriptorProto

Comments = dict[tuple[int, ...], str]


def page(protos: Path, package: str, title: str, introduction: str) -> str:
    """Write the page of one package.

    Args:
        protos: the folder that imports begin at.
        package: folder of the .proto files below it, such as twinserve/v1.
        title: of the page.
        introduction: Markdown under the title.
    """
    described = compiled(protos, sorted((protos / package).glob("*.proto")))
    names = {name for file in described for name in _names(file)}
    parts = [f"# {title}", introduction]
    for file in described:
        comments = comments_of(file)
        for index, service in enumerate(file.service):
            parts += _service(service, (_SERVICES, index), comments, names)
    for file in described:
        comments = comments_of(file)
        if file.message_type or file.enum_type:
            parts.append(f"## {Path(file.name).name}")
        for index, message in enumerate(file.message_type):
            parts += _message(message, (_MESSAGES, index), comments, names, "")
        for index, enum in enumerate(file.enum_type):
            parts += _enum(enum, (_ENUMS, index), comments, "")
    return "\n\n".join(parts) + "\n"


def compiled(protos: Path, sources: Sequence[Path]) -> list[pb.FileDescriptorProto]:
    """Compile .proto files, comments included.

    Raises:
        RuntimeError: protoc refuses one; it has said on standard error why.
    """
    googleapis = Path(google.rpc.status_pb2.__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        status = protoc.main(
            [
                *("protoc", f"-I{protos}", f"-I{googleapis}"),
                f"-I{files('grpc_tools') / '_proto'}",
                *(f"--descriptor_set_out={out}", "--include_source_info"),
                *map(str, sources),
            ]
        )
        if status != 0:
            raise RuntimeError(f"protoc ends with {status}")
        return list(pb.FileDescriptorSet.FromString(out.read_bytes()).file)


def comments_of(file: pb.FileDescriptorProto) -> Comments:
    """Return the comment in front of each declaration, by its path."""
    return {
        tuple(place.path): place.leading_comments.strip()
        for place in file.source_code_info.location
        if place.leading_comments.strip()
    }


def _names(file: pb.FileDescriptorProto) -> Iterator[str]:
    for enum in file.enum_type:
        yield enum.name
    for message in file.message_type:
        yield from _below(message, "")


def _below(message: pb.DescriptorProto, outer: str) -> Iterator[str]:
    yield outer + message.name
    for enum in message.enum_type:
        yield f"{outer}{message.name}.{enum.name}"
    for nested in message.nested_type:
        yield from _below(nested, f"{outer}{message.name}.")


def _service(
    service: pb.ServiceDescriptorProto, path: tuple[int, ...], comments: Comments, names: set[str]
) -> list[str]:
    parts = [f"## {service.name}", _prose(comments.get(path, ""))]
    for index, method in enumerate(service.method):
        takes = ("stream " if method.client_streaming else "") + _link(method.input_type, names)
        gives = ("stream " if method.server_streaming else "") + _link(method.output_type, names)
        parts += [
            f"### {service.name}.{method.name}",
            f"{takes} → {gives}",
            _prose(comments.get((*path, _METHODS, index), "")),
        ]
    return parts


def _message(
    message: pb.DescriptorProto,
    path: tuple[int, ...],
    comments: Comments,
    names: set[str],
    outer: str,
) -> list[str]:
    if message.options.map_entry:
        return []
    name = outer + message.name
    parts = [_heading(name), _prose(comments.get(path, ""))]
    maps = {one.name: one for one in message.nested_type if one.options.map_entry}
    rows = [
        f"| `{field.name}` | {field.number} | {_type(field, message, maps, names)} "
        f"| {_cell(comments.get((*path, _FIELDS, index), ''))} |"
        for index, field in enumerate(message.field)
    ]
    if rows:
        parts.append(
            "\n".join(["| field | number | type | what it is |", "|---|---|---|---|", *rows])
        )
    for index, oneof in enumerate(message.oneof_decl):
        said = comments.get((*path, _ONEOFS, index))
        if said:
            parts.append(f"One of `{oneof.name}`: {_prose(said)}")
    for index, nested in enumerate(message.nested_type):
        parts += _message(nested, (*path, _NESTED, index), comments, names, f"{name}.")
    for index, enum in enumerate(message.enum_type):
        parts += _enum(enum, (*path, _NESTED_ENUMS, index), comments, f"{name}.")
    return parts


def _enum(
    enum: pb.EnumDescriptorProto, path: tuple[int, ...], comments: Comments, outer: str
) -> list[str]:
    rows = [
        f"| `{value.name}` | {value.number} | {_cell(comments.get((*path, _VALUES, index), ''))} |"
        for index, value in enumerate(enum.value)
    ]
    table = ["| value | number | what it means |", "|---|---|---|", *rows]
    return [_heading(outer + enum.name), _prose(comments.get(path, "")), "\n".join(table)]


def _heading(name: str) -> str:
    return f"### {name} {{ #{_anchor(name)} }}"


def _anchor(name: str) -> str:
    return name.lower().replace(".", "-")


def _type(
    field: pb.FieldDescriptorProto,
    message: pb.DescriptorProto,
    maps: dict[str, pb.DescriptorProto],
    names: set[str],
) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = entry.field
        return f"map of {_plain(key, names)} to {_plain(value, names)}"
    kind = _plain(field, names)
    if field.label == pb.FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    if field.proto3_optional:
        return f"optional {kind}"
    if field.HasField("oneof_index"):
        return f"{kind}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return kind


def _plain(field: pb.FieldDescriptorProto, names: set[str]) -> str:
    if field.type_name:
        return _link(field.type_name, names)
    return pb.FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _link(type_name: str, names: set[str]) -> str:
    """Name a type, with a link to it where it is of the page."""
    full = type_name.lstrip(".")
    for name in names:
        if full.endswith(f".{name}") and not full.startswith("google."):
            return f"[{name}](#{_anchor(name)})"
    return f"`{full}`"


def _prose(comment: str) -> str:
    """Keep brackets as they are: in Markdown they would be tags and links."""
    plain = "\n".join(line.strip() for line in comment.splitlines())
    return plain.replace("<", "&lt;").replace("[", "\\[")


def _cell(comment: str) -> str:
    return " ".join(_prose(comment).split()).replace("|", "\\|")
