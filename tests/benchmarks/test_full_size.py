"""Steps of the full-size test with few channels."""

from benchmarks import full_size, memory
from dreampose import recipes
from dreampose.config import replace


def test_all_steps_run_with_few_channels(tmp_path):
    small = replace(recipes.sd14(), height=64, width=64)
    # With few channels, the LoRA weights are a larger share of the parameters.
    recipe = replace(recipes.shrink(small, 40), lora_rank=1)
    said = {name: step(tmp_path, recipe) for name, step in full_size.STEPS.items()}
    assert "unet" in said["load"]
    assert "loss" in said["train"]
    assert "2 calls of 3 branches" in said["render"]
    assert "% of the UNet" in said["low-rank"]
    assert "image range (-1.0, 1.0)" in said["import"]


def test_memory_table_replaces_the_text_between_its_marks(tmp_path):
    page = tmp_path / "memory.md"
    page.write_text(f"# A\n{memory.BEGIN}\nold\n{memory.END}\nB\n")
    memory.write(page, ["| new |"])
    assert page.read_text() == f"# A\n{memory.BEGIN}\n\n| new |\n\n{memory.END}\nB\n"
