"""Distributed training against training on one rank."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dreampose.config import Recipe
from tests.training.ranks import drawn, killed_run, run_ranks, spread_run, train_base, two_runs

# Ranks add gradients up in another order; a large `eps` keeps AdamW from blowing the rounding of
# gradients near zero up to whole steps of the learning rate.
EPS = 1e-3
LOSS_TOLERANCE = {"rel": 1e-5}
WEIGHT_TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}

NUM_ITEMS = 15


def settings(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    """Two epochs in global batches of 4, the last of 3."""
    values = recipe.to_dict()
    values["base_stage"] |= {
        "num_steps": 0, "num_epochs": 2, "batch_size": 2, "ema_decay": 0.5, "eps": EPS,
        "last_batch": "short",
    } | changes  # fmt: skip
    return values


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value
        for part in ("unet", "adapter", "image_encoder")
        for file in (out / "model" / part).glob("*.safetensors")
        for name, value in load_file(file).items()
    }


def assert_alike(got: list[list[float | None]], expected: list[list[float | None]]) -> None:
    """Losses, gradient norms and validation losses of two runs."""
    assert len(got) == len(expected)
    for step, wanted in zip(got, expected, strict=True):
        for value, right in zip(step, wanted, strict=True):
            assert value == (right if right is None else pytest.approx(right, **LOSS_TOLERANCE))


def assert_same(out: Path, expected: Path) -> None:
    got, wanted = weights(out), weights(expected)
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], **WEIGHT_TOLERANCE, msg=name)


@pytest.fixture(scope="module")
def alone(tiny_recipe, tiny_data, tmp_path_factory):
    """The same training on one rank, which takes two turns where two ranks take one."""
    folder = tmp_path_factory.mktemp("alone")
    small = settings(tiny_recipe, gradient_accumulation=2)
    losses = train_base(
        folder, small, tiny_data, validation=tiny_data, validate_every=2, checkpoint_every=4
    )
    return folder, losses


@pytest.mark.slow
class TestTwoRanks:
    def test_several_ranks_equal_one(self, alone, tiny_recipe, tiny_data, tmp_path) -> None:
        folder, expected = alone
        # A global batch of 14 leaves one sample for the second step, and a rank without any.
        large = settings(tiny_recipe, batch_size=7, num_epochs=1)
        small = settings(tiny_recipe)
        ranks = run_ranks(two_runs, tmp_path, tmp_path, small, large, tiny_data)
        assert ranks[0] == ranks[1]
        got, of_large = ranks[0]
        assert len(got) == 8
        assert_alike(got, expected)
        assert_same(tmp_path / "small", folder)
        for epoch in (slice(0, 4), slice(4, 8)):
            turns = [turn for rank in (0, 1) for turn in drawn(tmp_path / "small", rank)[epoch]]
            assert sorted(item for turn in turns for item in turn) == list(range(NUM_ITEMS))
        large["base_stage"] |= {"gradient_accumulation": 2}
        wanted = train_base(tmp_path / "alone", large, tiny_data)
        assert_alike(of_large, wanted)
        assert_same(tmp_path / "large", tmp_path / "alone")

    def test_one_continues_when_the_other_was_killed_and_each_sample_counts_once(
        self, alone, tiny_recipe, tiny_data, tmp_path
    ) -> None:
        out = tmp_path / "run"
        ranks = run_ranks(killed_run, tmp_path, out, settings(tiny_recipe), tiny_data)
        assert ranks == [None, None], "the other rank ends as well"
        # Two steps were kept; what was drawn after them counts for nothing.
        counted = [item for rank in (0, 1) for turn in drawn(out, rank)[:2] for item in turn]
        assert len(counted) == 8
        (out / "drawn.0.jsonl").unlink()
        train_base(out, settings(tiny_recipe, gradient_accumulation=2), tiny_data)
        turns = drawn(out, 0)
        counted += [item for turn in turns[:4] for item in turn]
        assert sorted(counted) == list(range(NUM_ITEMS))
        assert_same(out, alone[0])

    def test_sharded_weights_are_trained_saved_and_resumed_like_full_ones(
        self, alone, tiny_recipe, tiny_data, tmp_path
    ) -> None:
        folder, expected = alone
        ranks = run_ranks(
            spread_run, tmp_path, tmp_path / "parts", settings(tiny_recipe), tiny_data
        )
        assert ranks[0] is not None, (tmp_path / "rank0.txt").read_text()
        assert ranks[0] == ranks[1]
        assert_alike(ranks[0], expected[:4])
        middle = Path("checkpoints", "step_00000004")
        assert_same(tmp_path / "parts" / middle, folder / middle)
