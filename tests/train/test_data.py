"""Reading, splitting and drawing batches, with every way in which a folder can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.train import drawings
from twinserve.errors import DataError
from twinserve.manifest import ImageInput
from twinserve.train.config import TrainConfig
from twinserve.train.data import Batches, Labelled, Splits, group_of, split
from twinserve.train.readers import load_images

CONTRACT = ImageInput(height=28, width=28, channels=1, color_order="L")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    folder = drawings.write_folder(tmp_path_factory.mktemp("data"), drawings.files())
    return load_images(folder, CONTRACT)


def batches(images: Labelled, seed: int = 0, **settings: object) -> Batches:
    return Batches(
        images,
        **{"classes_per_batch": 5, "items_per_class": 3, "seed": seed, **settings},  # type: ignore[arg-type]
    )


def test_a_folder_and_its_zip_read_alike(images: Labelled, tmp_path: Path) -> None:
    packed = drawings.write_zip(tmp_path / "set.zip", drawings.files(), top="some/top/")
    zipped = load_images(packed, CONTRACT)
    assert np.asarray(images.rows).shape == (108, 28, 28, 1)
    assert images.class_names[7] == "alphabet1/letter01"
    assert images.group_names == ("alphabet0", "alphabet1", "alphabet2")
    assert zipped.digest == images.digest


def test_a_plain_folder_has_classes_and_one_nameless_group(tmp_path: Path) -> None:
    content = {f"{n}/{i}.png": drawings.draw(c, i) for c, n in enumerate("abc") for i in range(2)}
    content |= {".hidden/1.png": b"x", "__MACOSX/a/1.png": b"x", "a/notes.txt": b"x"}
    images = load_images(drawings.write_folder(tmp_path, content), CONTRACT)
    assert images.class_names == ("a", "b", "c")
    assert images.group_names == ("",)
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_another_pixel_gives_another_digest(images: Labelled) -> None:
    pixels = np.array(images.rows)
    pixels[5, 3, 3, 0] ^= 1
    changed = Labelled(pixels, images.labels, images.class_names, images.names)
    assert changed.digest != images.digest


def test_broken_images_are_named_and_left_out_up_to_the_limit(tmp_path: Path) -> None:
    content = {f"{n}/{i}.png": drawings.draw(1, i) for n in "ab" for i in range(3)}
    content["a/1.png"] = content["a/1.png"][:60]
    folder = drawings.write_folder(tmp_path, content)
    with pytest.raises(DataError, match=r"a/1\.png.*cannot be decoded"):
        load_images(folder, CONTRACT)
    assert len(load_images(folder, CONTRACT, max_broken_images=1)) == 5


def test_what_is_no_data_set_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_images(tmp_path / "none", CONTRACT)
    with pytest.raises(DataError, match="holds no images"):
        load_images(tmp_path, CONTRACT)
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="cannot be read as a zip"):
        load_images(tmp_path / "bad.zip", CONTRACT)
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "1.png").write_bytes(drawings.draw(0, 0))
    (tmp_path / "loose" / "a").mkdir()
    (tmp_path / "loose" / "a" / "1.png").write_bytes(drawings.draw(0, 1))
    with pytest.raises(DataError, match=r"1\.png.*no class folder"):
        load_images(tmp_path / "loose", CONTRACT)


def test_a_split_by_groups_keeps_alphabets_whole(images: Labelled) -> None:
    splits = split(
        images,
        TrainConfig(
            train_groups=("alphabet2",),
            calibrate_groups=("alphabet0",),
            report_groups=("alphabet1",),
        ),
    )
    assert {group_of(name) for name in splits.train} == {"alphabet2"}
    assert {group_of(name) for name in splits.calibrate} == {"alphabet0"}
    assert len(splits.report) == 6


def test_a_split_by_fractions_covers_all_classes_once_and_follows_the_seed(
    images: Labelled,
) -> None:
    splits = split(images, TrainConfig(seed=1))
    assert [len(p) for p in (splits.train, splits.calibrate, splits.report)] == [10, 4, 4]
    together = (*splits.train, *splits.calibrate, *splits.report)
    assert sorted(together) == list(images.class_names)
    assert split(images, TrainConfig(seed=1)) == splits
    assert split(images, TrainConfig(seed=2)) != splits
    assert Splits.from_dict(splits.to_dict()) == splits


def test_over_all_folds_every_class_reports_once_and_calibrates_at_most_once(
    images: Labelled,
) -> None:
    found = [
        split(images, TrainConfig(folds=4, fold=fold, calibrate_fraction=0.2, seed=1))
        for fold in (1, 2, 3, 4)
    ]
    every = sorted(images.class_names)
    for one in found:
        assert sorted(one.train + one.calibrate + one.report) == every
        assert len(one.calibrate) == round(0.2 * len(every))
        assert len(one.report) in (len(every) // 4, len(every) // 4 + 1)
    assert sorted(name for one in found for name in one.report) == every
    calibrating = [name for one in found for name in one.calibrate]
    assert len(calibrating) == len(set(calibrating))
    assert split(images, TrainConfig(folds=4, fold=1, seed=2)) != found[0]


def test_a_split_that_cannot_be_is_refused(images: Labelled, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"names 'Greek'.*'alphabet0'"):
        split(
            images,
            TrainConfig(
                train_groups=("Greek",),
                calibrate_groups=("alphabet0",),
                report_groups=("alphabet1",),
            ),
        )
    with pytest.raises(DataError, match=r"calibrate part .* has 1 of 18 classes"):
        split(images, TrainConfig(calibrate_fraction=0.05))
    content = drawings.files(groups=1, classes=10, items=2)
    del content["alphabet0/letter04/01.png"]
    lonely = load_images(drawings.write_folder(tmp_path, content), CONTRACT)
    with pytest.raises(DataError, match="'letter04' has a single item"):
        split(lonely, TrainConfig())


def test_a_batch_holds_p_classes_of_k_different_items(images: Labelled) -> None:
    for step in range(20):
        batch = batches(images)[step]
        labels, counts = np.unique(batch.labels, return_counts=True)
        assert len(labels) == 5
        assert (counts == 3).all()
        assert len(np.unique(batch.items)) == 15
        assert (images.labels[batch.items] == batch.labels).all()
        assert not batch.turns.any()


def test_batches_depend_on_seed_and_step_alone(images: Labelled) -> None:
    one, same, other = batches(images, 1), batches(images, 1), batches(images, 2)
    assert (one[7].items == same[7].items).all()  # whatever was drawn before
    assert (one[7].items != one[8].items).any()
    assert (one[7].items != other[7].items).any()


def test_a_turned_class_is_a_class_of_its_own_owned_by_the_same_character(
    images: Labelled,
) -> None:
    seen = set()
    for step in range(150):
        batch = batches(images, rotations=True)[step]
        assert (batch.labels == images.labels[batch.items] * 4 + batch.turns).all()
        seen |= set(batch.labels.tolist())
    assert seen == set(range(18 * 4))
    assert batches(images, rotations=True).classes == 18 * 4
    assert batches(images).classes == 18


def test_the_share_of_batches_from_one_group_is_as_asked(images: Labelled) -> None:
    drawn = batches(images, one_group_share=0.5)
    single = [len(np.unique(images.groups[drawn[step].items])) == 1 for step in range(400)]
    assert 0.42 < np.mean(single) < 0.6  # five of eighteen classes are rarely one group by chance
    assert all(
        len(np.unique(images.groups[batches(images, one_group_share=1.0)[step].items])) == 1
        for step in range(20)
    )


def test_a_group_turned_alike_is_filled_up_with_turned_classes_of_others(images: Labelled) -> None:
    settings = {"rotations": True, "one_group_share": 1.0, "classes_per_batch": 9}
    drawn = batches(images, turns_groups=True, **settings)  # type: ignore[arg-type]
    seen = set()
    for step in range(60):
        batch = drawn[step]
        groups = images.groups[batch.items]
        assert len(np.unique(batch.labels)) == 9
        assert (batch.labels == images.labels[batch.items] * 4 + batch.turns).all()
        whole = groups == groups[0]
        assert len(np.unique(batch.turns[whole])) == 1
        assert len(np.unique(images.labels[batch.items[whole]])) == 6  # all that the group has
        seen.add((int(groups[0]), int(batch.turns[0])))
    assert len(seen) == 3 * 4


def test_turned_groups_change_nothing_in_batches_of_all_classes(images: Labelled) -> None:
    plain = batches(images, rotations=True, one_group_share=0.0)
    turned = batches(images, rotations=True, one_group_share=0.0, turns_groups=True)
    for step in range(3):
        assert (plain[step].items == turned[step].items).all()
        assert (plain[step].turns == turned[step].turns).all()


def test_small_classes_and_few_classes_still_fill_a_batch(images: Labelled) -> None:
    batch = batches(images, classes_per_batch=50, items_per_class=8)[0]
    labels, counts = np.unique(batch.labels, return_counts=True)
    assert len(labels) == 18
    assert (counts == 8).all()
    for label in labels:
        assert len(np.unique(batch.items[batch.labels == label])) == 6  # every item once at least


def test_no_class_and_no_turn_of_it_leaks_into_another_part(images: Labelled) -> None:
    splits = split(images, TrainConfig())
    training = images.of_classes(splits.train)
    held_out = {*splits.calibrate, *splits.report}
    drawn = batches(training, rotations=True)
    for step in range(40):
        batch = drawn[step]
        for item, label in zip(batch.items.tolist(), batch.labels.tolist(), strict=True):
            owner = training.class_names[label // 4]
            assert training.names[item].startswith(owner + "/")
            assert owner not in held_out


def test_of_classes_relabels_in_the_order_given(images: Labelled) -> None:
    part = images.of_classes(("alphabet1/letter02", "alphabet0/letter05"))
    assert len(part) == 12
    for label, name in zip(part.labels.tolist(), part.names, strict=True):
        assert name.startswith(part.class_names[label])
    with pytest.raises(DataError, match="'nobody'"):
        images.of_classes(("nobody",))
