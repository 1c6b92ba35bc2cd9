"""A text model's tokenizer as one tokenizer.json, proven to give the ids that the model expects.

In: the model's folder. Out: the JSON that travels in the twin, and the contract that goes with it.
A folder with older files (vocab.txt and the like) is converted by transformers.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from twinserve import tokens
from twinserve.errors import ConfigError, DataError
from twinserve.manifest import TextInput
from twinserve.train.encoders import library_quiet
from twinserve.train.pretrained.folders import read_json
from twinserve.train.pretrained.settings import Answer, Answers, Settings

FILE = "tokenizer.json"


def tokenizer_json(folder: Path, *, lower: bool = False) -> str:
    """Return a folder's tokenizer.

    Args:
        folder: with tokenizer.json, or files that transformers makes one of.
        lower: put texts into lower case first.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else _converted(folder)
    return _lowered(text) if lower else text


def read_tokenizer(path: Path) -> str:
    """Return the tokenizer that a flag names.

    Raises:
        DataError: no such file, or not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no tokenizer.json that can be read ({error}); give --tokenizer FILE"
        ) from error


def text_contract(
    tokenizer: str,
    *,
    inputs: tuple[str, ...],
    max_tokens: int,
    prompts: dict[str, str],
    default_prompt: str,
    pad_id: int,
    settings: Settings,
    answers: Answers,
) -> TextInput:
    """Put a text twin's contract together, flags before files.

    Raises:
        ConfigError: a default prompt that is not there.
        ManifestError: the tokenizer cannot be read.
    """
    prompts = {**prompts, **settings.prompts}
    default = default_prompt if settings.default_prompt is None else settings.default_prompt
    if default and default not in prompts:
        raise ConfigError(
            f"the default prompt {default!r} is unknown; there are: "
            f"{', '.join(sorted(prompts)) or 'none'}; give --prompt {default}=TEXT"
        )
    if prompts:
        answers.given.append(_prompts_answer(prompts, default, settings))
    contract = TextInput(
        max_tokens=max_tokens,
        prompts=prompts,
        default_prompt=default,
        inputs=inputs,
        pad_id=pad_id if settings.pad_id is None else settings.pad_id,
        tokenizer_digest=tokens.digest(tokenizer),
    )
    tokens.Tokenizer(tokenizer, contract)  # refuses what it cannot read
    return contract


def max_tokens_of(
    stated: int | None, places: int | None, settings: Settings, answers: Answers, where: str
) -> int:
    """Return the longest text in tokens.

    Args:
        stated: by a file, None where none says.
        places: that the encoder has, None where it does not say.
        settings: the flag.
        answers: is told.
        where: the file that says.

    Raises:
        ConfigError: more than the encoder has places for.
    """
    if stated is not None:
        shorter = stated if places is None else min(stated, places)
        taken = answers.read("longest text", settings.max_tokens, shorter, where, "--max-tokens")
    elif places is not None:
        because = "the encoder has so many places"
        taken = answers.guess("longest text", settings.max_tokens, places, because, "--max-tokens")
    else:
        because = "no file says; longer texts cost more"
        taken = answers.guess("longest text", settings.max_tokens, 512, because, "--max-tokens")
    if places is not None and taken > places:
        raise ConfigError(
            f"--max-tokens is {taken}, and the encoder has places for {places}; give fewer"
        )
    return taken


def pad_id_of(folder: Path, tokenizer: str) -> int:
    """Return the id that pads: the encoder's, since some count places by it, or the tokenizer's."""
    stated = read_json(folder / "config.json").get("pad_token_id")
    if type(stated) is int and stated >= 0:
        return stated
    padding = _object(tokenizer).get("padding")
    given = padding.get("pad_id") if isinstance(padding, dict) else None
    return given if type(given) is int and given >= 0 else 0


def as_the_library_cuts(
    folder: Path, tokenizer: str, contract: TextInput, texts: list[str], *, lower: bool = False
) -> tuple[str, int]:
    """Hold the tokenizer against the one that transformers makes of the folder.

    Returns:
        The tokenizer that gives the library's ids, which may be the library's own where the file
        does not, and on how many texts that was seen (0 where the library cannot load it).

    Raises:
        DataError: neither gives the library's ids, or a first sentence has other type ids than 0.
    """
    library = _library(folder)
    if library is None:
        return tokenizer, 0
    with library_quiet():
        found = library([text.lower() for text in texts] if lower else texts, truncation=False)
    if any(any(row) for row in found.get("token_type_ids", [])):
        raise DataError(
            "the tokenizer gives a single text type ids other than 0, which a text twin does not; "
            "export the encoder with them inside the graph"
        )
    plain = TextInput(max_tokens=1 << 20, pad_id=contract.pad_id)
    others = library.backend_tokenizer.to_str()
    for candidate in (tokenizer, _lowered(others) if lower else others):
        ours = tokens.Tokenizer(candidate, plain)
        if [ours.encode(text).ids.tolist() for text in texts] == found["input_ids"]:
            return candidate, len(texts)
    raise DataError(
        "the folder's tokenizer.json gives other ids than the tokenizer that transformers makes of "
        "its files, so that it is unclear what the encoder was trained on; "
        "keep the right one, and give it with --tokenizer"
    )


def with_tokenizer(contract: TextInput, tokenizer: str) -> TextInput:
    """Return the contract with this tokenizer's digest in it."""
    return dataclasses.replace(contract, tokenizer_digest=tokens.digest(tokenizer))


def _converted(folder: Path) -> str:
    library = _library(folder)
    if library is None:
        raise DataError(
            f"{folder} has no tokenizer.json, nor files that transformers can make one of; "
            "copy it there, or give --tokenizer FILE"
        )
    text: str = library.backend_tokenizer.to_str()
    return text


def _library(folder: Path) -> Any | None:
    """Return transformers' own tokenizer of a folder, None where it has none of the fast kind."""
    from transformers import AutoTokenizer

    with library_quiet():
        try:
            found = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_fast=True
            )
        except Exception:  # whatever foreign files may cause: there is none, then
            return None
    # Of a folder without one, the library makes an empty one without a word.
    usable = getattr(found, "is_fast", False) and len(found) > len(found.all_special_tokens)
    return found if usable else None


def _lowered(text: str) -> str:
    document = _object(text)
    steps = [{"type": "Lowercase"}]
    before = document.get("normalizer")
    if before is not None:
        steps.append(before)
    document["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return json.dumps(document, ensure_ascii=False)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"tokenizer.json is not JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise DataError("tokenizer.json holds no JSON object; copy it again")
    return value


def _prompts_answer(prompts: dict[str, str], default: str, settings: Settings) -> Answer:
    because = "you said so" if settings.prompts else "config_sentence_transformers.json says so"
    taken = f"{', '.join(sorted(prompts))}; without a name: {default or 'none'}"
    return Answer("prompts", taken, because, "--prompt", False)
