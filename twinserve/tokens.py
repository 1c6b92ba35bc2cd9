"""From a text to the token ids that a twin takes: one path for training, export and serving.

The tokenizer travels inside the twin's file as tokenizer.json, so that nothing can be mismatched.
What it says of truncation and padding is set aside: the input contract decides how long a text may
be, and a batch is padded to its longest text, never to a fixed length.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as _Tokenizer

from twinserve.errors import EmptyInput, InvalidInput, LimitExceeded, ManifestError
from twinserve.manifest import TextInput

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenized text."""

    ids: Ids  # [length], special tokens included
    truncated: bool
    count: int  # of the text before it was cut, special tokens included


class Tokenizer:
    """A twin's tokenizer under its input contract; may be called from several threads.

    Args:
        tokenizer_json: content of tokenizer.json, as `manifest.read_tokenizer` gives it.
        contract: of the twin.

    Raises:
        ManifestError: not a tokenizer that this build reads, not the one that the contract
            names, or one whose special tokens fill the limit.
    """

    def __init__(self, tokenizer_json: str, contract: TextInput) -> None:
        if contract.tokenizer_digest not in ("", digest(tokenizer_json)):
            raise ManifestError(
                "the tokenizer in the file is not the one that the manifest describes: the file "
                "is damaged or was edited; export or import it again"
            )
        try:
            self._tokenizer = _Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises plain Exception
            raise ManifestError(
                f"the tokenizer cannot be read ({str(error)[:200]}); export or import the twin "
                "with a tokenizer.json of the tokenizers library"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._contract = contract
        # Special tokens stay when a text is cut, so the cut is made before they are added.
        self._special = self._tokenizer.num_special_tokens_to_add(False)
        if self._special >= contract.max_tokens:
            raise ManifestError(
                f"the tokenizer adds {self._special} special tokens to every text and the limit is "
                f"{contract.max_tokens} tokens, which leaves none for the text; import again with "
                "a larger limit"
            )

    @property
    def largest_id(self) -> int:
        """The largest id that a text can turn into; the encoder's table must reach beyond it."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(
        self, text: str, *, prompt: str | None = None, truncate: bool | None = None
    ) -> Tokens:
        """Tokenize one text, without holding the GIL.

        Args:
            text: in Unicode, not blank.
            prompt: name of one of the contract's prompts, "" for none, None for the default.
            truncate: whether a text above the limit is cut; None takes the contract's rule.

        Raises:
            EmptyInput: nothing but blanks, or nothing that the tokenizer keeps.
            InvalidInput: an unknown prompt (its field is "prompt"), half a surrogate pair, or a
                word without an id where the tokenizer has none for unknown words.
            LimitExceeded: too many tokens, and not to be cut; both numbers are named.
        """
        if not text.strip():
            raise EmptyInput("the text is blank; send at least one word")
        name = self._contract.default_prompt if prompt is None else prompt
        if name and name not in self._contract.prompts:
            known = ", ".join(sorted(self._contract.prompts)) or "none"
            raise InvalidInput(
                f"prompt {name!r:.80} is unknown; the model has: {known}", field="prompt"
            )
        try:
            whole = f"{self._contract.prompts[name]}{text}" if name else text
            # Unlike `encode`, this lets other threads run meanwhile, and tracks no offsets.
            (encoding,) = self._tokenizer.encode_batch_fast([whole], add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:  # the library says TypeError
            raise InvalidInput("the text holds half a surrogate pair; send valid UTF-8") from error
        except Exception as error:  # the library raises plain Exception
            raise InvalidInput(
                f"the model's tokenizer cannot read the text ({str(error)[:200]}); send other "
                "words, or import the model with a tokenizer that has an unknown token"
            ) from error
        if not encoding.ids:
            raise EmptyInput("the tokenizer keeps nothing of the text; send at least one word")
        most = self._contract.max_tokens
        length = len(encoding.ids) + self._special
        beyond = length > most
        if beyond:
            if not (self._contract.truncate if truncate is None else truncate):
                raise LimitExceeded(
                    f"the text has {length} tokens, the limit is {most}; send a shorter one, or "
                    "allow truncation",
                    metadata={"limit": str(most), "value": str(length)},
                )
            encoding.truncate(most - self._special)
        finished = self._tokenizer.post_process(encoding)
        return Tokens(np.array(finished.ids, dtype=np.int64), beyond, length)


def digest(tokenizer_json: str) -> str:
    """Return the sha256 that the input contract names a tokenizer by."""
    return hashlib.sha256(tokenizer_json.encode()).hexdigest()
