"""How documents are run: which blocks, where, and what counts as the output shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house.documents import (
    Block,
    BlockDiffers,
    BlockFailed,
    Reading,
    blocks,
    differences,
    fences,
    needs,
    shortened,
)


def block(text: str, output: str | None = None) -> Block:
    return Block("bash", frozenset({"quick"}), text, output)


def test_marked_blocks_are_found_with_their_output_and_others_are_left_alone() -> None:
    markdown = (
        "```bash\nmake demo\n```\n\n<!-- test: quick -->\n```bash\ntrue\nfalse\n```\n"
        "<!-- test: quick, server -->\n\n```python title=x\nprint(1)\n```\n"
        "<!-- output -->\n```\n1\n```\n"
    )
    assert blocks(markdown) == [
        Block("bash", frozenset({"quick"}), "true\nfalse\n"),
        Block("python", frozenset({"quick", "server"}), "print(1)\n", "1\n"),
    ]


def test_what_a_reader_does_not_see_is_run_and_files_are_written(tmp_path: Path) -> None:
    markdown = (
        "<!-- unseen: quick, bash\nmkdir mine\n-->\n\n"
        "<!-- file: mine/words.toml -->\n```toml\na = 1\n```\n\n"
        "<!-- test: quick -->\n```bash\ncat mine/words.toml\n```\n"
        "<!-- output -->\n```\na = 1\n```\n"
    )
    found = blocks(markdown)
    assert [one.unseen for one in found] == [True, False, False]
    with Reading("page.md", tmp_path) as reading:
        for one in found:
            reading.run(one)


def test_every_fence_is_found_with_what_its_page_says_of_it() -> None:
    markdown = (
        "<!-- test: quick, server -->\n```bash\na\n```\n\n<!-- output -->\n```\nb\n```\n\n"
        "<!-- test: long, short -->\n\n```python\nc\n```\n\n"
        "<!-- file: d.py -->\n```python\nd\n```\n"
        "<!-- run by tests/test_e.py -->\n```js\ne\n```\n"
        "<!-- not run: needs a GPU; of any kind -->\n```bash\nf\n```\n"
        "```text\n<!-- g -->\n```\n- a list:\n\n  ```bash\n  h\n  ```\n\n```\ni\n```\n"
    )
    assert [(one.language, one.mark, one.told) for one in fences(markdown)] == [
        ("bash", "quick", ""),
        ("", "output", ""),
        ("python", "long", ""),
        ("python", "file", "d.py"),
        ("js", "run by", "tests/test_e.py"),
        ("bash", "not run", "needs a GPU; of any kind"),
        ("text", "shown", ""),
        ("bash", "", ""),
        ("", "", ""),
    ]


def test_trainings_are_cut_short_and_resumed_ones_are_left() -> None:
    script = (
        "twinserve train --data a \\\n    --out b  # why\ntwinserve train --resume b\n"
        "torchrun -m twinserve.cli train --data a; twinserve export b\n"
    )
    short = " --set max_steps=4 evaluate_every=4 one_shot_trials=50 "
    assert shortened(script) == (
        f"twinserve train --data a \\\n    --out b{short}# why\ntwinserve train --resume b\n"
        f"torchrun -m twinserve.cli train --data a{short}; twinserve export b\n"
    )


def test_a_document_names_what_it_needs() -> None:
    assert needs("# One\n<!-- needs: faces.zip -->\n\n<!-- needs: data -->\n") == [
        "faces.zip",
        "data",
    ]


@pytest.mark.parametrize(
    ("markdown", "reason"),
    [
        ("<!-- test: quick -->\nno block", "no fenced block"),
        ("<!-- file: a.py -->\nno block", "no fenced block"),
        ("<!-- test: swift -->\n```bash\ntrue\n```\n", "unknown words"),
        ("<!-- test: quick -->\n```go\nmain\n```\n", "no way to run"),
        ("<!-- output -->\n```\n1\n```\n", "an output mark"),
        ("<!-- test: quick -->\n```bash\ntrue\n```\n<!-- output -->\nno block", "an output mark"),
    ],
)
def test_a_mark_that_would_run_or_check_nothing_is_refused(markdown: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        blocks(markdown)


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("a  b\nc", "a b\nc\n"),
        ("id … of …", "id 77 of 99"),
        ("first\n…\nlast", "first\nlast"),
        ("first\n…\nlast", "first\nb\nc\nlast"),
        ("at 0.1234, 15 items", "at 0.1240, 15 items"),
        ("made 2026-11-28 16:46:37+00:00", "made 2031-01-01 00:00:00+00:00"),
    ],
)
def test_what_may_vary_is_as_shown(shown: str, said: str) -> None:
    assert differences(shown, said) == ""


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("a", "b"),
        ("a", "a\nb"),
        ("a\nb", "a"),
        ("id … of c", "id 77 of d"),
        ("id … of c", "id\n77 of c"),
        ("at 0.1234", "at 0.1434"),
        ("at 0.1234", "at 12"),
        ("15 items", "16 items"),
        ("1.5 (a)", "1x5 (a)"),
    ],
)
def test_what_differs_is_shown(shown: str, said: str) -> None:
    assert differences(shown, said)


def test_a_block_that_fails_is_shown_with_what_it_said(tmp_path: Path) -> None:
    with (
        Reading("README.md", tmp_path) as reading,
        pytest.raises(BlockFailed, match="before") as raised,
    ):
        reading.run(block("echo before\nfalse\necho after\n"))
    assert "after\n\nbefore" in str(raised.value)
    assert not str(raised.value).rstrip().endswith("after")


def test_a_block_that_says_something_else_is_shown_with_the_difference(tmp_path: Path) -> None:
    with Reading("README.md", tmp_path) as reading:
        reading.run(block("echo one >&2; echo two\n", "one\ntwo\n"))
        with pytest.raises(BlockDiffers, match=r"(?s)-three.*\+two"):
            reading.run(block("echo two\n", "three\n"))


def test_a_block_speaks_to_the_servers_that_are_up_by_the_documents_addresses(
    tmp_path: Path,
) -> None:
    def server(ports: str, flags: str) -> Block:
        text = f"bash -c 'echo x SERVING grpc={ports}; exec sleep 99' x {flags}\n"
        shown = "x SERVING grpc=127.0.0.1:50051 http=127.0.0.1:9090\n"
        return Block("bash", frozenset({"serve"}), text, None if flags else shown)

    with Reading("README.md", tmp_path) as reading:
        reading.run(server("127.0.0.1:7 http=127.0.0.1:8", ""))
        reading.run(server("127.0.0.1:71 http=127.0.0.1:81", "--grpc-port 50052 --http-port 9092"))
        text = "echo localhost:50051 127.0.0.1:9090 127.0.0.1:50052 $TWINSERVE_TARGET | tee said\n"
        reading.run(block(text, "127.0.0.1:50051 127.0.0.1:9090 127.0.0.1:50052 127.0.0.1:50051"))
        said = (tmp_path / "said").read_text()
    assert said == "127.0.0.1:7 127.0.0.1:8 127.0.0.1:71 127.0.0.1:7\n"


def test_a_server_that_does_not_serve_fails_its_block(tmp_path: Path) -> None:
    with (
        Reading("README.md", tmp_path) as reading,
        pytest.raises(BlockFailed, match="ended before it was SERVING"),
    ):
        reading.run(Block("bash", frozenset({"serve"}), "echo no\n"))
