"""Finetuning job: validation, killed runs and failed subjects."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

import dreampose.models.subject
from cluster.capacity import one_machine
from dreampose import checkpoints, training
from dreampose.io import video
from jobs import finetune
from jobs.common import subject_table, tasks

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


@pytest.fixture
def people(tmp_path):
    """Three people in a CSV: two photos, one photo, and a photo with nobody in it."""
    Image.fromarray(np.full((64, 48, 3), 128, np.uint8)).save(tmp_path / "wall.png")
    path = tmp_path / "subjects.csv"
    path.write_text(
        f"subject,photos\nanna,{PHOTOS}/dress-*.png\nbert,{PHOTOS}/trousers.png\nwall,wall.png\n"
    )
    return path


def weights(folder: Path):
    return {
        f"{path.parent.name}.{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.ray
def test_a_killed_run_continues_and_a_failed_subject_does_not_stop_others(
    driver, capsys, people, tiny_model, tmp_path
):
    out = tmp_path / "subjects"
    steps = {"num_steps": 120, "num_vae_steps": 2}
    anna, bert, _ = subject_table.read(people)

    def plainly(person, folder):
        photos = [video.read_photo(photo) for photo in person.photos]
        list(
            training.finetune_subject(
                checkpoints.load(tiny_model), photos, folder, name=person.subject,
                accelerator=Accelerator(), **steps,
            )
        )  # fmt: skip

    plainly(anna, out / "anna")  # finished earlier
    finished = (out / "anna" / "subject.json").stat().st_mtime_ns
    flags = [
        "--model", tiny_model, "--subjects", people, "--out", out, "--steps", steps["num_steps"],
        "--vae-steps", steps["num_vae_steps"], "--checkpoint-every", 5,
    ]  # fmt: skip

    def has_checkpoint():
        return any((out / ".bert.training" / "unet" / "checkpoints").glob("step_*"))

    driver.kill_when(has_checkpoint, "finetune", *flags)
    assert not (out / "bert").exists(), "the kill came too late to show anything"
    code = driver.again("finetune", *flags)
    text, err = capsys.readouterr()
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    assert code == 1, err
    assert dict(lines[:2]) == {"anna": "done before", "bert": "done"}
    assert lines[2][0] == "wall"
    assert lines[2][1].startswith("failed: ")
    assert "nobody" in lines[2][1]

    assert (out / "anna" / "subject.json").stat().st_mtime_ns == finished
    done = sorted(path.name for path in out.iterdir() if path.name != ".rayignore")
    assert done == ["anna", "bert"], "unfinished folders are left"
    plainly(bert, tmp_path / "undisturbed")
    got, wanted = weights(out / "bert"), weights(tmp_path / "undisturbed")
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5, msg=name)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _no_ray(self, monkeypatch):
        def start(*_, **__):
            pytest.fail("Ray was started")

        monkeypatch.setattr(finetune.driver, "ray_session", start)

    def refusal(self, capsys, people, tmp_path, *flags):
        out = tmp_path / "out"
        command = ["--model", "nowhere", "--subjects", people, "--out", out, *flags]
        assert finetune.main([str(part) for part in command]) == 2
        assert not out.exists()
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("subject,photo\nanna,a.png\n", "got no photos"),
            ("subject,photos\n", "names no subject"),
            ("subject,photos\nanna,none.png\n", "line 2: photos: no such file 'none.png'"),
            ("subject,photos\nanna,\n", "line 2: no photos"),
            ("subject,photos\nanna,half.png\n", "line 2: photo: cannot decode"),
            (
                "subject,photos\n../anna,a.png\n",
                "line 2: subject '../anna' cannot be a folder's name",
            ),
        ],
    )
    def test_lists(self, capsys, tmp_path, text, said):
        Image.fromarray(np.zeros((64, 48, 3), np.uint8)).save(tmp_path / "a.png")
        whole = (PHOTOS / "skirt.png").read_bytes()
        (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "people.csv").write_text(text)
        assert said in self.refusal(capsys, tmp_path / "people.csv", tmp_path)

    def test_no_list(self, capsys, tmp_path):
        line = self.refusal(capsys, tmp_path / "none.csv", tmp_path)
        assert "subjects: no such file" in line

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ((), "model must be a folder"),
            (("--steps", -1), "steps must be at least 0, got -1"),
            (("--steps", 0, "--vae-steps", 0), "must not both be 0"),
        ],
    )
    def test_flags(self, capsys, people, tmp_path, flags, said):
        assert said in self.refusal(capsys, people, tmp_path, *flags)

    def test_existing_weights_of_other_photos(self, capsys, people, tmp_path, tiny_model):
        anna, bert, _ = subject_table.read(people)
        pipe = checkpoints.load(tiny_model)
        other = checkpoints.describe_subject(pipe, "bert", [video.read_photo(anna.photos[0])])
        checkpoints.save_subject(tmp_path / "subjects" / "bert", pipe, other)
        flags = ["--model", tiny_model, "--subjects", people, "--out", tmp_path / "subjects"]
        assert finetune.main([str(flag) for flag in flags]) == 2
        assert f"no weights of other photos of {bert.subject!r}" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (("--rank", 4), "rank and lora_targets must go with the method lora, got full"),
            (("--method", "lora", "--rank", 0), "rank must be at least 1, got 0"),
            (("--method", "lora", "--lora-targets", "to_q,to_z"), "got 'to_z'"),
            (("--method", "lora", "--steps", 0), "must not both be 0"),
        ],
    )
    def test_low_rank_flags(self, capsys, people, tmp_path, tiny_model, flags, said):
        assert said in self.refusal(capsys, people, tmp_path, *flags, "--model", tiny_model)

    def test_weights_by_another_method_in_the_way(self, capsys, people, tmp_path, tiny_model):
        _, bert, _ = subject_table.read(people)
        pipe = checkpoints.load(tiny_model)
        full = checkpoints.describe_subject(pipe, "bert", [video.read_photo(bert.photos[0])])
        checkpoints.save_subject(tmp_path / "subjects" / "bert", pipe, full)
        flags = ["--model", tiny_model, "--subjects", people, "--out", tmp_path / "subjects"]
        assert finetune.main([*map(str, flags), "--method", "lora"]) == 2
        assert "by another method than lora, got full" in capsys.readouterr().err


def test_a_line_that_is_wrong_fails_alone(people, tiny_model, tmp_path, monkeypatch, capsys):
    Image.fromarray(np.full((64, 48, 3), 128, np.uint8)).save(tmp_path / "IMG_1 [edit].png")
    (tmp_path / "half.png").write_bytes((PHOTOS / "skirt.png").read_bytes()[:500])
    lines = [
        "carl,half.png",
        "dora,IMG_1 [edit].png",
        "Anna,wall.png",
        "emil,a.png,b.png",
        "x/y,wall.png",
    ]
    with people.open("a") as file:
        file.write("\n".join(lines))
    asked = []
    monkeypatch.setattr(tasks, "run", lambda _, arguments, **__: asked.extend(arguments) or {})
    machine = contextlib.nullcontext(one_machine(cpus=2))
    monkeypatch.setattr(finetune.driver, "ray_session", lambda *_, **__: machine)
    flags = ["--model", tiny_model, "--subjects", people, "--out", tmp_path / "subjects"]
    monkeypatch.setattr(finetune, "_firsts", lambda people: {p.subject: p.subject for p in people})
    assert finetune.main([str(flag) for flag in flags]) == 1
    assert asked == ["anna", "bert", "wall", "dora"]
    states = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    states = {name: state.strip() for name, state in states.items()}
    assert states["dora"] == "done"
    assert states["carl (line 5)"].startswith("failed: line 5: photo: cannot decode")
    assert states["Anna (line 7)"] == "failed: line 7: subject 'Anna' is in line 2 already"
    assert states["emil (line 8)"].startswith("failed: line 8: 3 cells where the header has 2")
    assert "cannot be a folder's name" in states["x/y (line 9)"]


def test_people_of_the_same_photos_are_finetuned_on_once(
    people, tiny_model, tmp_path, monkeypatch, capsys
):
    same = tmp_path / "another-name.png"
    same.write_bytes((PHOTOS / "trousers.png").read_bytes())
    with people.open("a") as file:
        file.write(f"bertram,{same}\nmural,wall.png\n")
    out = tmp_path / "subjects"
    asked = []

    def run(work, arguments, **_):
        for _, person in arguments.values():
            asked.append(person.subject)
            pipe = checkpoints.load(tiny_model)
            photos = [video.read_photo(photo) for photo in person.photos]
            if person.subject != "wall":
                info = dreampose.models.subject.describe_subject(pipe, person.subject, photos)
                dreampose.models.subject.save_subject(out / person.subject, pipe, info)
        return {"wall": "nobody is in the photo"}

    def session(*_, **__):
        return contextlib.nullcontext(one_machine(cpus=2))

    monkeypatch.setattr(tasks, "run", run)
    monkeypatch.setattr(finetune.driver, "ray_session", session)
    flags = ["--model", str(tiny_model), "--subjects", str(people), "--out", str(out)]
    assert finetune.main(flags) == 1
    assert asked == ["anna", "bert", "wall"]
    assert "mural    failed: nobody is in the photo" in capsys.readouterr().out
    copied = dreampose.models.subject.read_subject(out / "bertram")
    assert copied.name == "bertram"
    assert copied.photos == dreampose.models.subject.read_subject(out / "bert").photos
    torch.testing.assert_close(weights(out / "bertram"), weights(out / "bert"), rtol=0, atol=0)

    asked.clear()
    assert finetune.main(flags) == 1
    assert asked == ["wall"], "what is there is neither trained nor copied again"
