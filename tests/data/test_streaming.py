"""Data larger than the cache: bounded memory, every item once, exact resume."""

import itertools

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dreampose import data, poses, training
from dreampose.config import replace
from dreampose.data import Dataset, windows
from dreampose.data.streaming import StreamedDataset, data_bytes, open_dataset
from dreampose.errors import InputError
from dreampose.training import stage as stages
from dreampose.training import trainer
from dreampose.types import Clip

NUM_CLIPS = 40
COLUMNS = ("frames", "poses")


@pytest.fixture(scope="session")
def folder(tiny_recipe, tmp_path_factory):
    """Forty clips of 5 to 8 frames, a file each."""
    target = tmp_path_factory.mktemp("streamed") / "data"
    random = np.random.default_rng(0)
    for number in range(NUM_CLIPS):
        length = 5 + number % 4
        frames = random.integers(0, 256, (length, 64, 48, 3), dtype=np.uint8)
        maps = np.zeros((length, tiny_recipe.pose_channels, 64, 48), np.float32)
        maps[:, :, 10:50, 10:30] = 0.5
        motion = poses.Motion(
            maps=maps,
            joints=np.zeros((length, 3, 4), np.float32),
            confidence=np.ones(length, np.float32),
            fps=10.0,
        )
        row = data.encode_clip(
            Clip(frames=frames, fps=10.0, source="made"), motion, recipe=tiny_recipe, seed=0,
            clip_id=f"{number:03d}", subject=f"s{number}",
        )  # fmt: skip
        data.write_rows(target / "clips" / f"{number}.parquet", [row])
    return target


@pytest.fixture
def read(folder, tiny_recipe):
    def make(memory_limit, columns=COLUMNS):
        return StreamedDataset(
            folder, recipe=tiny_recipe, columns=columns, memory_limit=memory_limit
        )

    return make


def test_arrays_and_facts_are_those_of_the_data_set_in_memory(folder, tiny_recipe, read):
    whole = Dataset(folder, recipe=tiny_recipe, columns=COLUMNS)
    streamed = read(200_000)
    np.testing.assert_array_equal(streamed.targets, whole.targets)
    np.testing.assert_array_equal(streamed.buckets, whole.buckets)
    assert streamed.subjects == whole.subjects
    for clip, name in itertools.product((0, 39, 17, 0), COLUMNS):
        np.testing.assert_array_equal(streamed.array(clip, name), whole.array(clip, name))
        assert streamed.shape(clip, name) == whole.shape(clip, name)


def test_the_reader_is_chosen_by_size(folder, tiny_recipe):
    size = data_bytes(folder, COLUMNS)
    chosen = [
        open_dataset(folder, recipe=tiny_recipe, columns=COLUMNS, cache_bytes=limit).streamed
        for limit in (size, size - 1)
    ]
    assert chosen == [False, True]


def test_a_clip_that_does_not_fit_is_refused(read):
    with pytest.raises(InputError, match=r"data cache must hold 1 clips of .* MB, got 0.0 MB"):
        read(1000)


def epoch_of(dataset, **changed):
    options = {"seed": 3, "epoch": 0, "batch_size": 2, "num_lanes": 2, "shuffle_clips": 1}
    return windows.plan_streamed_epoch(
        dataset.buckets, dataset.targets[:, 0], **(options | changed)
    )


def steps_of(epoch, count):
    """Items of each step."""
    offset, steps = 0, []
    while offset < len(epoch.order):
        steps.append(epoch.items(offset, count))
        offset += len(steps[-1])
    return steps


@pytest.mark.parametrize("num_lanes", [1, 2, 3])
def test_an_epoch_has_every_item_once_and_another_order_each_time(read, num_lanes):
    dataset = read(10**7)
    first, second = (epoch_of(dataset, num_lanes=num_lanes, epoch=epoch) for epoch in (0, 1))
    assert sorted(first.order) == sorted(second.order) == list(range(len(dataset)))
    assert (first.order != second.order).any()
    np.testing.assert_array_equal(first.order, epoch_of(dataset, num_lanes=num_lanes).order)
    sizes = [len(step) for step in steps_of(first, 2 * num_lanes)]
    assert set(sizes[:-10]) == {2 * num_lanes}, "lanes run out at the end only"


def test_batches_have_frames_of_one_size():
    buckets = np.repeat([0, 1, 0, 1], [30, 20, 10, 5])
    clips = np.repeat(np.arange(13), 5)
    epoch = windows.plan_streamed_epoch(
        buckets, clips, seed=0, epoch=0, batch_size=4, num_lanes=2, shuffle_clips=2
    )
    assert sorted(epoch.order) == list(range(65))
    assert all(len(set(buckets[step])) == 1 for step in steps_of(epoch, 8))


def test_data_of_twenty_times_the_memory_are_read_within_it_by_two_ranks(folder, read):
    """Each rank computes every other batch and reads about half of the clips."""
    size = data_bytes(folder, COLUMNS)
    ranks = [read(size // 20) for _ in range(2)]
    seen: list[int] = []
    for step in steps_of(epoch_of(ranks[0]), 4):
        for index, batch in enumerate(windows.split_batches(step, 2)):
            rank = ranks[index % 2]
            for item in batch:
                clip, frame = rank.targets[item].tolist()
                rank.array(clip, "frames")[frame]
            seen += batch.tolist()
    assert sorted(seen) == list(range(len(ranks[0])))
    for rank in ranks:
        assert rank.peak_bytes <= size // 20
        assert rank.num_reads <= 0.65 * NUM_CLIPS


def weights(model):
    return load_file(model / "vae" / "diffusion_pytorch_model.safetensors")


def test_a_stopped_run_goes_on_with_the_exact_order(folder, tiny_recipe, tmp_path, monkeypatch):
    """As an undisturbed one, item by item, although the data do not fit into the cache."""
    monkeypatch.setattr(trainer, "SHUFFLE_CLIPS", 1)
    monkeypatch.setattr(training, "SHUFFLE_CLIPS", 1)
    drawn: list[list[int]] = []
    draw = training.vae_stage.VaeStage.draw

    def record(self, split, items, generator):
        drawn.append(items.tolist())
        return draw(self, split, items, generator)

    monkeypatch.setattr(training.vae_stage.VaeStage, "draw", record)
    assert issubclass(training.vae_stage.VaeStage, stages.Stage)
    recipe = replace(tiny_recipe, vae_stage=replace(tiny_recipe.vae_stage, batch_size=4))
    cache = data_bytes(folder, COLUMNS) // 8

    def run(out, stop_after=None):
        drawn.clear()
        reports = []
        for report in training.train(
            "vae", recipe=recipe, data=folder, out=out, accelerator=Accelerator(), max_steps=12,
            seed=3, data_cache=cache, checkpoint_every=5,
            stop=lambda: stop_after is not None and len(reports) + 1 >= stop_after,
        ):  # fmt: skip
            reports.append(report)
        return [list(items) for items in drawn], reports

    whole, reports = run(tmp_path / "whole")
    first, _ = run(tmp_path / "run", stop_after=7)
    second, last = run(tmp_path / "run")
    assert reports[-1].step == last[-1].step == 12
    assert len(first) < len(whole)
    assert [*first, *second] == whole
    got, wanted = weights(tmp_path / "run" / "model"), weights(tmp_path / "whole" / "model")
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=0, msg=name)
