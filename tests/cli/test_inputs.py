"""Where embed, search, enroll and compare take their inputs from."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fake_server import FakeServer
from twinserve.v1 import embedding_service_pb2, gallery_service_pb2, shared_pb2

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sent(fake: FakeServer) -> Callable[[], list[bytes | str]]:
    """Answer Embed, and tell what was sent to it."""

    def answer(request: embedding_service_pb2.EmbedRequest) -> embedding_service_pb2.EmbedResponse:
        one = embedding_service_pb2.EmbedResult(embedding=shared_pb2.Embedding(values=[1.0]))
        return embedding_service_pb2.EmbedResponse(results=[one] * len(request.inputs))

    fake.on("Embed", answer)

    def told() -> list[bytes | str]:
        found = [one for request in fake.asked("Embed") for one in request.inputs]
        return [one.image or one.text for one in found]

    return told


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_quoted_pattern_names_the_files_that_are_like_it(
    run: Run, sent: Callable[[], list[bytes | str]], pictures: Path
) -> None:
    assert run("embed", f"{pictures}/**/*.png")[0] == 0
    assert sent() == [b"alice/1.png", b"bob/1.png", b"stray.png"]
    code, _, err = run("embed", f"{pictures}/*.tiff")
    assert code == 2
    assert "no file is named like" in err


def test_a_file_whose_name_has_a_patterns_signs_is_that_file(
    run: Run, sent: Callable[[], list[bytes | str]], tmp_path: Path
) -> None:
    (tmp_path / "a[1].png").write_bytes(b"bracket")
    assert run("embed", tmp_path / "a[1].png")[0] == 0
    assert sent() == [b"bracket"]


def test_a_list_on_standard_input_has_paths_one_a_line_or_ended_by_nul(
    run: Run,
    sent: Callable[[], list[bytes | str]],
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed(monkeypatch, f"{pictures}/stray.png\n\n{pictures}/alice\n")
    assert run("embed", "-")[0] == 0
    odd = pictures / "two\nlines.png"
    odd.write_bytes(b"odd")
    typed(monkeypatch, f"{odd}\0{pictures}/stray.png\0")
    assert run("embed", "-0", "-")[0] == 0
    assert sent() == [b"stray.png", b"alice/1.png", b"alice/2.JPG", b"odd", b"stray.png"]


def test_a_list_on_standard_input_may_be_of_texts(
    run: Run, sent: Callable[[], list[bytes | str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "where is my card?\nhello\n")
    assert run("embed", "--text", "-")[0] == 0
    assert sent() == ["where is my card?", "hello"]


def test_a_column_of_a_table_is_paths_from_its_folder_or_texts(
    run: Run, sent: Callable[[], list[bytes | str]], pictures: Path
) -> None:
    table = pictures / "list.csv"
    table.write_text("who,file\na,alice/1.png\nb,bob/1.png\n", encoding="utf-8")
    assert run("embed", "--csv", table, "--column", "file")[0] == 0
    assert run("embed", "--csv", table, "--column", "who", "--text")[0] == 0
    table.write_text("question\nhello\n", encoding="utf-8")
    assert run("embed", "--csv", table, "--text")[0] == 0, "the only column"
    assert sent() == [b"alice/1.png", b"bob/1.png", "a", "b", "hello"]


@pytest.mark.parametrize(
    ("content", "flags", "says"),
    [
        ("who,file\na,b.png\n", (), "has the columns who, file, and not path; name one"),
        ("who,file\na,b.png\n", ("--column", "fiel"), "not fiel; did you mean file?"),
        ("who,text\na,b\n", (), "give --text for its texts"),
        ("path,who\n,a\n", (), "row 2 of"),
        ("path,who\nnone.png,a\n", (), "none.png does not exist"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_before_anything_is_asked(
    run: Run,
    fake: FakeServer,
    tmp_path: Path,
    content: str,
    flags: tuple[str, ...],
    says: str,
) -> None:
    table = tmp_path / "list.csv"
    table.write_text(content, encoding="utf-8")
    code, _, err = run("embed", "--csv", table, *flags)
    assert code == 2
    assert says in err
    assert fake.requests == []


def test_no_input_at_all_is_refused_with_the_ways_to_give_some(run: Run) -> None:
    code, _, err = run("search", "people")
    assert code == 2
    assert "--csv, or - for a list on standard input" in err
    assert "--column x was given without --csv" in run("embed", "a.png", "--column", "x")[2]


def test_enroll_takes_patterns_and_lists(
    run: Run, fake: FakeServer, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = gallery_service_pb2.EnrollResult(enrolled=gallery_service_pb2.Enrolled(id="a", change=1))
    fake.on(
        "EnrollStream",
        lambda request: gallery_service_pb2.EnrollResponse(results=[one] * len(request.items)),
    )
    run("enroll", "people", f"{pictures}/*/*.png", "--subject", "x")
    typed(monkeypatch, f"{pictures}/bob/1.png\0")
    run("enroll", "people", "-0", "-", "--subject", "y")
    run("enroll", "people", f"{pictures}/*/1.png")
    asked = [one for request in fake.asked("EnrollStream") for one in request.items]
    assert [(one.item.id, one.item.subject) for one in asked] == [
        ("alice:1.png", "x"),
        ("bob:1.png", "x"),
        ("bob:1.png", "y"),
        ("alice:1.png", "alice"),
        ("bob:1.png", "bob"),
    ]


def test_a_forgotten_gallery_or_flag_is_told(run: Run, pictures: Path, tmp_path: Path) -> None:
    for verb in ("search", "enroll"):
        code, _, err = run(verb, pictures / "stray.png")
        assert code == 2
        assert "stands where the gallery is due" in err
    (tmp_path / "list.csv").write_text("path\n")
    assert "give --csv" in run("embed", tmp_path / "list.csv")[2]
    assert "an action is needed, one of create, list" in run("gallery")[2]


def test_a_table_of_pairs_is_compared(run: Run, fake: FakeServer, tmp_path: Path) -> None:
    def answer(
        request: embedding_service_pb2.CompareRequest,
    ) -> embedding_service_pb2.CompareResponse:
        outcome = {True: shared_pb2.OUTCOME_MATCH, False: shared_pb2.OUTCOME_NO_MATCH}
        return embedding_service_pb2.CompareResponse(
            results=[
                embedding_service_pb2.CompareResult(
                    comparison=embedding_service_pb2.Comparison(
                        score=shared_pb2.Score(distance=0.5),
                        decision=shared_pb2.Decision(
                            outcome=outcome[pair.first.text == pair.second.text]
                        ),
                    )
                )
                for pair in request.pairs
            ]
        )

    fake.on("Compare", answer)
    table = tmp_path / "pairs.csv"
    table.write_text("first,second,kept\na,a,1\na,b,2\nc,c,3\n", encoding="utf-8")
    code, out, _ = run("compare", "--csv", table, "--text", "--batch", "2")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["a", "a", "match"],
        ["a", "b", "no"],
        ["c", "c", "match"],
    ]
    assert [len(request.pairs) for request in fake.asked("Compare")] == [2, 1]
    flags = ("--text", "--columns", "first,kept", "--json")
    found = json.loads(run("compare", "--csv", table, *flags)[1])
    assert (found[0]["second"], found[0]["outcome"]) == ("1", "no match")
    assert "not both" in run("compare", "a", "b", "--csv", table)[2]
    assert "two inputs" in run("compare", "a")[2]
    assert "without --csv" in run("compare", "a", "b", "--columns", "x,y")[2]
