"""The site's references leave nothing of the contract, the commands and the errors out.

The build itself is `make docs`, which CI runs; MkDocs stops there at any warning.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from twinserve import errors
from twinserve.cli.__main__ import VERBS, parser_of
from twinserve.v1 import embedding_service_pb2, gallery_service_pb2, model_service_pb2


@pytest.fixture
def reference(root: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Import a module of tools/reference, as MkDocs' hooks do, by its name."""
    monkeypatch.syspath_prepend(str(root / "tools" / "reference"))
    for name in ("commands", "contract", "reasons", "hooks"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def load(name: str, needs: str = "") -> ModuleType:
        if needs:
            pytest.importorskip(needs)
        return importlib.import_module(name)

    return load


def test_every_rpc_message_field_and_value_is_on_the_page_with_its_comment(
    root: Path, reference: object
) -> None:
    contract = reference("contract", "grpc_tools.protoc")  # type: ignore[operator]
    page = contract.page(root / "protos", "twinserve/v1", "Calls", "These.")
    for module in (embedding_service_pb2, gallery_service_pb2, model_service_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                heading = f"### {service.name}.{method.name}\n\n"
                assert heading in page
                assert len(page.split(heading)[1].split("\n\n")[1]) > 20, method.full_name
        for message in module.DESCRIPTOR.message_types_by_name.values():
            section = page.split(f"### {message.name} {{")[1].split("\n### ")[0]
            for field in message.fields:
                row = re.search(
                    rf"^\| `{field.name}` \| {field.number} \| .* \| (.+) \|$", section, re.M
                )
                assert row, field.full_name
    assert "](#embedrequest) → " in page, "types are linked to"
    assert "| optional int32 |" in page
    assert "repeated [Input](#input)" in page


def test_every_verb_action_and_argument_is_on_the_page(reference: object) -> None:
    page = reference("commands").page()  # type: ignore[operator]
    for verb in VERBS:
        assert f"\n## twinserve {verb}\n" in page
        for action in parser_of(verb)._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or f"`{option}" in page, (verb, option)
    assert "\n### twinserve gallery backup\n" in page
    assert "%(default)" not in page


def test_every_reason_has_its_cause_and_what_to_do(reference: object) -> None:
    reasons = reference("reasons")  # type: ignore[operator]
    page = reasons.page()
    classes = [one for one in vars(errors).values() if isinstance(one, type)]
    for one in classes:
        if issubclass(one, errors.TwinserveError) and one is not errors.TwinserveError:
            assert f"`{one.reason}` |" in page, one
            when, do = reasons.explained(one)
            assert (when[-1], do[-1]) == (".", "."), one
    assert 'id="queue_full"' in page


def test_an_error_that_does_not_say_what_helps_is_named(reference: object) -> None:
    class Unexplained:
        """Something."""

    with pytest.raises(ValueError, match="Unexplained has no paragraph that begins with Do:"):
        reference("reasons").explained(Unexplained)  # type: ignore[operator]


def test_a_page_s_marks_and_its_links_out_of_docs_are_mended(root: Path, reference: object) -> None:
    pytest.importorskip("mkdocs")
    hooks = reference("hooks", "grpc_tools.protoc")  # type: ignore[operator]

    def mended(text: str, page: str = "losses.md") -> str:
        return str(hooks.mended(text, page))

    assert mended("<!-- test: quick -->\n```bash\ntrue <!-- here -->\n```\n") == (
        "```bash\ntrue <!-- here -->\n```\n"
    )
    assert mended("<!-- unseen: quick, bash\nsecret\n-->\n\nText\n") == "Text\n"
    assert mended("[raw](../benchmarks/results/losses.json)") == (
        "[raw](repository/benchmarks/results/losses.json)"
    )
    assert mended("[here](../../protos/twinserve/v1)", "tutorials/images.md") == (
        "[here](../reference/calls.md)"
    )
    assert mended("[the data](../data/README.md)") == "the data (`data/README.md`)"
    assert mended("[next](twins.md#a)") == "[next](twins.md#a)"


@pytest.mark.parametrize(
    ("page", "fetched"),
    [
        ('<script src="assets/a.js"></script><link rel="canonical" href="https://x.y/">', False),
        ('<a href="https://x.y/">elsewhere</a>', False),
        ('<script src="https://x.y/a.js"></script>', True),
        ('<link href="//x.y/font.css" rel="stylesheet">', True),
        ('<img alt="" src=http://x.y/a.png>', True),
    ],
)
def test_a_page_that_would_fetch_something_stops_the_build(
    page: str, fetched: bool, tmp_path: Path, reference: object
) -> None:
    pytest.importorskip("mkdocs")
    hooks = reference("hooks", "grpc_tools.protoc")  # type: ignore[operator]
    (tmp_path / "index.html").write_text(page)
    found = hooks.fetched(tmp_path)
    assert (found is not None) == fetched
