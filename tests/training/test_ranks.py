"""Two ranks share an epoch, agree on every number, and leave one model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WORKER = """
import json, sys
from accelerate import Accelerator
from dreampose import training
from dreampose.config import Recipe
from dreampose.training import denoising

data, out, recipe = sys.argv[1:]
seen = []
draw = denoising.BaseStage.draw

def spy(stage, split, items, generator):
    if split == "train":
        seen.extend(items.tolist())
    return draw(stage, split, items, generator)

denoising.BaseStage.draw = spy
accelerator = Accelerator(cpu=True)
reports = list(training.train(
    "base", recipe=Recipe.from_dict(json.loads(open(recipe).read())), data=data, validation=data,
    out=out, accelerator=accelerator, validate_every=2,
))
losses = [[report.loss, report.validation_loss] for report in reports]
facts = {"seen": seen, "losses": losses, "checkpoints": [str(r.checkpoint) for r in reports]}
with open(f"{out}/rank{accelerator.process_index}.json", "w") as file:
    json.dump(facts, file)
"""


@pytest.mark.slow
def test_two_ranks_share_the_epoch_and_agree(tiny_recipe, tiny_data, tmp_path) -> None:
    values = tiny_recipe.to_dict()
    values["base_stage"] |= {"num_steps": 0, "num_epochs": 1, "batch_size": 2, "ema_decay": 0.5}
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    (tmp_path / "worker.py").write_text(WORKER)
    out = tmp_path / "out"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         str(tmp_path / "worker.py"), str(tiny_data), str(out),
         str(tmp_path / "recipe.json")],
        check=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
             "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]
    # 15 frames in global batches of 4: four steps, the last filled up by one.
    assert [len(rank["losses"]) for rank in ranks] == [4, 4]
    assert ranks[0]["losses"] == ranks[1]["losses"]
    seen = sorted(ranks[0]["seen"] + ranks[1]["seen"])
    assert len(seen) == 16
    assert sorted(set(seen)) == list(range(15))
    assert ranks[0]["checkpoints"][-1].endswith("step_00000004")
    assert ranks[1]["checkpoints"] == ["None"] * 4
    assert (out / "model" / "model_index.json").is_file()
