"""`make test-full` with a handful of channels: its steps run, and say what they found."""

from benchmarks import full_size, memory
from dreampose import recipes
from dreampose.config import replace


def test_every_step_of_the_full_size_test_runs(tmp_path):
    small = replace(recipes.sd14(), height=64, width=64)
    # Few channels leave a low rank a larger share.
    recipe = replace(recipes.shrink(small, 40), lora_rank=1)
    said = {name: step(tmp_path, recipe) for name, step in full_size.STEPS.items()}
    assert "unet" in said["load"]
    assert "loss" in said["train"]
    assert "2 calls of 3 branches" in said["render"]
    assert "% of the UNet" in said["low-rank"]
    assert "image range (0.0, 1.0)" in said["import"]


def test_the_table_is_put_between_its_marks(tmp_path):
    page = tmp_path / "memory.md"
    page.write_text(f"# A\n{memory.BEGIN}\nold\n{memory.END}\nB\n")
    memory.write(page, ["| new |"])
    assert page.read_text() == f"# A\n{memory.BEGIN}\n\n| new |\n\n{memory.END}\nB\n"
