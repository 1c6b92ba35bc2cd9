"""Word vectors: tokenizers repeat themselves, padding changes nothing, rare words begin long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Reader

from tests.train import questions
from twinserve.errors import ConfigError, DataError
from twinserve.tokens import Ids, Tokenizer
from twinserve.train import vocabulary, words
from twinserve.train.config import TrainConfig
from twinserve.train.evaluate import embed
from twinserve.train.material import prepare
from twinserve.train.twins import TextTwin

GERMAN: list[tuple[str, ...]] = [
    (f"{begin} {word}", word)
    for word in ("karte", "geld", "konto", "reise", "bank", "brief", "haus", "zahl", "weg", "uhr")
    for begin in ("wo ist", "was kostet", "ich verlor")
]
TEXTS = [text for text, _ in questions.rows()]


def small_twin(tokenizer: str | None = None) -> TextTwin:
    made = vocabulary.train_tokenizer(TEXTS, 300) if tokenizer is None else tokenizer
    torch.manual_seed(0)
    return words.words(vocabulary.contract_for(made, 32), made, width=8, dimension=4)


def rows_of(twin: TextTwin) -> list[Ids]:
    tokenizer = Tokenizer(twin.tokenizer, twin.contract)
    return [tokenizer.encode(text).ids for text in TEXTS]


def table_of(twin: TextTwin) -> torch.Tensor:
    assert isinstance(twin.encoder, words.WordTable)
    return twin.encoder.table.weight.detach()


def test_equal_texts_give_equal_tokenizers_in_any_process() -> None:
    program = (
        "from tests.train.questions import rows\n"
        "from twinserve.train.vocabulary import train_tokenizer\n"
        "print(train_tokenizer([text for text, _ in rows()], 300), end='')"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == vocabulary.train_tokenizer(TEXTS, 300)


def test_the_vocabulary_keeps_to_its_limit_and_knows_words_by_their_pieces() -> None:
    reader = Reader.from_str(vocabulary.train_tokenizer(TEXTS, 60))
    assert reader.get_vocab_size() == 60
    assert len(reader.encode("recard").tokens) > 1
    assert reader.encode("CARD").tokens == reader.encode("card").tokens
    assert reader.token_to_id(vocabulary.PAD) == vocabulary.PAD_ID
    assert reader.token_to_id(vocabulary.UNKNOWN) == vocabulary.UNKNOWN_ID


def test_a_padded_text_embeds_as_it_does_alone() -> None:
    twin = small_twin().eval()
    rows = rows_of(twin)
    together = embed(twin, rows)
    alone = np.concatenate([embed(twin, [row]) for row in rows])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_the_order_of_words_does_not_matter_and_the_words_do() -> None:
    twin = small_twin().eval()
    row = rows_of(twin)[0]
    forward, backward, fewer = embed(twin, [row, row[::-1].copy(), row[1:]])
    np.testing.assert_allclose(forward, backward, atol=1e-6)
    assert np.abs(forward - fewer).max() > 1e-3


def test_rare_words_begin_longer_than_frequent_ones_and_padding_at_nothing() -> None:
    twin = small_twin()
    rows = rows_of(twin)
    words.begin(twin, rows, None)
    lengths = torch.linalg.vector_norm(table_of(twin), dim=1).numpy()
    assert lengths[[vocabulary.PAD_ID, vocabulary.UNKNOWN_ID]].tolist() == [0.0, 0.0]
    holding = np.zeros(len(lengths))
    for row in rows:
        holding[np.unique(row)] += 1
    assert lengths[(holding > 0) & (holding < 4)].mean() > 1.2 * lengths[holding > 10].mean()


def test_vectors_of_a_file_stand_at_their_words(tmp_path: Path) -> None:
    vectors = vocabulary.read_word_vectors(questions.write_vectors(tmp_path / "v.txt"), 8)
    twin = small_twin(vocabulary.whole_words(TEXTS, vectors, 500))
    words.begin(twin, rows_of(twin), vectors)
    places = Reader.from_str(twin.tokenizer).get_vocab()
    assert set(places) == {vocabulary.PAD, vocabulary.UNKNOWN, *vectors}
    table = table_of(twin).numpy()
    for word in ("card", "atm"):
        begun, given = table[places[word]], vectors[word]
        assert begun @ given == pytest.approx(np.linalg.norm(begun) * np.linalg.norm(given))


def test_the_words_of_the_texts_come_before_the_rest_of_the_file(tmp_path: Path) -> None:
    vectors = vocabulary.read_word_vectors(questions.write_vectors(tmp_path / "v.txt"), 8)
    known = Reader.from_str(
        vocabulary.whole_words(["atm fees, phone, phone"], vectors, 5)
    ).get_vocab()
    assert sorted(known, key=lambda word: known[word]) == [
        *(vocabulary.PAD, vocabulary.UNKNOWN, "phone", "atm"),
        next(iter(vectors)),
    ]


@pytest.mark.parametrize(
    ("content", "error", "named"),
    [
        ("a 1 2\nb 1 2 3\n", ConfigError, "line 2 of .* has 3 coordinates; set word_dimension=3"),
        ("a 1 2\nb 1 x\n", DataError, "line 2 of .* is not a word and 2 numbers"),
        ("a 1 nan\n", DataError, "line 1 of .* holds NaN"),
        ("", DataError, "holds no word vectors"),
        ("5 2\n", DataError, "holds no word vectors"),
    ],
)
def test_word_vectors_that_are_none_are_refused(
    tmp_path: Path, content: str, error: type[Exception], named: str
) -> None:
    (tmp_path / "v.txt").write_text(content)
    with pytest.raises(error, match=named):
        vocabulary.read_word_vectors(tmp_path / "v.txt", 2)


def test_a_vectors_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        vocabulary.read_word_vectors(tmp_path / "none.txt", 2)
    (tmp_path / "v.bin").write_bytes(b"a \xff\xfe\n")
    with pytest.raises(DataError, match="cannot be read as text"):
        vocabulary.read_word_vectors(tmp_path / "v.bin", 2)


def test_vectors_of_hardly_any_word_of_the_texts_are_refused(tmp_path: Path) -> None:
    vectors = vocabulary.read_word_vectors(questions.write_vectors(tmp_path / "v.txt"), 8)
    with pytest.raises(DataError, match=r"have 6% of the words .* not das, ist, .* unset weights"):
        vocabulary.whole_words(["das ist die karte"] * 3 + ["was kostet das atm hier"], vectors, 99)
    config = TrainConfig(
        twin="words",
        data=str(questions.write_csv(tmp_path / "q.csv", GERMAN, ("text", "label"))),
        weights=str(tmp_path / "v.txt"),
        word_dimension=8,
    )
    with pytest.raises(DataError, match="of another language"):
        prepare(config)
