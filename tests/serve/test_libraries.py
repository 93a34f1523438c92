"""Stored motions and subjects."""

import threading
import time

import numpy as np
import pytest

from dreampose.errors import InputError
from dreampose.io import video
from serve.service.motion_library import MotionFolder
from serve.service.store import Store, VideoFolder, write_atomically
from serve.service.subject_library import SubjectFolder
from serve.service.uploads import MotionInfo, ReceivedMotion


def upload(client, path):
    answer = client.post("/v1/motions", files={"file": path.read_bytes()})
    return answer.raise_for_status().json()


def finetune(client, *photos, name=""):
    files = [("photos", photo.read_bytes()) for photo in photos]
    return client.post("/v1/subjects", files=files, data={"name": name})


def test_motion_is_stored_once_and_used_by_id(running, motion_file, post):
    motion = upload(running.client, motion_file)
    assert (motion["object"], motion["status"]) == ("motion", "completed")
    assert (motion["num_frames"], motion["fps"], motion["seconds"]) == (10, 12.5, "0.8")
    assert upload(running.client, motion_file) == motion
    assert running.client.get("/v1/motions").json()["data"] == [motion]
    video_id = post(running.client, motion=motion_file).json()["id"]
    folder = Store(running.service.settings.storage).folder(video_id)
    assert folder.motion.read_bytes() == motion_file.read_bytes()


def test_poses_are_extracted_once_for_many_videos(running, motion_video, photo_file, finished):
    motion = upload(running.client, motion_video)
    assert motion["status"] == "queued"
    assert finished(running.client, f"/v1/motions/{motion['id']}")["status"] == "completed"
    upload(running.client, motion_video)
    photo = photo_file.read_bytes()
    for _ in range(2):
        answer = running.client.post(
            "/v1/videos", files={"input_reference": photo}, data={"motion": motion["id"]}
        )
        video_id = answer.raise_for_status().json()["id"]
        folder = Store(running.service.settings.storage).folder(video_id)
        assert folder.motion.exists()
        assert folder.upload is None
    assert len(running.backend.asked("extract")) == 1


def test_video_may_use_a_motion_before_its_extraction(running, motion_video, photo_file):
    running.backend.hold = True
    motion = upload(running.client, motion_video)
    answer = running.client.post(
        "/v1/videos",
        files={"input_reference": photo_file.read_bytes()},
        data={"motion": motion["id"]},
    )
    folder = Store(running.service.settings.storage).folder(answer.json()["id"])
    assert video.count(folder.upload) == 10
    # The video has its own copy.
    assert running.client.delete(f"/v1/motions/{motion['id']}").status_code == 200
    assert running.client.get(f"/v1/motions/{motion['id']}").status_code == 404
    assert not (running.service.motions.root / motion["id"]).exists()
    running.backend.hold = False


def test_other_frame_size_uses_the_motions_video(
    running, motion_video, motion_file, photo_file, finished
):
    def render(motion, size):
        return running.client.post(
            "/v1/videos",
            files={"input_reference": photo_file.read_bytes()},
            data={"motion": motion["id"], "size": size},
        )

    filmed, drawn = upload(running.client, motion_video), upload(running.client, motion_file)
    finished(running.client, f"/v1/motions/{filmed['id']}")
    running.backend.hold = True
    videos = Store(running.service.settings.storage)
    wide = videos.folder(render(filmed, "64x64").json()["id"])
    assert video.count(wide.upload) == 10
    smaller = videos.folder(render(drawn, "24x32").json()["id"])
    assert smaller.motion.read_bytes() == motion_file.read_bytes()
    refused = render(drawn, "64x64")
    assert refused.status_code == 400
    assert "aspect 64x64, got 64x48" in refused.json()["error"]["message"]


def test_motion_without_person_fails_with_a_message(running, motion_video, photo_file, finished):
    running.backend.broken = InputError("video must show a person, got nobody")
    motion = upload(running.client, motion_video)
    state = finished(running.client, f"/v1/motions/{motion['id']}")
    assert state["error"]["message"] == "video must show a person, got nobody"
    answer = running.client.post(
        "/v1/videos",
        files={"input_reference": photo_file.read_bytes()},
        data={"motion": motion["id"]},
    )
    assert answer.status_code == 400
    assert "video must show a person" in answer.json()["error"]["message"]
    running.backend.broken = None
    upload(running.client, motion_video)
    assert finished(running.client, f"/v1/motions/{motion['id']}")["status"] == "completed"


def test_slow_extraction_times_out(make_service, motion_video, finished):
    running = make_service(render_timeout_s=0.05)
    running.backend.hold = True
    motion = upload(running.client, motion_video)
    state = finished(running.client, f"/v1/motions/{motion['id']}")
    assert (state["status"], state["error"]["code"]) == ("failed", "timed_out")
    assert state["error"]["message"] == "the work took longer than the limit of 0.05 s"


def test_concurrent_upload_does_not_undo_a_finished_extraction(
    running, motion_video, finished, monkeypatch
):
    running.backend.hold = True
    motion = upload(running.client, motion_video)
    record = MotionFolder.record

    def slow_record(folder):
        found = record(folder)
        running.backend.hold = False
        time.sleep(0.5)
        return found

    service = running.service.motions
    received = ReceivedMotion(
        path=service.folder(motion["id"]).upload,
        info=MotionInfo(suffix=".mp4", num_frames=10, fps=12.5),
    )
    with monkeypatch.context() as patch:
        patch.setattr(MotionFolder, "record", slow_record)
        running.client.portal.call(service.add, "another", received)
    state = finished(running.client, f"/v1/motions/{motion['id']}")
    assert state["status"] == "completed"
    assert service.find(motion["id"], "another").record().owners[1:] == ["another"]


def crash(running):
    """Ends a replica's heartbeats, so that others may take its work over."""
    for queue in (running.service.motions, running.service.subjects):
        running.client.portal.call(queue._heart.cancel)
        queue.leases.stop()


def test_work_of_a_live_replica_is_not_taken_over(make_service, motion_video, eventually):
    first = make_service()
    first.backend.hold = True
    motion = upload(first.client, motion_video)
    eventually(lambda: first.backend.calls)
    second = make_service(ingress_replicas=2)
    second.client.portal.call(second.service.motions.resume)
    eventually(lambda: not second.service.motions.tasks)
    assert second.backend.calls == []
    assert second.client.get(f"/v1/motions/{motion['id']}").json()["status"] == "in_progress"
    crash(first)
    second.client.portal.call(second.service.motions.resume)
    eventually(lambda: second.backend.asked("extract"))


def test_unfinished_motions_and_subjects_are_resumed(
    make_service, motion_video, photo_file, finished, eventually
):
    first = make_service()
    first.backend.hold = True
    motion = upload(first.client, motion_video)
    subject = finetune(first.client, photo_file).json()
    eventually(lambda: len(first.backend.calls) == 2)
    crash(first)
    second = make_service()
    assert finished(second.client, f"/v1/motions/{motion['id']}")["status"] == "completed"
    assert finished(second.client, f"/v1/subjects/{subject['id']}")["status"] == "completed"


def test_unreadable_records_do_not_block_others(
    make_service, motion_file, motion_video, photo_file, finished, eventually
):
    first = make_service()
    kept = upload(first.client, motion_file)
    finetuned = finetune(first.client, photo_file, photo_file).json()
    finished(first.client, f"/v1/subjects/{finetuned['id']}")
    first.backend.hold = True
    motion, subject = upload(first.client, motion_video), finetune(first.client, photo_file).json()
    torn = [
        first.service.motions.root / kept["id"] / "motion.json",
        first.service.subjects.root / finetuned["id"] / "job.json",
    ]
    for path in torn:
        path.write_bytes(b"")
    eventually(lambda: len(first.backend.calls) == 3)
    crash(first)
    second = make_service(keep_hours=1e-9)
    assert finished(second.client, f"/v1/motions/{motion['id']}")["status"] == "completed"
    assert finished(second.client, f"/v1/subjects/{subject['id']}")["status"] == "completed"
    for kind, own in (("motions", motion), ("subjects", subject)):
        listed = second.client.get(f"/v1/{kind}").json()["data"]
        assert [item["id"] for item in listed] == [own["id"]]
    second.client.portal.call(second.service.motions.sweep)
    assert torn[0].parent.is_dir(), "somebody uploaded it for keeping"


def test_waiting_motions_are_limited(make_service, motion_video, tmp_path, finished, eventually):
    """Two are extracted at a time; the timeout counts from the start of each."""
    running = make_service(motions_waiting=1)
    running.backend.hold = True

    def film(number):
        path = tmp_path / f"{number}.mp4"
        video.write(path, np.full((10, 64, 48, 3), 40 * number, np.uint8), 12.5)
        return path

    known = [upload(running.client, film(number)) for number in range(3)]
    eventually(lambda: len(running.backend.asked("extract")) == 2)
    refused = running.client.post("/v1/motions", files={"file": film(3).read_bytes()})
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) > 0
    assert "waiting for pose extraction" in refused.json()["error"]["message"]
    assert upload(running.client, film(2))["id"] == known[2]["id"]
    assert len(running.backend.asked("extract")) == 2
    running.backend.hold = False
    for motion in known:
        assert finished(running.client, f"/v1/motions/{motion['id']}")["status"] == "completed"
    upload(running.client, film(3))


def test_cached_poses_expire(make_service, motion_video, motion_file, finished):
    running = make_service(keep_hours=1e-9)
    kept = upload(running.client, motion_file)
    root = running.service.motions.root
    passing = root / ("motion_" + "0" * 32)
    passing.mkdir()
    running.client.portal.call(running.service.motions.sweep)
    assert not passing.exists()
    assert running.client.get(f"/v1/motions/{kept['id']}").status_code == 200


def test_base_model_is_used_until_the_subject_is_finetuned(
    running, photo_file, post, finished, eventually
):
    running.backend.hold = True
    subject = finetune(running.client, photo_file, name="Anna").json()
    assert (subject["object"], subject["name"], subject["num_photos"]) == ("subject", "Anna", 1)
    path = f"/v1/subjects/{subject['id']}"
    eventually(lambda: running.client.get(path).json()["progress"] == 50)
    early = post(running.client, subject=subject["id"]).json()
    assert early["subject"] == ""
    assert "still being finetuned (50%): rendered with the base model" in early["warnings"][0]
    running.backend.hold = False
    assert finished(running.client, path)["progress"] == 100
    late = post(running.client, subject=subject["id"]).json()
    assert (late["subject"], late["warnings"]) == (subject["id"], [])
    # What was asked for early stays with the base model, whenever it is rendered.
    folder = Store(running.service.settings.storage).folder(early["id"])
    assert folder.request().subject == ""


def test_same_photos_are_finetuned_once(running, photo_file, finished):
    subject = finetune(running.client, photo_file).json()
    finished(running.client, f"/v1/subjects/{subject['id']}")
    assert finetune(running.client, photo_file).json()["id"] == subject["id"]
    assert running.backend.asked("finetune") == [subject["id"]]
    assert finetune(running.client, photo_file, photo_file).json()["id"] != subject["id"]
    listed = running.client.get("/v1/subjects").json()["data"]
    assert {item["id"] for item in listed} >= {subject["id"]}


def test_failed_finetuning_is_reported_and_can_be_retried(running, photo_file, post, finished):
    running.backend.broken = InputError("photo must show a person, got nobody")
    subject = finetune(running.client, photo_file).json()
    path = f"/v1/subjects/{subject['id']}"
    assert finished(running.client, path)["error"]["code"] == "invalid_input"
    answer = post(running.client, subject=subject["id"])
    assert answer.status_code == 400
    assert "no weights: photo must show a person" in answer.json()["error"]["message"]
    running.backend.broken = None
    finetune(running.client, photo_file)
    assert finished(running.client, path)["status"] == "completed"


def test_waiting_subjects_are_limited(make_service, photo_file):
    running = make_service(subjects_waiting=1)
    running.backend.hold = True
    answers = [finetune(running.client, *[photo_file] * count) for count in (1, 2, 3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert len(running.backend.asked("finetune")) <= 1


def test_deleting_a_subject_removes_photos_and_weights(running, photo_file, post, finished):
    subject = finetune(running.client, photo_file).json()
    path = f"/v1/subjects/{subject['id']}"
    finished(running.client, path)
    running.backend.hold = True
    video_id = post(running.client, subject=subject["id"]).json()["id"]
    refused = running.client.delete(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    running.backend.hold = False
    finished(running.client, f"/v1/videos/{video_id}")
    assert running.client.delete(path).json()["deleted"] is True
    root = running.service.subjects.root
    left = [file for file in root.parent.rglob("*") if file.is_file()]
    assert [file for file in left if file.parent.name != ".workers"] == []
    assert post(running.client, subject=subject["id"]).status_code == 400


def test_finished_video_does_not_block_deletion_of_its_subject(
    running, photo_file, post, finished, monkeypatch
):
    """Even before the queue has written its expiry."""
    subject = finetune(running.client, photo_file).json()
    finished(running.client, f"/v1/subjects/{subject['id']}")
    may_end, update = threading.Event(), VideoFolder.update

    def slow(folder, **changes):
        if "expires_at" in changes:
            may_end.wait(60)
        return update(folder, **changes)

    monkeypatch.setattr(VideoFolder, "update", slow)
    video_id = post(running.client, subject=subject["id"]).json()["id"]
    finished(running.client, f"/v1/videos/{video_id}")
    assert video_id in running.service.videos.tasks
    assert running.client.delete(f"/v1/subjects/{subject['id']}").status_code == 200
    may_end.set()


def test_subject_can_be_deleted_during_finetuning(running, photo_file, eventually):
    running.backend.hold = True
    subject = finetune(running.client, photo_file).json()
    eventually(lambda: running.backend.asked("finetune"))
    assert running.client.delete(f"/v1/subjects/{subject['id']}").status_code == 200
    assert running.client.get("/v1/subjects").json()["data"] == []
    assert not (running.service.subjects.root / subject["id"]).exists()


def test_operator_provided_weights_are_shared(running, post):
    folder = running.service.subjects.root.parent / "anna"
    folder.mkdir(parents=True)
    (folder / "subject.json").write_text("{}")
    assert post(running.client, subject="anna").json()["subject"] == "anna"


def test_without_a_subject_folder_subjects_are_disabled(make_service, photo_file, post):
    running = make_service(subjects="")
    assert finetune(running.client, photo_file).status_code == 409
    assert running.client.get("/v1/subjects").json()["data"] == []
    assert post(running.client, subject="anna").status_code == 400


@pytest.mark.parametrize("name", ["x" * 101])
def test_subject_name_length_is_limited(running, photo_file, name):
    assert finetune(running.client, photo_file, name=name).status_code == 400


def test_partial_files_are_not_subject_photos(tmp_path):
    job = SubjectFolder(tmp_path / "anna")
    for name in ("0.img", "1.img", ".1.img.17347.21af3eab.part"):
        write_atomically(job.path / "photos" / name, name.encode())
    assert [photo.name for photo in job.photos] == ["0.img", "1.img"]
