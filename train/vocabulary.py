"""The tokenizers of twins trained on the spot, and files of word vectors. No torch in here.

In: the texts of the training part, and perhaps a file of word vectors. Out: tokenizer.json. Equal
texts give equal tokenizers, in any process: of the trainers in the tokenizers library that holds
for plain BPE, and not for WordPiece.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from twinserve.errors import ConfigError, DataError
from twinserve.manifest import TEXT_INPUTS, TextInput
from twinserve.tokens import digest

PAD, UNKNOWN = "[PAD]", "[UNK]"
PAD_ID, UNKNOWN_ID = 0, 1
# Below this share of a text's words, vectors were made for other texts.
_LEAST_KNOWN = 0.1

WordVectors = dict[str, NDArray[np.float32]]


def contract_for(tokenizer: str, max_tokens: int) -> TextInput:
    """Return the input contract of a words twin."""
    return TextInput(
        max_tokens=max_tokens,
        inputs=TEXT_INPUTS[:2],
        pad_id=PAD_ID,
        tokenizer_digest=digest(tokenizer),
    )


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> str:
    """Learn pieces of words from texts: byte pair encoding (Sennrich et al., 2016), lower case.

    Args:
        texts: of the training classes alone.
        vocabulary: so many entries at most, the two special ones included.

    Returns:
        tokenizer.json.
    """
    tokenizer = _lower_case(models.BPE(unk_token=UNKNOWN))
    # A mark at a word's beginning tells "fee" from the end of "coffee". (Continuations marked by a
    # prefix, as in BERT, would be numbered in another order in every process.)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [tokenizer.pre_tokenizer, pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def whole_words(texts: Sequence[str], vectors: WordVectors, vocabulary: int) -> str:
    """Make a tokenizer of whole words: those of a vectors file.

    Those that the texts hold come first, the most frequent first, and then the file's in its
    order, until `vocabulary` entries are full.

    Raises:
        DataError: vectors for hardly any word of the texts, such as those of another language: the
            twin would see unknown words alone.
    """
    splitter = _lower_case(models.WordLevel(vocab={UNKNOWN: 0}, unk_token=UNKNOWN))
    counts: Counter[str] = Counter()
    for text in texts:
        normal = splitter.normalizer.normalize_str(text)
        counts.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normal))
    seen = sorted((w for w in counts if w in vectors), key=lambda w: (-counts[w], w))
    known, spoken = sum(counts[word] for word in seen), sum(counts.values())
    if spoken and known < _LEAST_KNOWN * spoken:
        frequent = [word for word, _ in counts.most_common(100) if word not in vectors]
        raise DataError(
            f"the word vectors have {known / spoken:.0%} of the words of the training texts, and "
            f"not {', '.join(frequent[:5])}: are they of another language, or written with "
            "capitals? Texts are put into lower case and split at blanks and punctuation. Give "
            "other vectors, or unset weights to learn pieces of words from the texts"
        )
    entries = dict.fromkeys([PAD, UNKNOWN, *seen, *vectors])
    table = {word: index for index, word in enumerate(list(entries)[:vocabulary])}
    return str(_lower_case(models.WordLevel(vocab=table, unk_token=UNKNOWN)).to_str())


def read_word_vectors(path: Path | str, width: int) -> WordVectors:
    """Read word vectors as text: a word and its coordinates a line, as GloVe and word2vec write.

    A first line of two numbers (how many, how wide) is passed over.

    Args:
        path: of a UTF-8 file.
        width: coordinates that every word must have.

    Raises:
        ConfigError: no such file, or vectors of another width.
        DataError: a line that is none of a word and numbers.
    """
    vectors: WordVectors = {}
    for number, line in _lines(Path(path)):
        word, _, rest = line.rstrip().partition(" ")
        values = rest.split()
        if number == 1 and len(values) == 1 and word.isdigit():
            continue
        if len(values) != width:
            raise ConfigError(
                f"word_dimension is {width}, and line {number} of {path} has {len(values)} "
                f"coordinates; set word_dimension={len(values)}"
            )
        try:
            vector = np.array(values, dtype=np.float32)
        except ValueError as error:
            raise DataError(
                f"line {number} of {path} is not a word and {width} numbers ({error}); "
                "give word vectors as text"
            ) from error
        if not np.isfinite(vector).all():
            raise DataError(f"line {number} of {path} holds NaN or infinity; leave it out")
        vectors.setdefault(word, vector)
    if not vectors:
        raise DataError(f"{path} holds no word vectors; give a word and its coordinates a line")
    return vectors


def _lower_case(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError as error:
        raise ConfigError(f"weights is {str(path)!r}, which does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as text ({error}); give word vectors, a word and its "
            "coordinates a line"
        ) from error
