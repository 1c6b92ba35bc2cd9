"""A fine-tuned encoder goes the way of every twin: trained, kept, exported with its truncations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

from tests.export.imports.conftest import save_encoder, save_modules, save_pooling
from tests.export.text_twins import VOCABULARY
from tests.train import questions
from twinserve.export.exporter import export
from twinserve.export.session import GraphSession, embed_all
from twinserve.train.config import TrainConfig
from twinserve.train.evaluate import embed
from twinserve.train.loop import train


def test_a_run_is_exported_with_its_truncations_and_says_what_it_began_with(
    tmp_path: Path,
) -> None:
    torch.manual_seed(5)
    one_layer = BertConfig(  # since the exporter takes seconds for each
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=48,
    )
    folder = save_encoder(tmp_path / "model", BertModel(one_layer))
    save_modules(folder, "Transformer", "Pooling", "Normalize")
    save_pooling(folder, "mean_tokens")
    data = questions.write_csv(tmp_path / "q.csv", questions.rows(), ("text", "label"))
    run = train(
        TrainConfig(
            data=str(data),
            out=str(tmp_path / "run"),
            twin="text_encoder",
            weights=str(folder),
            freeze="0",
            learning_rate=1e-3,
            warmup_steps=2,
            layer_decay=0.8,
            matryoshka=(16, 8),
            calibrate_fraction=0.4,
            report_fraction=0.3,
            classes_per_batch=3,
            items_per_class=3,
            max_steps=4,
            evaluate_every=2,
            one_shot_ways=2,
            one_shot_trials=20,
        ),
        progress=False,
    )
    assert run.config.dimension == 32
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in log] == ["step", "0", "2", "4"]
    folder.rename(tmp_path / "elsewhere")

    manifest = export(tmp_path / "run", tmp_path / "q.onnx")
    assert (manifest.dimension, manifest.truncations) == (32, (16, 8))
    assert {entry.dimension for entry in manifest.calibrations} == {32, 16, 8}
    assert manifest.origin["architecture"] == "BertModel"
    assert "model.safetensors" in manifest.origin["files"]
    assert str(tmp_path) not in manifest.to_json()

    rows = run.labelled.rows
    session = GraphSession((tmp_path / "q.onnx").read_bytes(), run.twin.contract)
    np.testing.assert_allclose(embed_all(session, rows), embed(run.twin, rows), atol=1e-5)
    alone = np.concatenate([embed_all(session, [row]) for row in rows[:6]])
    np.testing.assert_allclose(alone, embed_all(session, rows[:6]), atol=1e-5)
