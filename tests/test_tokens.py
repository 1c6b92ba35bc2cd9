"""Texts to ids: prompts, limits, and what no tokenizer can make sense of."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from tests import twins
from twinserve.errors import EmptyInput, InvalidInput, LimitExceeded, ManifestError
from twinserve.manifest import TextInput
from twinserve.tokens import Tokenizer, digest

WORDS = twins.vocabulary()
CLS, SEP, UNK = WORDS["[CLS]"], WORDS["[SEP]"], WORDS["[UNK]"]


def tokenizer(**contract: object) -> Tokenizer:
    text = twins.text_tokenizer()
    return Tokenizer(text, twins.text_contract(text, **contract))


def ids(text: str) -> list[int]:
    return [WORDS[word] for word in text.split()]


def test_a_text_becomes_the_ids_of_its_words_between_the_special_ones() -> None:
    tokens = tokenizer().encode("Word3 word7 unheard")
    assert tokens.ids.tolist() == [CLS, WORDS["word3"], WORDS["word7"], UNK, SEP]
    assert tokens.ids.dtype == np.int64
    assert (tokens.truncated, tokens.count) == (False, 5)


def test_a_prompt_is_put_before_the_text_by_its_name() -> None:
    made = tokenizer(default_prompt="query")
    query = [CLS, *ids("find the answer to word1"), SEP]
    assert made.encode("word1").ids.tolist() == query
    assert made.encode("word1", prompt="query").ids.tolist() == query
    passage = made.encode("word1", prompt="passage").ids.tolist()
    assert passage == [CLS, *ids("an answer says word1"), SEP]
    assert made.encode("word1", prompt="").ids.tolist() == [CLS, *ids("word1"), SEP]
    assert tokenizer().encode("word1").ids.tolist() == [CLS, *ids("word1"), SEP]


def test_an_unknown_prompt_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidInput, match="'nothing' is unknown; the model has: passage, query"):
        tokenizer().encode("word1", prompt="nothing")
    with pytest.raises(InvalidInput, match="the model has: none") as refused:
        tokenizer(prompts={}).encode("word1", prompt="query")
    assert refused.value.field == "prompt"


def test_a_long_text_is_cut_before_the_last_special_token_and_says_so() -> None:
    text = " ".join(twins.WORDS[:20])
    tokens = tokenizer().encode(text)
    assert tokens.ids.tolist() == [CLS, *ids(text)[: twins.MAX_TOKENS - 2], SEP]
    assert (tokens.truncated, tokens.count) == (True, 22)


def test_a_text_of_exactly_the_limit_is_not_cut() -> None:
    tokens = tokenizer().encode(" ".join(twins.WORDS[: twins.MAX_TOKENS - 2]), truncate=False)
    assert (len(tokens.ids), tokens.truncated) == (twins.MAX_TOKENS, False)


def test_a_call_decides_between_cutting_and_refusing_and_else_the_contract() -> None:
    text = " ".join(twins.WORDS[:20])
    with pytest.raises(LimitExceeded, match="22 tokens, the limit is 16") as refused:
        tokenizer().encode(text, truncate=False)
    assert refused.value.metadata == {"limit": "16", "value": "22"}
    strict = tokenizer(truncate=False)
    with pytest.raises(LimitExceeded):
        strict.encode(text)
    assert strict.encode(text, truncate=True).truncated


def test_the_tokens_of_a_prompt_count_towards_the_limit() -> None:
    text = " ".join(twins.WORDS[:12])
    assert tokenizer().encode(text, truncate=False).count == 14
    with pytest.raises(LimitExceeded, match="18 tokens"):
        tokenizer().encode(text, prompt="query", truncate=False)


@pytest.mark.parametrize("text", ["", "  \t\n", "\u2003"])
def test_a_blank_text_is_refused(text: str) -> None:
    with pytest.raises(EmptyInput, match="blank"):
        tokenizer().encode(text)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidInput, match="surrogate"):
        tokenizer().encode("word1 \ud800")


def bare(unknown: str | None) -> Tokenizer:
    """A tokenizer of two words that adds no special token."""
    words = {"a": 0, "b": 1, "[UNK]": 2}
    made = Library(models.WordLevel(words, unk_token=unknown) if unknown else models.BPE())
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(made.to_str(), TextInput(max_tokens=4))


def test_a_text_of_which_the_tokenizer_keeps_nothing_is_refused() -> None:
    assert bare("[UNK]").encode("c").ids.tolist() == [2]
    with pytest.raises(EmptyInput, match="keeps nothing"):
        bare(None).encode("c")


def test_a_word_that_the_tokenizer_has_no_id_for_is_the_texts_fault() -> None:
    made = Library(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    broken = Tokenizer(made.to_str(), TextInput(max_tokens=4))
    with pytest.raises(InvalidInput, match="cannot read the text"):
        broken.encode("b")


def test_what_the_file_says_of_truncation_and_padding_is_set_aside() -> None:
    made = Library.from_str(twins.text_tokenizer())
    made.enable_truncation(3)
    made.enable_padding(length=10)
    text = made.to_str()
    tokens = Tokenizer(text, twins.text_contract(text)).encode("word1 word2 word3")
    assert len(tokens.ids) == 5


@pytest.mark.parametrize(
    ("text", "contract", "says"),
    [
        ("{}", TextInput(8), "cannot be read"),
        ("no json", TextInput(8), "cannot be read"),
        (twins.text_tokenizer(), TextInput(8, tokenizer_digest="0" * 64), "damaged or was edited"),
        (twins.text_tokenizer(), TextInput(2), "2 special tokens .* limit is 2"),
    ],
)
def test_a_tokenizer_that_cannot_serve_its_contract_is_refused(
    text: str, contract: TextInput, says: str
) -> None:
    with pytest.raises(ManifestError, match=says):
        Tokenizer(text, contract)


def test_the_largest_id_counts_added_tokens() -> None:
    assert tokenizer().largest_id == len(WORDS) - 1
    made = Library.from_str(twins.text_tokenizer())
    made.add_tokens(["an added one"])
    assert Tokenizer(made.to_str(), TextInput(8)).largest_id == len(WORDS)


def test_the_digest_is_of_the_very_text() -> None:
    text = twins.text_tokenizer()
    assert digest(text) == digest(text)
    assert digest(text) != digest(text + " ")


def test_other_threads_run_while_a_text_is_tokenized() -> None:
    made = tokenizer()
    text = "word1 " * 200_000
    worked = 0
    done = threading.Event()

    def encode() -> None:
        made.encode(text)
        done.set()

    thread = threading.Thread(target=encode)
    began = time.perf_counter()
    thread.start()
    longest = 0.0
    while not done.is_set():
        before = time.perf_counter()
        time.sleep(0.0005)
        longest = max(longest, time.perf_counter() - before)
        worked += 1
    thread.join()
    assert worked > 10
    assert longest < 0.5 * (time.perf_counter() - began)
