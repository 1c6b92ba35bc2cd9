"""The command line: what each verb says, and the exit codes that scripts depend on."""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.fake_server import FakeServer, status
from twinserve.cli import __main__ as command_line
from twinserve.cli.enroll import item_id
from twinserve.cli.output import print_table
from twinserve.v1 import (
    embedding_service_pb2,
    gallery_pb2,
    gallery_service_pb2,
    model_pb2,
    model_service_pb2,
    shared_pb2,
)

Run = Callable[..., tuple[int, str, str]]


def _commands(examples: str) -> Iterator[str]:
    """Yield what stands behind `twinserve` in each line, up to a pipe or redirection."""
    for line in examples.splitlines():
        found = re.search(r"(?:^|\s|\()(?:twinserve|-m twinserve\.cli) (\w.*)", line)
        if found:
            yield re.split(r"\s[|><]|\s>|;|\)$", found[1])[0]


def compared(outcome: int, distance: float = 0.25) -> embedding_service_pb2.CompareResponse:
    comparison = embedding_service_pb2.Comparison(
        score=shared_pb2.Score(distance=distance, log_likelihood_ratio=2.0, probability=0.88),
        decision=shared_pb2.Decision(
            outcome=outcome, threshold=0.3, false_accept_rate=0.01, false_accept_rate_upper=0.02
        ),
    )
    result = embedding_service_pb2.CompareResult(comparison=comparison)
    return embedding_service_pb2.CompareResponse(results=[result], model_version="m@1")


def enrol_all(
    request: gallery_service_pb2.EnrollRequest,
) -> gallery_service_pb2.EnrollResponse:
    return gallery_service_pb2.EnrollResponse(
        results=[
            gallery_service_pb2.EnrollResult(
                enrolled=gallery_service_pb2.Enrolled(
                    id=item.item.id, change=gallery_service_pb2.CHANGE_CREATED
                )
            )
            for item in request.items
        ]
    )


class TestHelp:
    @pytest.mark.parametrize("verb", command_line.VERBS)
    def test_every_verb_has_help_with_examples_and_exit_codes(self, run: Run, verb: str) -> None:
        code, out, _ = run(verb, "--help")
        assert code == 0
        assert f"usage: twinserve {verb}" in out
        assert f"  twinserve {verb} " in out.partition("examples:")[2] or verb == "demo"
        assert "  0 " in out.partition("exit codes:")[2]

    def test_the_overview_names_every_verb(self, run: Run) -> None:
        code, out, _ = run("--help")
        assert code == 0
        for verb in command_line.VERBS:
            assert out.count(f"\n  {verb} ") == 1

    def test_no_arguments_show_a_short_overview_with_where_to_begin(self, run: Run) -> None:
        code, out, err = run()
        assert (code, err) == (0, "")
        assert run("--help")[1].startswith(out.rstrip())
        assert "twinserve demo" in out.splitlines()[-2]
        assert max(map(len, out.splitlines())) <= 100

    @pytest.mark.parametrize("verb", command_line.VERBS)
    def test_the_examples_of_every_verb_parse(self, verb: str) -> None:
        parser = command_line.parser_of(verb)
        examples = parser.epilog.partition("exit codes:")[0].replace("\\\n", " ")
        found = [shlex.split(line, comments=True) for line in _commands(examples)]
        assert found
        for name, *words in found:
            assert name == verb
            parse = getattr(command_line._verb(verb), "parse", None)
            if parse is not None and "--config" not in words:
                parse(parser, words)
            elif parse is None:
                parser.parse_args(words)

    @pytest.mark.parametrize("verb", command_line.VERBS)
    def test_every_verb_that_prints_results_prints_json_too(self, verb: str) -> None:
        def flags(parser: argparse.ArgumentParser) -> Iterator[set[str]]:
            inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
            for action in inner:
                for one in action.choices.values():
                    yield from flags(one)
            if not inner:
                yield {text for action in parser._actions for text in action.option_strings}

        without = {"serve", "completion"}  # a server, and a script for a shell
        for found in flags(command_line.parser_of(verb)):
            assert ("--json" in found) is (verb not in without)

    def test_an_unknown_verb_is_wrong_usage_and_names_the_known_ones(self, run: Run) -> None:
        code, out, err = run("compair", "a", "b")
        assert (code, out) == (2, "")
        assert "'compair'; did you mean compare?" in err

    @pytest.mark.parametrize(
        ("words", "meant"),
        [
            (("embed", "a.png", "--jsno"), "--json"),
            (("gallery", "lst"), "list"),
            (("gallery", "export", "a", "b", "--row=5"), "--rows"),
            (("search", "g", "a.png", "--by", "subjekt"), "subject"),
            (("serve", "--gprc-port", "5"), "--grpc-port"),
            (("--verison",), "--version"),
        ],
    )
    def test_a_mistyped_word_is_answered_with_the_nearest(
        self, run: Run, words: tuple[str, ...], meant: str
    ) -> None:
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert f"; did you mean {meant}?" in err
        assert err.count("\n") == 1
        assert "--help" in err

    @pytest.mark.parametrize(
        ("words", "name", "value"),
        [
            (("embed", "--model", "m", "a", "b"), "inputs", ["a", "b"]),
            (("embed", "a", "--json", "b"), "inputs", ["a", "b"]),
            (("enroll", "people", "--text", "card lost"), "inputs", ["card lost"]),
            (("search", "people", "--json", "a", "--top-k", "2", "b"), "probes", ["a", "b"]),
            (("gallery", "remove", "people", "--json", "a1", "a2"), "ids", ["a1", "a2"]),
            (("compare", "a", "--json", "b"), "second", "b"),
            (("embed", "--json", "--", "-a.png"), "inputs", ["-a.png"]),
        ],
    )
    def test_inputs_may_stand_on_both_sides_of_flags(
        self, words: tuple[str, ...], name: str, value: object
    ) -> None:
        parsed = command_line.parser_of(words[0]).parse_args(words[1:])
        assert getattr(parsed, name) == value

    def test_help_may_be_asked_for_as_a_verb(self, run: Run) -> None:
        assert run("help") == run("--help")
        assert run("help", "verify") == run("verify", "--help")
        assert "did you mean verify?" in run("help", "verfy")[2]

    def test_what_is_like_nothing_gets_no_guess(self, run: Run) -> None:
        assert "did you mean" not in run("xyzzy")[2]
        assert "did you mean" not in run("embed", "a", "--qqqqqq")[2]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--help"],
            ["compare", "--help"],
            ["search", "--help"],
            ["train", "--help"],
            ["export", "--help"],
            ["demo", "--help"],
            ["serve", "--help"],
            ["inspect", "--help"],
        ],
    )
    def test_no_help_imports_torch_onnx_or_a_runtime(self, arguments: list[str]) -> None:
        code = (
            "import sys\n"
            "from twinserve.cli.__main__ import main\n"
            "try:\n"
            f"    main({arguments!r})\n"
            "except SystemExit:\n"
            "    pass\n"
            "heavy = {'torch', 'onnx', 'onnxruntime', 'onnxscript', 'matplotlib', 'hnswlib'}\n"
            "found = heavy & set(sys.modules)\n"
            "sys.exit(f'imported {found}' if found else 0)"
        )
        subprocess.run(
            [sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60
        )

    def test_the_overview_imports_not_even_grpc_or_numpy(self) -> None:
        code = (
            "import sys\n"
            "from twinserve.cli.__main__ import main\n"
            "try:\n"
            "    main(['--help'])\n"
            "except SystemExit:\n"
            "    pass\n"
            "found = {'grpc', 'numpy', 'PIL'} & set(sys.modules)\n"
            "sys.exit(f'imported {found}' if found else 0)"
        )
        subprocess.run(
            [sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60
        )

    def test_the_server_verb_imports_neither_torch_nor_onnx(self, tmp_path: Path) -> None:
        missing = tmp_path / "missing.onnx"
        code = (
            "import sys\n"
            "from twinserve.cli.__main__ import main\n"
            f"flags = ['--model', {str(missing)!r}, '--data-dir', {str(tmp_path)!r}]\n"
            "code = main(['serve', *flags])\n"
            "found = {'torch', 'onnx', 'onnxscript'} & set(sys.modules)\n"
            "sys.exit(f'imported {found}' if found else code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert f"{missing} is not a file" in done.stderr


class TestErrors:
    def test_an_error_of_the_server_is_one_sentence_on_standard_error(
        self, run: Run, fake: FakeServer
    ) -> None:
        fake.on(
            "GetGallery",
            status(
                grpc.StatusCode.NOT_FOUND,
                "gallery people does not exist; create it first",
                reason="GALLERY_NOT_FOUND",
            ),
        )
        assert run("gallery", "show", "people") == (
            2,
            "",
            "twinserve: gallery people does not exist; create it first\n",
        )

    def test_the_field_at_fault_is_named(self, run: Run, fake: FakeServer, pictures: Path) -> None:
        fake.on(
            "Compare",
            status(
                grpc.StatusCode.INVALID_ARGUMENT,
                "give a rate between 0 and 1",
                reason="INVALID_INPUT",
                field="rule.false_accept_rate",
            ),
        )
        picture = pictures / "stray.png"
        code, _, err = run("compare", picture, picture, "--far", "2")
        assert code == 2
        assert err == "twinserve: give a rate between 0 and 1 [rule.false_accept_rate]\n"

    def test_nobody_there_is_said_within_seconds(self, run: Run) -> None:
        code, _, err = run("gallery", "list", "--target", "127.0.0.1:1", "--timeout", "1")
        assert code == 2
        assert "no server answers at 127.0.0.1:1" in err
        assert err.count("\n") == 1

    def test_a_fault_of_our_own_is_one_line_unless_asked_for_more(
        self, run: Run, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake.on(
            "GetModel",
            model_service_pb2.GetModelResponse(model=model_pb2.Model(manifest_json="{")),
        )
        code, _, err = run("model", "show", "--json")
        assert code == 2
        assert err.startswith("twinserve: JSONDecodeError")
        assert err.count("\n") == 1
        monkeypatch.setenv("TWINSERVE_DEBUG", "1")
        with pytest.raises(json.JSONDecodeError):
            run("model", "show", "--json")

    def test_a_missing_picture_is_named_before_anything_is_asked(
        self, run: Run, fake: FakeServer
    ) -> None:
        code, _, err = run("compare", "no-such.png", "b.png")
        assert code == 2
        assert err.startswith("twinserve: no-such.png does not exist")
        assert fake.requests == []

    def test_two_rules_at_once_are_wrong_usage(self, run: Run) -> None:
        code, _, err = run("compare", "a", "b", "--far", "0.1", "--threshold", "0.2")
        assert code == 2
        assert "not allowed with" in err

    def test_a_target_without_a_port_is_refused(self, run: Run) -> None:
        code, _, err = run("health", "--target", "localhost")
        assert code == 2
        assert "give HOST:PORT, such as 127.0.0.1:50051" in err

    def test_a_timeout_of_nothing_is_refused(self, run: Run) -> None:
        code, _, err = run("health", "--timeout", "0")
        assert code == 2
        assert "--timeout is 0.0" in err

    def test_a_file_that_is_no_twin_is_refused_in_a_sentence(
        self, run: Run, tmp_path: Path
    ) -> None:
        path = tmp_path / "twin.onnx"
        path.write_bytes(b"no onnx at all")
        code, out, err = run("inspect", path)
        assert (code, out) == (2, "")
        assert err.startswith("twinserve: ")
        assert err.count("\n") == 1

    def test_a_missing_twin_is_named(self, run: Run, tmp_path: Path) -> None:
        code, _, err = run("inspect", tmp_path / "none.onnx")
        assert code == 2
        assert "none.onnx: No such file" in err

    def test_training_without_data_is_refused(self, run: Run, tmp_path: Path) -> None:
        code, _, err = run("train", "--data", tmp_path / "none", "--out", tmp_path / "run")
        assert code == 2
        assert "does not exist" in err

    def test_exporting_what_is_no_run_is_refused(self, run: Run, tmp_path: Path) -> None:
        code, _, err = run("export", tmp_path / "none", "--out", tmp_path / "twin.onnx")
        assert code == 2
        assert "is no folder" in err
        assert not (tmp_path / "twin.onnx").exists()

    def test_a_training_is_resumed_as_it_was_begun_or_not_at_all(
        self, run: Run, tmp_path: Path
    ) -> None:
        vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        np.savez(tmp_path / "v.npz", vectors=vectors, labels=np.arange(60) % 12)
        folder = tmp_path / "run"
        settings = ("--set", "twin=mlp", "max_steps=3", "max_seconds=1e-6", "one_shot_ways=2")
        code, out, _ = run("train", "--data", tmp_path / "v.npz", "--out", folder, *settings)
        assert code == 0
        assert f"step 1 of 3 (max_seconds); to go on: twinserve train --resume {folder}" in out
        assert "classes that it never saw: equal error rate" in out
        code, _, err = run("train", "--resume", folder, "--set", "seed=4")
        assert code == 2
        assert "seed is 4, and the training in" in err
        code, _, err = run("train", "--resume", folder, "--out", tmp_path / "other")
        assert code == 2
        assert "leave --out out" in err
        code, out, _ = run("train", "--resume", folder, "--set", "max_seconds=60", "--json")
        assert code == 0
        assert json.loads(out)["results"]["steps"] == 3
        code, _, err = run("train", "--resume", folder)
        assert code == 2
        assert "came to its end" in err
        assert run("train", "--out", folder)[0] == 2

    def test_the_demo_trains_three_minutes_at_most(self, run: Run, tmp_path: Path) -> None:
        code, _, err = run("demo", "--out", tmp_path, "--seconds", "181")
        assert code == 2
        assert "up to 180" in err


class TestDecisions:
    @pytest.mark.parametrize(
        ("outcome", "code", "word"),
        [
            (shared_pb2.OUTCOME_MATCH, 0, "MATCH"),
            (shared_pb2.OUTCOME_NO_MATCH, 1, "NO MATCH"),
            (shared_pb2.OUTCOME_NOT_CALIBRATED, 3, "NOT CALIBRATED"),
        ],
    )
    def test_compare_tells_the_decision_by_its_exit_code(
        self, run: Run, fake: FakeServer, pictures: Path, outcome: int, code: int, word: str
    ) -> None:
        fake.on("Compare", compared(outcome))
        found, out, err = run("compare", pictures / "alice/1.png", pictures / "bob/1.png")
        assert (found, err) == (code, "")
        assert out.splitlines()[0] == word
        assert "0.2500" in out
        assert ("give a --threshold" in out) == (word == "NOT CALIBRATED")

    def test_compare_sends_the_rule_the_prior_and_the_model(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        fake.on("Compare", compared(shared_pb2.OUTCOME_MATCH))
        picture = pictures / "stray.png"
        run("compare", picture, picture, "--far", "0.001", "--prior", "0.1", "--model", "m@1")
        (request,) = fake.asked("Compare")
        assert request.rule.false_accept_rate == 0.001
        assert (request.prior, request.model) == (0.1, "m@1")
        assert request.pairs[0].first.image == b"stray.png"

    def test_compare_prints_json(self, run: Run, fake: FakeServer) -> None:
        fake.on("Compare", compared(shared_pb2.OUTCOME_NO_MATCH))
        code, out, _ = run("compare", "--text", "card lost", "card gone", "--json")
        document = json.loads(out)
        assert code == 1
        assert document["outcome"] == "no match"
        assert document["false_accept_rate_upper"] == 0.02
        assert document["model_version"] == "m@1"
        assert fake.asked("Compare")[0].pairs[0].first.text == "card lost"

    def test_verify_names_the_item_and_tells_by_its_exit_code(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        fake.on(
            "Verify",
            gallery_service_pb2.VerifyResponse(
                score=shared_pb2.Score(distance=0.9),
                decision=shared_pb2.Decision(outcome=shared_pb2.OUTCOME_NO_MATCH, threshold=0.3),
                item_id="alice:1.png",
                items_compared=2,
            ),
        )
        code, out, _ = run("verify", "people", "alice", pictures / "stray.png")
        assert code == 1
        assert out.splitlines() == [
            "NO MATCH",
            "distance        0.9000",
            "threshold       0.3000",
            "nearest item    alice:1.png",
            "items compared  2",
        ]
        run("verify", "people", "alice", pictures / "stray.png", "--mean-of", "3")
        assert [request.mean_of for request in fake.asked("Verify")] == [1, 3]


class TestSearch:
    def test_hits_are_shown_in_aligned_columns(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        hit = gallery_service_pb2.Hit(
            item=shared_pb2.Item(id="alice:1.png", subject="alice"),
            score=shared_pb2.Score(distance=0.125, probability=0.97),
            match=True,
        )
        hits = gallery_service_pb2.Hits(
            hits=[hit], outcome=shared_pb2.OUTCOME_MATCH, threshold=0.4, expected_false_matches=0.5
        )
        response = gallery_service_pb2.SearchResponse(
            results=[gallery_service_pb2.SearchResult(hits=hits)]
        )
        fake.on("Search", response)
        code, out, _ = run(
            *("search", "people", pictures / "stray.png"),
            *("--top-k", "3", "--fpir", "0.01", "--mean-of", "2"),
        )
        assert code == 0
        head, table, row, *_ = out.splitlines()
        assert head.endswith("match, threshold 0.4000, 0.5 false matches expected by chance")
        assert table.split() == ["RANK", "SUBJECT", "ITEM", "DISTANCE", "MATCH", "PROBABILITY"]
        assert row.split() == ["1", "alice", "alice:1.png", "0.1250", "yes", "0.9700"]
        (request,) = fake.asked("Search")
        assert (request.top_k, request.mean_of) == (3, 2)
        assert request.rule.false_positive_identification_rate == 0.01

    def test_full_shows_what_was_enrolled_with_the_hit(self, run: Run, fake: FakeServer) -> None:
        question = shared_pb2.MetadataValue(text="Where is my card?")
        hit = gallery_service_pb2.Hit(
            item=shared_pb2.Item(id="q7", subject="q7", metadata={"question": question}),
            score=shared_pb2.Score(distance=0.125),
        )
        hits = gallery_service_pb2.Hits(hits=[hit], outcome=shared_pb2.OUTCOME_NO_MATCH)
        result = gallery_service_pb2.SearchResult(hits=hits)
        fake.on("Search", gallery_service_pb2.SearchResponse(results=[result]))
        _, out, _ = run("search", "questions", "--text", "my card?", "--full")
        _, table, row, *_ = out.splitlines()
        assert table.split()[-1] == "METADATA"
        assert row.endswith("  question=Where is my card?")
        (request,) = fake.asked("Search")
        assert request.view == gallery_service_pb2.ITEM_VIEW_FULL

    def test_what_the_threshold_stands_on_is_printed(self, run: Run, fake: FakeServer) -> None:
        hits = gallery_service_pb2.Hits(
            outcome=shared_pb2.OUTCOME_NO_MATCH,
            threshold=0.4,
            false_positive_identification_rate=0.01,
            false_positive_identification_rate_upper=0.014,
            evidence=shared_pb2.EVIDENCE_GALLERY,
        )
        response = gallery_service_pb2.SearchResponse(
            results=[gallery_service_pb2.SearchResult(hits=hits)]
        )
        fake.on("Search", response)
        _, out, _ = run("search", "questions", "--text", "hello")
        assert out.splitlines()[0] == (
            "hello: no match, threshold 0.4000 (by the gallery), "
            "a stranger matches somebody at a rate of 0.01 (at most 0.014)"
        )

    def test_a_search_without_a_decision_says_what_to_do(self, run: Run, fake: FakeServer) -> None:
        near = gallery_service_pb2.Hit(
            item=shared_pb2.Item(id="q7", subject="lost"), score=shared_pb2.Score(distance=0.125)
        )
        hits = gallery_service_pb2.Hits(hits=[near], outcome=shared_pb2.OUTCOME_NOT_CALIBRATED)
        result = gallery_service_pb2.SearchResult(hits=hits)
        fake.on("Search", gallery_service_pb2.SearchResponse(results=[result]))
        _, out, _ = run("search", "questions", "--text", "hello")
        assert out.splitlines()[0] == (
            "hello: not calibrated, no evidence for this rate: a larger --fpir may have some, "
            "or give a --threshold"
        )
        assert out.splitlines()[2].split() == ["1", "lost", "q7", "0.1250", "-", "-"]
        _, out, _ = run("search", "questions", "--text", "hello", "--far", "0.01")
        assert "a larger --far may have some" in out  # the flag that was given

    def test_a_folder_is_searched_batch_by_batch(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        def answer(
            request: gallery_service_pb2.SearchRequest,
        ) -> gallery_service_pb2.SearchResponse:
            empty = gallery_service_pb2.SearchResult(
                hits=gallery_service_pb2.Hits(outcome=shared_pb2.OUTCOME_NO_MATCH)
            )
            return gallery_service_pb2.SearchResponse(results=[empty] * len(request.probes))

        fake.on("Search", answer)
        code, out, _ = run("search", "people", pictures, "--batch", "3", "--json")
        assert code == 0
        assert [Path(entry["probe"]).name for entry in json.loads(out)] == [
            "1.png",
            "2.JPG",
            "1.png",
            "stray.png",
        ]
        assert [len(request.probes) for request in fake.asked("Search")] == [3, 1]

    def test_a_probe_that_failed_is_told_beside_the_others(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        hits = gallery_service_pb2.Hits(outcome=shared_pb2.OUTCOME_NO_MATCH)
        broken = status(
            grpc.StatusCode.INVALID_ARGUMENT, "cannot be decoded", reason="IMAGE_UNDECODABLE"
        )
        response = gallery_service_pb2.SearchResponse(
            results=[
                gallery_service_pb2.SearchResult(error=broken),
                gallery_service_pb2.SearchResult(hits=hits),
            ]
        )
        fake.on("Search", response)
        code, out, err = run("search", "people", pictures / "bob/1.png", pictures / "stray.png")
        assert code == 1
        assert "bob/1.png: cannot be decoded" in err
        assert "stray.png: no match" in out


def declared(**keys: str) -> gallery_service_pb2.GetGalleryResponse:
    """A gallery that declares these keys of metadata, each with its type."""
    response = gallery_service_pb2.GetGalleryResponse()
    for key, kind in keys.items():
        number = gallery_pb2.MetadataType.Value(f"METADATA_TYPE_{kind}")
        response.gallery.metadata_keys.add(key=key, type=number)
    return response


class TestFilter:
    FLAGS = ("--filter", "site=north", "--filter", "age>=18", "--filter", "site=a=b")

    def test_search_list_and_count_send_the_filter_in_the_declared_types(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        fake.on("GetGallery", declared(age="INTEGER", site="TEXT"))
        fake.on("Search", gallery_service_pb2.SearchResponse())
        fake.on("ListItems", gallery_service_pb2.ListItemsResponse())
        fake.on("CountItems", gallery_service_pb2.CountItemsResponse())
        run("search", "people", pictures / "stray.png", *self.FLAGS)
        run("gallery", "items", "people", *self.FLAGS)
        run("gallery", "count", "people", *self.FLAGS)
        for method in ("Search", "ListItems", "CountItems"):
            (request,) = fake.asked(method)
            age, site = (one.clause for one in request.filter.all.filters)
            assert (age.key, age.range.at_least.integer) == ("age", 18)
            assert not age.range.HasField("below")
            assert site.key == "site"
            assert [value.text for value in site.any_of.values] == ["north", "a=b"]

    def test_without_a_filter_the_gallery_is_not_asked_for_its_keys(
        self, run: Run, fake: FakeServer
    ) -> None:
        fake.on("CountItems", gallery_service_pb2.CountItemsResponse())
        assert run("gallery", "count", "people")[0] == 0
        assert [name for name, _ in fake.requests] == ["CountItems"]

    @pytest.mark.parametrize(
        ("condition", "complaint"),
        [
            ("north", "write KEY=VALUE"),
            ("age>18", "write KEY=VALUE"),
            ("age<=18", "write KEY=VALUE"),
            ("age=old", "age is 'old'; give a whole number"),
            ("age<", "age is ''; give a whole number"),
        ],
    )
    def test_a_filter_that_cannot_be_is_refused(
        self, run: Run, fake: FakeServer, condition: str, complaint: str
    ) -> None:
        fake.on("GetGallery", declared(age="INTEGER"))
        code, _, err = run("gallery", "count", "people", "--filter", condition)
        assert code == 2
        assert complaint in err
        assert fake.asked("CountItems") == []


class TestEnroll:
    def test_a_folder_gives_subjects_and_ids_that_stay_the_same(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        fake.on("EnrollStream", enrol_all)
        code, out, err = run("enroll", "people", pictures)
        assert (code, out, err) == (0, "people: 4 created\n", "")
        run("enroll", "people", pictures)
        first, again = fake.asked("EnrollStream")
        items = {item.item.id: (item.item.subject, item.input.image) for item in first.items}
        assert items == {
            "alice:1.png": ("alice", b"alice/1.png"),
            "alice:2.JPG": ("alice", b"alice/2.JPG"),
            "bob:1.png": ("bob", b"bob/1.png"),
            "stray.png": ("", b"stray.png"),
        }
        assert list(first.items) == list(again.items)
        assert first.request_id != again.request_id

    def test_a_full_disk_is_waited_for_no_longer_than_was_asked(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        full = status(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "disk full", reason="DISK_FULL", retry_after=0.9
        )
        fake.on("EnrollStream", full)
        code, _, err = run("enroll", "people", pictures, "--timeout", "0.5")
        assert (code, err.count("disk full")) == (2, 1)

    def test_create_makes_the_gallery_first(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        fake.on("CreateGallery", gallery_service_pb2.CreateGalleryResponse())
        fake.on("EnrollStream", enrol_all)
        run("enroll", "people", pictures / "stray.png", "--create", "--subject", "carol")
        assert [name for name, _ in fake.requests] == ["CreateGallery", "EnrollStream"]
        assert fake.asked("EnrollStream")[0].items[0].item.subject == "carol"

    def test_a_csv_gives_subject_id_and_metadata(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        fake.on("EnrollStream", enrol_all)
        fake.on("GetGallery", gallery_service_pb2.GetGalleryResponse())
        table = pictures / "people.csv"
        table.write_text(
            "path,subject,id,site\nalice/1.png,alice,a1,north\nbob/1.png,bob,,\n",
            encoding="utf-8",
        )
        code, _, _ = run("enroll", "people", "--csv", table)
        assert code == 0
        one, two = fake.asked("EnrollStream")[0].items
        assert (one.item.id, one.item.subject, one.item.metadata["site"].text) == (
            "a1",
            "alice",
            "north",
        )
        assert one.input.image == b"alice/1.png"
        assert two.item.id == "bob:1.png"
        assert dict(two.item.metadata) == {}

    def test_the_cells_of_a_csv_are_of_the_types_that_the_gallery_declares(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        fake.on("EnrollStream", enrol_all)
        fake.on("GetGallery", declared(age="INTEGER", weight="NUMBER", glad="FLAG", born="TIME"))
        table = pictures / "people.csv"
        header = "path,age,weight,glad,born,other\n"
        table.write_text(header + "bob/1.png,42,1.5,Yes,1984-01-31,7\n", encoding="utf-8")
        code, _, err = run("enroll", "people", "--csv", table)
        assert code == 0, err
        (item,) = fake.asked("EnrollStream")[0].items
        values = item.item.metadata
        assert (values["age"].integer, values["weight"].number, values["glad"].flag) == (
            42,
            1.5,
            True,
        )
        assert values["born"].time.ToJsonString() == "1984-01-31T00:00:00Z"
        assert values["other"].text == "7"

    def test_a_cell_of_another_type_is_named_by_its_row_before_anything_is_enrolled(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        fake.on("GetGallery", declared(age="INTEGER"))
        table = pictures / "people.csv"
        table.write_text("path,age\nalice/1.png,4\nbob/1.png,old\n", encoding="utf-8")
        code, _, err = run("enroll", "people", "--csv", table)
        assert code == 2
        assert f"row 3 of {table}: age is 'old'; give a whole number" in err
        assert fake.asked("EnrollStream") == []

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("name,age\nalice,3\n", "needs path or text"),
            ("path,subject\nalice/1.png\n", "row 2"),
            ("path,subject\n,alice\n", "row 2"),
            ("path,subject\nalice/1.png,alice,more\n", "row 2"),
        ],
    )
    def test_a_csv_that_is_not_as_it_should_be_is_refused(
        self, run: Run, fake: FakeServer, tmp_path: Path, content: str, complaint: str
    ) -> None:
        table = tmp_path / "people.csv"
        table.write_text(content, encoding="utf-8")
        code, _, err = run("enroll", "people", "--csv", table)
        assert code == 2
        assert complaint in err
        assert fake.requests == []

    def test_one_item_that_fails_does_not_stop_the_others(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        def answer(
            request: gallery_service_pb2.EnrollRequest,
        ) -> gallery_service_pb2.EnrollResponse:
            response = enrol_all(request)
            response.results[0].error.CopyFrom(
                status(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "cannot be decoded",
                    reason="IMAGE_UNDECODABLE",
                    field="items[0].input.image",
                )
            )
            return response

        fake.on("EnrollStream", answer)
        code, out, err = run("enroll", "people", pictures)
        assert code == 1
        assert out == "people: 3 created, 1 failed\n"
        assert err == f"twinserve: {pictures / 'alice' / '1.png'}: cannot be decoded\n"

    def test_a_batch_of_failures_does_not_stop_the_next_one(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        broken = status(
            grpc.StatusCode.INVALID_ARGUMENT,
            "cannot be decoded",
            reason="IMAGE_UNDECODABLE",
            field="items[0].input.image",
        )
        failed = gallery_service_pb2.EnrollResult(error=broken)
        response = gallery_service_pb2.EnrollResponse(results=[failed])
        fake.on("EnrollStream", response, enrol_all)
        code, out, _ = run("enroll", "people", pictures, "--batch", "1", "--json")
        document = json.loads(out)
        assert code == 1
        assert document["created"] == 3
        assert [entry["error"]["reason"] for entry in document["failed"]] == ["IMAGE_UNDECODABLE"]

    def test_a_fault_of_the_whole_call_stops_the_command(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        missing = status(grpc.StatusCode.NOT_FOUND, "no gallery", reason="GALLERY_NOT_FOUND")
        fake.on("EnrollStream", missing)
        code, out, err = run("enroll", "people", pictures, "--batch", "1")
        assert (code, out) == (2, "")
        assert err == "twinserve: no gallery; --create makes it at once\n"
        assert len(fake.asked("EnrollStream")) == 1, "the stream has ended"

    def test_files_of_one_name_from_two_folders_are_two_items(
        self, run: Run, fake: FakeServer, pictures: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake.on("EnrollStream", enrol_all)
        monkeypatch.chdir(pictures)
        run("enroll", "people", pictures / "alice/1.png", "bob/1.png", "stray.png", "./alice/2.JPG")
        ids = [item.item.id for item in fake.asked("EnrollStream")[0].items]
        assert ids == ["alice:1.png", "bob:1.png", "stray.png", "alice:2.JPG"]
        run("enroll", "people", pictures)
        assert {item.item.id for item in fake.asked("EnrollStream")[1].items} == set(ids)

    def test_two_files_of_one_id_are_refused_before_one_replaces_the_other(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        again = pictures / "more" / "alice" / "1.png"
        again.parent.mkdir(parents=True)
        again.write_bytes(b"another")
        code, _, err = run("enroll", "people", pictures / "alice/1.png", again)
        assert code == 2
        assert "'alice:1.png'" in err
        assert fake.requests == []

    def test_what_was_replaced_is_named(self, run: Run, fake: FakeServer, pictures: Path) -> None:
        def replace(
            request: gallery_service_pb2.EnrollRequest,
        ) -> gallery_service_pb2.EnrollResponse:
            response = enrol_all(request)
            for result in response.results:
                result.enrolled.change = gallery_service_pb2.CHANGE_REPLACED
            return response

        fake.on("EnrollStream", replace)
        _, out, err = run("enroll", "people", pictures)
        assert out == "people: 4 replaced (alice:1.png, alice:2.JPG, bob:1.png, …)\n"
        assert "subjects of their own now" in err, "stray.png has no subject"
        assert run("enroll", "people", pictures / "bob/1.png", "--subject", "bob")[2] == ""
        _, out, _ = run("enroll", "people", pictures / "bob", "--json")
        assert json.loads(out)["replaced_ids"] == ["1.png"]

    @pytest.mark.parametrize(
        ("one", "other"),
        [("a b.png", "a_b.png"), ("a/b.png", "a:b.png"), ("x" * 200 + "1", "x" * 200 + "2")],
    )
    def test_ids_of_different_paths_differ(self, one: str, other: str) -> None:
        assert item_id(one) != item_id(other)

    @pytest.mark.parametrize("path", ["a/b c/ü.png", "x" * 300, "plain.png"])
    def test_ids_are_of_the_allowed_characters_and_length(self, path: str) -> None:
        assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", item_id(path))


class TestEmbed:
    def test_vectors_are_written_as_an_array(
        self, run: Run, fake: FakeServer, pictures: Path, tmp_path: Path
    ) -> None:
        good = embedding_service_pb2.EmbedResult(embedding=shared_pb2.Embedding(values=[3.0, 4.0]))
        broken = status(grpc.StatusCode.INVALID_ARGUMENT, "no", reason="IMAGE_UNDECODABLE")
        bad = embedding_service_pb2.EmbedResult(error=broken)
        fake.on(
            "Embed",
            embedding_service_pb2.EmbedResponse(
                results=[good, bad], space_id="sp", model_version="m@1"
            ),
        )
        out = tmp_path / "vectors.npy"
        code, text, err = run("embed", pictures, "--batch", "2", "--out", out)
        array = np.load(out)
        assert code == 1
        assert array.dtype == np.float32
        assert array[0].tolist() == [3.0, 4.0]
        assert np.isnan(array[1]).all()
        assert f"wrote float32 [4, 2] to {out}" in text
        assert err.count("\n") == 2

    def test_bits_are_written_and_shown_as_bits(
        self, run: Run, fake: FakeServer, pictures: Path, tmp_path: Path
    ) -> None:
        broken = status(grpc.StatusCode.INVALID_ARGUMENT, "no", reason="IMAGE_UNDECODABLE")
        results = [
            embedding_service_pb2.EmbedResult(),
            embedding_service_pb2.EmbedResult(error=broken),
        ]
        block = embedding_service_pb2.Packed(
            encoding=shared_pb2.ENCODING_BINARY, dimension=3, data=bytes([0b10100000, 0])
        )
        fake.on("Embed", embedding_service_pb2.EmbedResponse(results=results, packed=block))
        out = tmp_path / "bits.npy"
        flags = ("embed", pictures / "alice", "--encoding", "binary")
        code, text, _ = run(*flags, "--out", out)
        assert code == 1
        assert np.load(out).tolist() == [[True, False, True], [False] * 3]
        assert f"wrote bool [2, 3] to {out}" in text
        _, text, _ = run(*flags)
        assert re.search(r"ONES +FIRST VALUES\n\S+ +3 +2 +101 …", text), text
        _, text, _ = run(*flags, "--json")
        assert json.loads(text)["results"][0]["embedding"] == [1, 0, 1]
        assert fake.asked("Embed")[0].options.encoding == shared_pb2.ENCODING_BINARY

    def test_an_unknown_encoding_is_wrong_usage(self, run: Run, fake: FakeServer) -> None:
        code, _, err = run("embed", "--text", "hello", "--encoding", "int4")
        assert code == 2
        assert "int4" in err
        assert "binary" in err
        assert fake.requests == []

    def test_where_nothing_could_be_embedded_no_file_is_written(
        self, run: Run, fake: FakeServer, pictures: Path, tmp_path: Path
    ) -> None:
        fake.on(
            "Embed",
            status(
                grpc.StatusCode.INVALID_ARGUMENT,
                "cannot be decoded",
                reason="IMAGE_UNDECODABLE",
                field="inputs[0].image",
            ),
        )
        out = tmp_path / "vectors.npy"
        code, _, err = run("embed", pictures / "stray.png", "--out", out)
        assert code == 2
        assert "stray.png: cannot be decoded" in err
        assert not out.exists()

    def test_vectors_of_two_spaces_are_not_mixed(
        self, run: Run, fake: FakeServer, pictures: Path
    ) -> None:
        def reply(space: str) -> embedding_service_pb2.EmbedResponse:
            result = embedding_service_pb2.EmbedResult(embedding=shared_pb2.Embedding(values=[1.0]))
            return embedding_service_pb2.EmbedResponse(results=[result], space_id=space)

        fake.on("Embed", reply("sp_1"), reply("sp_2"))
        code, _, err = run("embed", pictures / "alice", "--batch", "1")
        assert code == 2
        assert "several spaces" in err

    def test_json_holds_a_vector_per_input(self, run: Run, fake: FakeServer) -> None:
        result = embedding_service_pb2.EmbedResult(
            embedding=shared_pb2.Embedding(values=[0.5, 0.25])
        )
        response = embedding_service_pb2.EmbedResponse(results=[result], space_id="sp_1")
        fake.on("Embed", response)
        code, out, _ = run("embed", "--text", "hello", "--json")
        document = json.loads(out)
        assert code == 0
        assert document["space_id"] == "sp_1"
        assert document["results"] == [{"input": "hello", "embedding": [0.5, 0.25]}]


class TestGalleries:
    def test_create_declares_keys_with_types(self, run: Run, fake: FakeServer) -> None:
        fake.on(
            "CreateGallery",
            lambda request: gallery_service_pb2.CreateGalleryResponse(gallery=request.gallery),
        )
        code, out, _ = run(
            "gallery", "create", "people", "--key", "site=text", "--metric", "cosine"
        )
        assert code == 0
        assert "site (text)" in out
        assert fake.asked("CreateGallery")[0].gallery.metric == shared_pb2.METRIC_COSINE

    def test_list_shows_counts(self, run: Run, fake: FakeServer) -> None:
        gallery = gallery_pb2.Gallery(name="people", item_count=12, subject_count=3, dimension=64)
        fake.on("ListGalleries", gallery_service_pb2.ListGalleriesResponse(galleries=[gallery]))
        _, out, _ = run("gallery", "list")
        assert out.splitlines()[1].split()[:4] == ["people", "12", "3", "64"]

    def test_show_says_what_a_gallery_takes(self, run: Run, fake: FakeServer) -> None:
        gallery = gallery_pb2.Gallery(
            name="people", segment_count=3, dead_count=5, memory_bytes=7_000
        )
        fake.on("GetGallery", gallery_service_pb2.GetGalleryResponse(gallery=gallery))
        _, out, _ = run("gallery", "show", "people")
        shown = {line.rsplit(maxsplit=1)[0]: line.split()[-1] for line in out.splitlines()}
        assert (shown["segments"], shown["dead vectors"]) == ("3", "5")
        assert shown["bytes in memory"] == "7000"
        assert json.loads(run("gallery", "show", "people", "--json")[1])["dead_count"] == 5

    def test_delete_does_nothing_without_yes_where_nobody_can_be_asked(
        self, run: Run, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        fake.on("DeleteGallery", gallery_service_pb2.DeleteGalleryResponse())
        code, _, err = run("gallery", "delete", "people")
        assert code == 2
        assert "--yes" in err
        assert fake.requests == []
        assert run("gallery", "delete", "people", "--yes") == (0, "people deleted\n", "")

    def test_remove_takes_ids_or_a_subject(self, run: Run, fake: FakeServer) -> None:
        fake.on("Remove", gallery_service_pb2.RemoveResponse(removed=1))
        assert run("gallery", "remove", "people", "a")[1] == "1 item removed from people\n"
        code, _, err = run("gallery", "remove", "people")
        assert code == 2
        assert "--subject" in err

    def test_items_move_to_a_subject_or_to_none(self, run: Run, fake: FakeServer) -> None:
        fake.on("MoveItems", gallery_service_pb2.MoveItemsResponse(moved=2))
        code, out, _ = run("gallery", "move", "people", "a", "b", "--to", "bob")
        assert (code, out) == (0, "2 items moved to subject bob\n")
        assert "of their own" in run("gallery", "move", "people", "a", "b", "--to", "")[1]
        assert json.loads(run("gallery", "move", "people", "a", "--to", "x", "--json")[1]) == {
            "moved": 2
        }
        asked = fake.asked("MoveItems")
        assert [(list(one.ids.ids), one.subject) for one in asked] == [
            (["a", "b"], "bob"),
            (["a", "b"], ""),
            (["a"], "x"),
        ]

    def test_a_subject_is_renamed_and_merged_when_asked(self, run: Run, fake: FakeServer) -> None:
        fake.on("RenameSubject", gallery_service_pb2.RenameSubjectResponse(moved=1))
        code, out, _ = run("gallery", "rename", "people", "bob", "robert")
        assert (code, out) == (0, "1 item moved from bob to robert\n")
        run("gallery", "rename", "people", "bob", "robert", "--merge")
        assert [one.merge for one in fake.asked("RenameSubject")] == [False, True]

    def test_items_are_counted_and_listed_by_subject(self, run: Run, fake: FakeServer) -> None:
        counted = gallery_service_pb2.CountItemsResponse(item_count=3, subject_count=1)
        fake.on("CountItems", counted)
        fake.on("ListItems", gallery_service_pb2.ListItemsResponse())
        code, out, _ = run("gallery", "count", "people", "--subject", "bob")
        assert (code, out) == (0, "3 items of 1 subject in people\n")
        assert json.loads(run("gallery", "count", "people", "--json")[1]) == {
            "items": 3,
            "subjects": 1,
        }
        run("gallery", "items", "people", "--subject", "bob")
        assert [one.subject for one in fake.asked("CountItems")] == ["bob", ""]
        assert fake.asked("ListItems")[0].subject == "bob"

    def test_an_alias_is_set_moved_and_deleted(self, run: Run, fake: FakeServer) -> None:
        fake.on(
            "SetGalleryAlias",
            gallery_service_pb2.SetGalleryAliasResponse(),
            gallery_service_pb2.SetGalleryAliasResponse(previous="one"),
        )
        fake.on("DeleteGalleryAlias", gallery_service_pb2.DeleteGalleryAliasResponse())
        assert run("gallery", "alias", "live", "one")[1] == "live stands for one\n"
        out = run("gallery", "alias", "live", "two")[1]
        assert out == "live stands for two, and no longer for one\n"
        assert run("gallery", "alias", "live", "--delete")[0] == 0
        assert fake.asked("DeleteGalleryAlias")[0].alias == "live"
        for words in (("live",), ("live", "one", "--delete")):
            code, _, err = run("gallery", "alias", *words)
            assert code == 2
            assert "--delete" in err


class TestHealth:
    @pytest.mark.parametrize(("name", "code"), [("SERVING", 0), ("NOT_SERVING", 1)])
    def test_health_is_one_word_and_an_exit_code(
        self, run: Run, fake: FakeServer, name: str, code: int
    ) -> None:
        from grpc_health.v1 import health_pb2

        value = health_pb2.HealthCheckResponse.ServingStatus.Value(name)
        fake.on("Check", health_pb2.HealthCheckResponse(status=value))
        assert run("health") == (code, f"{name}\n", "")

    def test_nobody_there_is_1_since_container_engines_reserve_2(self, run: Run) -> None:
        code, _, err = run("health", "--target", "127.0.0.1:1", "--timeout", "1")
        assert code == 1
        assert "no server answers" in err


class TestOutput:
    def test_numbers_lean_right_and_words_left(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_table(("name", "n"), [("a", 5), ("bcd", 100)])
        assert capsys.readouterr().out == "NAME    N\na       5\nbcd   100\n"

    def test_a_table_without_rows_is_its_header(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_table(("name", "n"), [])
        assert capsys.readouterr().out == "NAME  N\n"


class TestPrompts:
    def test_every_verb_of_texts_takes_a_prompt(self, run: Run, fake: FakeServer) -> None:
        hits = gallery_service_pb2.SearchResult(
            hits=gallery_service_pb2.Hits(outcome=shared_pb2.OUTCOME_NO_MATCH)
        )
        fake.on("Search", gallery_service_pb2.SearchResponse(results=[hits]))
        result = embedding_service_pb2.CompareResult(
            comparison=embedding_service_pb2.Comparison(
                decision=shared_pb2.Decision(outcome=shared_pb2.OUTCOME_MATCH)
            )
        )
        fake.on("Compare", embedding_service_pb2.CompareResponse(results=[result]))
        fake.on("Verify", gallery_service_pb2.VerifyResponse())
        enrolled = gallery_service_pb2.EnrollResult(
            enrolled=gallery_service_pb2.Enrolled(id="a", change=1)
        )
        fake.on("EnrollStream", gallery_service_pb2.EnrollResponse(results=[enrolled]))
        fake.on("Embed", self.embedded(False))
        flags = ("--text", "--prompt", "query")
        run("embed", "hello", *flags)
        run("compare", "hello", "there", *flags)
        run("enroll", "g", "hello", *flags)
        run("search", "g", "hello", *flags)
        run("verify", "g", "s", "hello", *flags)
        pair = fake.asked("Compare")[0].pairs[0]
        sent = [
            fake.asked("Embed")[0].inputs[0],
            *(pair.first, pair.second),
            fake.asked("EnrollStream")[0].items[0].input,
            fake.asked("Search")[0].probes[0],
            fake.asked("Verify")[0].probe,
        ]
        assert [one.prompt for one in sent] == ["query"] * 6
        assert all(one.text for one in sent)

    @pytest.mark.parametrize(
        "words",
        [
            ("embed", "a.png"),
            ("compare", "a.png", "b.png"),
            ("enroll", "g", "a.png"),
            ("search", "g", "a.png"),
            ("verify", "g", "s", "a.png"),
        ],
    )
    def test_a_prompt_without_texts_is_refused(
        self, run: Run, fake: FakeServer, words: tuple[str, ...]
    ) -> None:
        code, _, err = run(*words, "--prompt", "query")
        assert code == 2
        assert "without --text" in err
        assert fake.requests == []

    @pytest.mark.parametrize(("flag", "asked"), [("--truncate", True), ("--no-truncate", False)])
    def test_texts_are_cut_or_refused_as_asked_and_cut_ones_are_told(
        self, run: Run, fake: FakeServer, flag: str, asked: bool
    ) -> None:
        fake.on("Embed", self.embedded(True))
        code, out, _ = run("embed", "--text", "hello", flag)
        assert code == 0
        assert "1 of 1 texts are over the model's limit and were cut" in out
        code, out, _ = run("embed", "--text", "hello", "--json")
        assert json.loads(out)["truncated"] == ["hello"]
        first, second = fake.asked("Embed")
        assert first.options.truncate is asked
        assert not second.options.HasField("truncate")

    @staticmethod
    def embedded(truncated: bool) -> embedding_service_pb2.EmbedResponse:
        result = embedding_service_pb2.EmbedResult(
            embedding=shared_pb2.Embedding(values=[1.0]), truncated=truncated
        )
        return embedding_service_pb2.EmbedResponse(results=[result], space_id="sp_1")
