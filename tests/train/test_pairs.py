"""Pairs and triplets: read from tables, split by what hangs together, drawn in batches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.train import drawings, questions
from twinserve.errors import ConfigError, DataError
from twinserve.manifest import TextInput
from twinserve.train.components import LinkSplits, components, split_links
from twinserve.train.config import TrainConfig
from twinserve.train.data import PARTS
from twinserve.train.forms import Kind, kind_of
from twinserve.train.links import identities, read_links
from twinserve.train.material import prepare, prepare_links, read_links_again
from twinserve.train.pairs import LinkBatches, PairData, TripletData

PAIRS: list[tuple[str, ...]] = [
    (f"what of {word}", f"the {word}?" if index % 2 else f"a {index}", str(index % 2))
    for index, word in enumerate("abcdefghijklmnopqrstuvwxyz")
]


def config(path: Path, **settings: object) -> TrainConfig:
    return TrainConfig(data=str(path), **{"twin": "words", **settings})  # type: ignore[arg-type]


def data(count: int = 20, same: int = 8) -> PairData:
    members = np.arange(2 * count, dtype=np.int64).reshape(count, 2)
    targets = (np.arange(count) < same).astype(np.float32)
    names = tuple(str(item) for item in range(2 * count))
    return PairData(np.zeros((2 * count, 3), np.float32), names, members, targets)


# ---- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "settings", "form"),
    [
        (("question1", "question2", "is_duplicate"), {}, "pairs"),
        (("First", "Second", "Same"), {}, "pairs"),
        (("anchor", "positive", "negative"), {}, "triplets"),
        (("text", "label", "more"), {}, "labelled"),
        (("x", "y", "z"), {"form": "pairs", "columns": ("x", "y", "z")}, "pairs"),
        ((), {"form": "pairs"}, "pairs"),
        ((), {"score_range": "0..1"}, "pairs"),
    ],
)
def test_a_table_tells_its_form_by_its_header_or_is_told(
    tmp_path: Path, header: tuple[str, ...], settings: dict[str, object], form: str
) -> None:
    path = questions.write_csv(tmp_path / "t.csv", PAIRS, header)
    assert kind_of(config(path, **settings)) == Kind("text", form, True)


def test_pairs_without_a_header_are_not_taken_for_labelled_texts(tmp_path: Path) -> None:
    path = questions.write_csv(tmp_path / "t.csv", PAIRS)
    with pytest.raises(DataError, match=r"set form=pairs, and score_range=0\.\.5"):
        kind_of(config(path))


def test_items_stand_once_and_judgements_run_from_0_to_1(tmp_path: Path) -> None:
    rows: list[tuple[str, ...]] = [("a", "b", "5"), ("b", "c, d", "0"), ("c, d", "a", "2.5")]
    path = questions.write_csv(tmp_path / "t.csv", rows, ("sentence1", "sentence2", "score"))
    links = read_links(Kind("text", "pairs", True), config(path, score_range="0..5"))
    assert links.names == ("a", "b", "c, d")
    assert links.members.tolist() == [[0, 1], [1, 2], [2, 0]]
    assert links.targets is not None
    assert links.targets.tolist() == [1.0, 0.0, 0.5]
    from_minus_5 = read_links(Kind("text", "pairs", True), config(path, score_range="-5..5"))
    assert from_minus_5.targets is not None
    assert from_minus_5.targets.tolist() == [1.0, 0.5, 0.75]
    assert links.lines.tolist() == [2, 3, 4]


def test_pairs_are_judged_in_words_too(tmp_path: Path) -> None:
    rows: list[tuple[str, ...]] = [("a", "b", "Same"), ("a", "c", "different"), ("c", "d", "yes")]
    path = questions.write_csv(tmp_path / "t.tsv", [], ())
    path.write_text("\n".join("\t".join(row) for row in rows))
    links = read_links(Kind("text", "pairs", True), config(path, form="pairs"))
    assert links.targets is not None
    assert links.targets.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("row", "settings", "named"),
    [
        ("a,b,maybe", {}, r"line 2 .* judges 'maybe', .* score_range"),
        ("a,b,6", {"score_range": "0..5"}, r"line 2 .* score '6', .* score_range 0\.\.5"),
        ("a,b,nan", {"score_range": "0..5"}, "score 'nan'"),
        ("a,,1", {}, "line 2 .* an empty item"),
        ("a,b", {}, "line 2 .* 2 columns, and needs 3"),
    ],
)
def test_a_line_that_cannot_be_meant_is_refused_by_its_number(
    tmp_path: Path, row: str, settings: dict[str, object], named: str
) -> None:
    (tmp_path / "t.csv").write_text(f"first,second,same\n{row}\n")
    with pytest.raises(DataError, match=named):
        read_links(Kind("text", "pairs", True), config(tmp_path / "t.csv", **settings))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"score_range": "5..0"}, r"score_range is '5\.\.0'; it must be LEAST\.\.MOST"),
        ({"score_range": "five"}, "it must be LEAST"),
        ({"score_range": "0..5", "form": "triplets"}, "score_range is of pairs"),
        ({"form": "pairs", "columns": ("a", "b")}, "columns is .* 3 names"),
        ({"columns": ("a", "b"), "text_column": "a"}, "name the columns once"),
        ({"form": "quads"}, "form is 'quads'; it must be one of"),
        ({"false_accept_rates": (1.5,)}, "false_accept_rates is 1.5"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        config(Path("t.csv"), **settings)


def test_pairs_of_pictures_are_read_by_their_paths_and_broken_ones_left_out(
    tmp_path: Path,
) -> None:
    drawings.write_folder(tmp_path / "p", {f"{n}.png": drawings.draw(n, 0) for n in range(24)})
    (tmp_path / "p" / "3.png").write_bytes(b"no picture")
    rows: list[tuple[str, ...]] = [(f"p/{n}.png", f"p/{n + 1}.png", "1") for n in range(0, 24, 2)]
    rows += [("p/0.png", "p/23.png", "0"), ("p/4.png", "p/none.png", "0")]
    path = questions.write_csv(tmp_path / "pairs.csv", rows, ("image1", "image2", "same"))
    settings = config(path, twin="conv4", max_broken_images=2)
    material = prepare_links(settings)
    assert isinstance(material.data, PairData)
    assert len(material.data) == 12
    assert material.data.names[:2] == ("p/0.png", "p/1.png")
    assert "p/2.png" not in material.data.names  # its only partner is broken
    assert np.asarray(material.data.rows).shape == (22, 28, 28, 1)
    assert read_links_again(settings, material.contract, None).digest == material.data.digest
    with pytest.raises(DataError, match=r"p/none\.png: it cannot be read \(No such file"):
        prepare_links(dataclasses.replace(settings, max_broken_images=1))


def test_a_parquet_of_texts_reads_as_its_csv(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def both(name: str, rows: list[tuple[object, ...]], header: tuple[str, ...]) -> list[Path]:
        words = [tuple(map(str, row)) for row in rows]
        columns = {key: [row[place] for row in rows] for place, key in enumerate(header)}
        parquet.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        return [
            questions.write_csv(tmp_path / f"{name}.csv", words, header),
            tmp_path / f"{name}.parquet",
        ]

    labelled: list[tuple[object, ...]] = [*questions.rows()]
    read = [
        prepare(config(path, twin="words"))
        for path in both("labelled", labelled, ("text", "label"))
    ]
    assert read[0].digest == read[1].digest
    _, path = both("foreign", labelled, ("frage", "thema"))
    unusual = prepare(config(path, twin="words", text_column="1", label_column="2"))
    assert unusual.labelled.names == read[0].labelled.names
    scored = [(f"a {n}", f"b {n}", n % 6) for n in range(40)]
    links = [
        prepare_links(config(path, twin="words", score_range="0..5", loss="cosine_mse"))
        for path in both("scored", scored, ("text1", "text2", "score"))
    ]
    assert links[0].digest == links[1].digest
    judged = [(f"a {n}", f"b {n}" if n else None, n % 2 == 0) for n in range(40)]
    _, path = both("judged", judged, ("first", "second", "same"))
    with pytest.raises(DataError, match=r"line 1 of .*judged\.parquet has an empty item"):
        prepare_links(config(path, twin="words"))


def test_triplets_of_vectors_are_named_by_row_or_by_id(tmp_path: Path) -> None:
    vectors = np.arange(36, dtype=np.float32).reshape(12, 3)
    np.save(tmp_path / "v.npy", vectors)
    rows = [(str(n), str(n + 1), str(n + 2)) for n in range(0, 12, 3)]
    path = questions.write_csv(tmp_path / "t.csv", rows, ("anchor", "positive", "negative"))
    settings = {"twin": "mlp", "items": str(tmp_path / "v.npy")}
    links = read_links(kind_of(config(path, **settings)), config(path, **settings))
    with pytest.raises(DataError, match="calibrate part would get 20% of 4 triplets"):
        prepare_links(config(path, **settings))  # four triplets are too few for three parts
    (tmp_path / "v_ids.txt").write_text("\n".join(f"n{n}" for n in range(12)))
    with pytest.raises(DataError, match=r"'0' is no vector of .*; its ids are like 'n0'"):
        prepare_links(config(path, **settings))
    assert links.form == "triplets"
    assert isinstance(links.data(vectors), TripletData)


def test_what_is_no_vector_is_refused_by_its_row(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((4, 2), np.float32))
    path = questions.write_csv(tmp_path / "t.csv", [("0", "9", "1")], ("row1", "row2", "same"))
    with pytest.raises(DataError, match=r"'9' is no vector of .* counted from 0 to 3"):
        prepare_links(config(path, twin="mlp", items=str(tmp_path / "v.npy")))


def test_a_tokenizer_learns_from_the_training_part_alone(tmp_path: Path) -> None:
    path = questions.write_csv(tmp_path / "t.csv", PAIRS, ("first", "second", "same"))
    material = prepare_links(config(path))
    assert isinstance(material.contract, TextInput)
    assert material.tokenizer is not None
    parts = {part: material.data.of_rows(getattr(material.splits, part)) for part in PARTS}
    assert sum(len(part) for part in parts.values()) == len(PAIRS)
    known = {letter for name in parts["train"].names for letter in name}
    strange = {c for name in parts["report"].names for c in name} - known
    assert strange
    assert not strange & set(json.loads(material.tokenizer)["model"]["vocab"])
    again = read_links_again(config(path), material.contract, material.tokenizer)
    assert again.digest == material.data.digest


def test_labelled_data_and_pairs_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    pairs = questions.write_csv(tmp_path / "p.csv", PAIRS, ("first", "second", "same"))
    labelled = questions.write_csv(tmp_path / "l.csv", [*questions.rows()], ("text", "label"))
    with pytest.raises(ConfigError, match="holds pairs, and this takes labelled items"):
        prepare(config(pairs))
    with pytest.raises(ConfigError, match="holds labelled items, and this takes pairs or triplets"):
        prepare_links(config(labelled))
    with pytest.raises(ConfigError, match=r"form is 'pairs' and .* is no table"):
        prepare_links(config(tmp_path, twin="conv4", form="pairs"))
    groups = {f"{part}_groups": (part,) for part in PARTS}
    with pytest.raises(ConfigError, match="holds pairs, which have none; name their parts"):
        prepare_links(config(pairs, **groups))


def test_settings_of_a_table_are_refused_where_there_is_none(tmp_path: Path) -> None:
    for key in ("items", "labels", "split_column"):
        with pytest.raises(ConfigError, match=f"{key} is set, and takes "):
            kind_of(config(tmp_path, twin="conv4", **{key: "v"}))


# ---- splits --------------------------------------------------------------------------------------


def test_components_join_what_a_chain_of_pairs_joins() -> None:
    members = np.array([[0, 1], [4, 5], [1, 2], [5, 3]])
    assert components(members, 7).tolist() == [0, 0, 0, 1, 1, 1, 2]


def random_links(seed: int = 0) -> tuple[np.ndarray, int]:
    generator = np.random.default_rng(seed)
    return generator.integers(200, size=(120, 2)), 200


def test_no_item_stands_on_two_sides_of_a_split(tmp_path: Path) -> None:
    members, items = random_links()
    splits = split_links(members, items, TrainConfig(seed=3))
    seen = [set(members[getattr(splits, part)].ravel().tolist()) for part in PARTS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    rows = np.concatenate([getattr(splits, part) for part in PARTS])
    assert sorted(rows.tolist()) == list(range(120))
    assert abs(len(splits.calibrate) - 24) <= 3
    assert splits.largest == max(np.bincount(components(members, items)[members[:, 0]]))


def test_a_split_follows_the_seed_and_survives_its_dictionary() -> None:
    members, items = random_links()
    one, same, other = (split_links(members, items, TrainConfig(seed=s)) for s in (1, 1, 2))
    assert one.to_dict() == same.to_dict() != other.to_dict()
    assert LinkSplits.from_dict(one.to_dict()).to_dict() == one.to_dict()


def test_one_component_that_holds_nearly_everything_is_refused() -> None:
    chain = np.stack([np.arange(50), np.arange(1, 51)], axis=1)
    with pytest.raises(DataError, match=r"calibrate part would get 0 of 50 .*50 pairs \(100%\)"):
        split_links(chain, 51, TrainConfig())


def test_a_split_column_divides_and_is_refused_where_items_stand_on_two_sides() -> None:
    members = np.arange(60).reshape(30, 2)
    named = ["train", "calibrate", "report"] * 10
    splits = split_links(members, 60, TrainConfig(), named)
    assert splits.by == "column"
    assert splits.report.tolist() == list(range(2, 30, 3))
    leaking = members.copy()
    leaking[1, 0] = leaking[0, 0]
    with pytest.raises(DataError, match="1 of 10 pairs of the calibrate part hold an item"):
        split_links(leaking, 60, TrainConfig(), named)
    allowed = split_links(leaking, 60, TrainConfig(allow_shared_items=True), named)
    assert allowed.shared == (1, 0)
    with pytest.raises(DataError, match="split_column gives 1 pairs to the report part"):
        split_links(members, 60, TrainConfig(), ["train", "calibrate"] * 14 + ["train", "report"])


def test_parts_that_a_column_does_not_name_are_drawn_from_the_training_rows() -> None:
    members, items = random_links()
    named = ["report" if row % 4 == 0 else "train" for row in range(120)]
    members[::4] += 200  # others than those that train
    splits = split_links(members, items + 200, TrainConfig(calibrate_fraction=0.3), named)
    assert splits.report.tolist() == list(range(0, 120, 4))
    assert abs(len(splits.calibrate) - 27) <= 2
    assert not set(members[splits.train].ravel()) & set(members[splits.calibrate].ravel())
    with pytest.raises(DataError, match="the train part would get"):
        split_links(members, items + 200, TrainConfig(), ["report"] * 120)


def test_texts_that_differ_in_case_and_blanks_alone_count_as_one() -> None:
    assert identities(("Ab  c", "ab C", "ab d", "ａb c")).tolist() == [0, 0, 1, 0]
    rows = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])
    assert identities(("x", "y", "z"), rows).tolist() == [0, 0, 1]


def test_a_table_names_parts_as_the_field_does(tmp_path: Path) -> None:
    rows = [(*row, ("train", "dev", "test")[n % 3]) for n, row in enumerate(PAIRS)]
    path = questions.write_csv(tmp_path / "t.csv", rows, ("first", "second", "same", "set"))
    splits = prepare_links(config(path, split_column="set")).splits
    assert splits.calibrate.tolist() == list(range(1, 26, 3))
    (tmp_path / "u.csv").write_text("first,second,same,set\na,b,1,later\n")
    with pytest.raises(DataError, match=r"line 2 of .*: split_column holds 'later'"):
        prepare_links(config(tmp_path / "u.csv", split_column="set"))


# ---- batches -------------------------------------------------------------------------------------


def test_a_pass_takes_every_pair_once_before_the_next_begins() -> None:
    batches = LinkBatches(data(20), size=6, seed=1)
    rows = [int(item) for step in range(10) for item in batches[step].members[:, 0] // 2]
    for start in (0, 20, 40):
        assert sorted(rows[start : start + 20]) == list(range(20))
    assert rows[:20] != rows[20:40]


def test_link_batches_depend_on_seed_and_step_alone() -> None:
    one, same, other = (LinkBatches(data(), size=6, seed=s) for s in (1, 1, 2))
    assert all(same[step].members.shape == (6, 2) for step in range(5))
    assert (one[7].members == same[7].members).all()  # whatever was drawn before
    assert (one[7].members != other[7].members).any()


def test_a_batch_loads_all_first_members_before_all_second_ones() -> None:
    batch = LinkBatches(data(), size=4)[0]
    assert batch.items.tolist() == [*batch.members[:, 0], *batch.members[:, 1]]
    assert batch.turns.tolist() == [0] * 8
    assert batch.targets is not None
    assert batch.targets.tolist() == [float(a < 16) for a in batch.members[:, 0]]


def test_a_balanced_batch_holds_as_many_of_either_kind() -> None:
    batches = LinkBatches(data(20, same=3), size=8, balanced=True)
    seen: set[int] = set()
    for step in range(20):
        batch = batches[step]
        assert batch.targets is not None
        assert batch.targets.sum() == 4
        seen |= set(batch.members[:, 0].tolist())
    assert len(seen) == 20


def test_what_cannot_be_balanced_is_refused() -> None:
    scored = dataclasses.replace(data(), targets=np.full(20, 0.5, np.float32))
    with pytest.raises(DataError, match="these are scored"):
        LinkBatches(scored, size=4, balanced=True)
    with pytest.raises(DataError, match="20 of the same and 0 of different items"):
        LinkBatches(data(20, same=20), size=4, balanced=True)
    triplets = TripletData(np.zeros((3, 1)), ("a", "b", "c"), np.array([[0, 1, 2]]))
    with pytest.raises(DataError, match="these are triplets"):
        LinkBatches(triplets, size=4, balanced=True)
    assert LinkBatches(triplets, size=4)[5].members.tolist() == [[0, 1, 2]]
    assert LinkBatches(triplets, size=4)[5].targets is None
