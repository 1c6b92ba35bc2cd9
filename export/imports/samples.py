"""Inputs that an import passes its gate on, where the user gives no data.

In: a file of lines, a folder of pictures, an array file, or nothing. Out: rows of the twin's
contract, and a word for the manifest that says where they are from. The built-in texts are ours and
differ in length, script and punctuation; built-in pictures and vectors are drawn from a seed, and
say little of how a model behaves on real ones: only that the file repeats it.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from twinserve.errors import DataError, InvalidInput
from twinserve.feed import Row, Rows
from twinserve.manifest import ImageInput, InputContract, TensorInput
from twinserve.preprocess import decode_image, resize
from twinserve.tokens import Tokenizer
from twinserve.train.readers import SUFFIXES

BUILT_IN, GIVEN, OWN_DATA = "built in", "given", "the calibrating data"
MOST = 1024
_DRAWN = 64

TEXTS = (
    "Yes.",
    "Thank you",
    "Where is it?",
    "42",
    "a b c d e f g",
    "The lamp on the desk is broken.",
    "Please send the parcel to my new address, not to the old one.",
    "How long does a transfer take if I start it on a Friday evening?",
    "Two crows sat on the wire; one of them had a piece of bread, the other had only patience.",
    "The train left at 07:45 and arrived, against all expectation, four minutes early.",
    "I paid 19.99 for it, plus 4.50 for the delivery - and got the wrong colour!",
    "WHY IS EVERYTHING IN CAPITAL LETTERS",
    "naïve café, façade, Ångström, jalapeño",
    "Wie spät ist es, und fährt heute noch ein Bus nach Hause?",
    "Où se trouve la boulangerie la plus proche ?",
    "今天下午我们去河边散步。",
    "Сколько стоит билет до конца линии?",
    "πόσο μακριά είναι η θάλασσα",
    "emoji in the middle 🙂 of a sentence",
    "user_name@example.org wrote: see section 3.2(b), lines 10-14 (v2.0.1)",
    "x = [i ** 2 for i in range(10) if i % 2]",
    "antidisestablishmentarianism and other uncommonly long words",
    "The old bridge had been closed since spring. People from both villages walked the long way "
    "round by the mill, and complained about it, and met each other there.",
    "When the rain stopped, the children came out one after another, first to the steps, then to "
    "the gate, and at last into the street, where the water still ran in two quick brown streams "
    "along the kerb and carried leaves, matches, and once a whole paper boat down to the drain.",
    "To change the filter, switch the machine off and wait until it is cold. Open the lid, press "
    "both clips towards the middle, and lift the holder straight up. Rinse the holder, but do not "
    "use soap. Put in the new filter with its arrow pointing down, close the lid until you hear it "
    "click, and let the machine run once without coffee. If the light stays red, take the filter "
    "out again and see whether the seal sits flat; a seal that is twisted even a little lets water "
    "past, and the machine will notice.",
    "My grandmother kept a notebook in which she wrote down the weather of every day, and next to "
    "it one thing that had happened. Most entries are short. Frost, and the hens would not come "
    "out. Sun, letter from Anna. Wind from the sea, bread too salty. There is no entry in it that "
    "says how she felt, and yet, when you read a year of it at once, you know: the lines get "
    "shorter in autumn, the hens disappear, Anna stops writing, and then in March somebody has "
    "mended the fence, and there are two kinds of cake on the same afternoon. I have tried to keep "
    "such a notebook myself. I never got past the second week, because I always explained too "
    "much, and the weather here is the same for months. But I still have hers, and on days when "
    "nothing seems to happen I open it at the same date, some year, and see what she thought worth "
    "a line.",
)


def rows_for(
    contract: InputContract, tokenizer: Tokenizer | None, samples: Path | None
) -> tuple[Rows, str]:
    """Return rows for the gate, and where they are from.

    Args:
        contract: of the twin.
        tokenizer: of a text twin.
        samples: text twin: a file of a text per line; image twin: a folder of pictures; tensor
            twin: .npy, or .npz with the array vectors. None takes what is built in.

    Raises:
        DataError: nothing there, or of another kind.
    """
    if samples is None:
        return _built_in(contract, tokenizer), BUILT_IN
    if tokenizer is not None:
        return [tokenizer.encode(text, truncate=True).ids for text in lines(samples)], GIVEN
    if isinstance(contract, ImageInput):
        return _pictures(samples, contract), GIVEN
    assert isinstance(contract, TensorInput)
    return _vectors(samples, contract), GIVEN


def lines(path: Path) -> list[str]:
    """Return the texts of a file, one per line; blank lines are passed over.

    Raises:
        DataError: no such file, not UTF-8, or nothing but blanks.
    """
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as text ({error}); give --samples a UTF-8 file with a text "
            "per line"
        ) from error
    found = [text for text in texts if text.strip()][:MOST]
    if not found:
        raise DataError(f"{path} holds no texts; give --samples a file with a text per line")
    return found


def _pictures(folder: Path, contract: ImageInput) -> Rows:
    files = sorted(
        file
        for file in (folder.rglob("*") if folder.is_dir() else [folder])
        if file.suffix.lower() in SUFFIXES
    )
    if not files:
        raise DataError(f"{folder} holds no pictures; give --samples a folder of them")
    found: list[Row] = []
    for file in files[:MOST]:
        try:
            found.append(decode_image(file.read_bytes(), contract))
        except (OSError, InvalidInput) as error:
            raise DataError(f"{file} cannot be read as a picture ({error})") from error
    return np.stack(found)


def _vectors(path: Path, contract: TensorInput) -> Rows:
    try:
        loaded = np.load(path, allow_pickle=False)
        array = loaded if isinstance(loaded, np.ndarray) else loaded["vectors"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read ({error}); give --samples an .npy, or an .npz with the array "
            "vectors"
        ) from error
    shape = (len(array) if array.ndim else 0, *contract.shape)
    if array.shape != shape or array.dtype != contract.data_type or not len(array):
        raise DataError(
            f"{path} holds {array.dtype} {list(array.shape)}; the model takes {contract.data_type} "
            f"{['n', *contract.shape]}"
        )
    rows: Rows = array[:MOST]
    return rows


def _built_in(contract: InputContract, tokenizer: Tokenizer | None) -> Rows:
    if tokenizer is not None:
        return [tokenizer.encode(text, truncate=True).ids for text in TEXTS]
    generator = np.random.default_rng(0)
    if isinstance(contract, ImageInput):
        return np.stack([_drawn(contract, generator) for _ in range(_DRAWN)])
    assert isinstance(contract, TensorInput)
    shape = (_DRAWN, *contract.shape)
    if contract.data_type == "float32":
        return generator.standard_normal(shape).astype(np.float32)
    return generator.integers(0, 256, shape).astype(contract.data_type)


def _drawn(contract: ImageInput, generator: np.random.Generator) -> Row:
    """A picture of soft blots under a little noise."""
    side = int(generator.integers(3, 24))
    channels = 1 if contract.color_order == "L" else 3
    coarse = generator.integers(0, 256, (side, side, channels), dtype=np.uint8)
    blots = Image.fromarray(coarse.squeeze() if channels == 1 else coarse)
    pixels = resize(blots, contract).astype(np.int64)
    noisy = pixels + generator.integers(-12, 13, pixels.shape)
    drawn: Row = np.clip(noisy, 0, 255).astype(np.uint8)
    return drawn
