"""A tiny transformer of random weights with a tokenizer of a few words, and texts for it."""

from __future__ import annotations

import functools

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from twinserve import tokens
from twinserve.distance import Metric
from twinserve.manifest import TextInput
from twinserve.train.twins import TextTwin

SENTENCES = (
    "where is my card and why did it not arrive",
    "the transfer to my account was declined twice",
    "how long does a top up by cheque take",
    "please change the pin of my card",
    "is there a fee for cash in another country",
    "why do i see a payment that i did not make",
)
VOCABULARY = 140
MAX_TOKENS = 48
DIMENSION = 32


class Encoder(nn.Module):
    """Ids and mask -> token states."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        return states


@functools.cache
def tokenizer_json() -> str:
    """A WordPiece tokenizer in the manner of BERT.

    Its vocabulary is listed, not trained: the library's WordPiece trainer breaks ties differently
    in every process, and the tests' rows would differ with it.
    """
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    letters = sorted({letter for word in words for letter in word})
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys([*pieces, *words])]
    assert len(listed) <= VOCABULARY
    vocabulary = {piece: index for index, piece in enumerate(listed)}
    made = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return str(made.to_str())


def text_contract() -> TextInput:
    return TextInput(max_tokens=MAX_TOKENS, tokenizer_digest=tokens.digest(tokenizer_json()))


def make_text_twin(seed: int = 5, vocabulary: int = VOCABULARY) -> TextTwin:
    """A Bert of one layer, pooled by the mean, of unit length."""
    torch.manual_seed(seed)
    bert = BertModel(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=DIMENSION,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=MAX_TOKENS,
            attn_implementation="eager",
        ),
        add_pooling_layer=False,
    )
    return TextTwin(
        Encoder(bert),
        contract=text_contract(),
        tokenizer=tokenizer_json(),
        dimension=DIMENSION,
        metric=Metric.COSINE,
        normalized=True,
        truncations=(16,),
    ).eval()


def text_rows(count: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Token ids of texts of three to some thirty words."""
    encoder = tokens.Tokenizer(tokenizer_json(), text_contract())
    words = " ".join(SENTENCES).split()
    generator = np.random.default_rng(seed)
    texts = [
        " ".join(generator.choice(words, size=generator.integers(3, 30))) for _ in range(count)
    ]
    return [encoder.encode(text).ids for text in texts]
