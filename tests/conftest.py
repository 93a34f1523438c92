"""Shared fixtures: shape checks, tiny recipes and models, one Ray cluster."""

import json
import os

# Ray must not write a token into the home folder, and its sockets need a short path.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TMPDIR", "/tmp")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
# Ray's workers give way to everything else (15), and starve beside the other process of tests.
os.environ.setdefault("RAY_worker_niceness", "0")
# Threads of small models wait for each other more than they work where cores are shared.
os.environ.setdefault("DREAMPOSE_MAX_THREADS", "1")
# All may take long to start and to answer where the machine is busy.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "300")
os.environ.setdefault("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "5")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
os.environ.setdefault("RAY_health_check_failure_threshold", "30")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sys
from types import ModuleType

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# Every annotation in dreampose, shapes included, is checked when it is called; an int may stand
# where a float is asked for (PEP 484). The hook wants the checker's name, not the checker, and has
# to come before the first import of dreampose.
sys.modules["annotation_checker"] = ModuleType("annotation_checker")
sys.modules["annotation_checker"].check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # type: ignore[attr-defined]
install_import_hook("dreampose", "annotation_checker.check")

import logging
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs

from dreampose import config, recipes

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_randomness() -> None:
    """Global generators start alike, so that a test's result does not depend on its neighbours."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code draws from it


@pytest.fixture(scope="session")
def tiny_recipe() -> config.Recipe:
    """The smallest model with every part: 64x48 pixels, 8x6 latents, some ten thousand weights."""
    return tiny(recipes.catwalk())


def tiny(recipe: config.Recipe) -> config.Recipe:
    """The same recipe with a handful of channels and one square a cell; stages are kept."""
    latents = min(8, recipe.latent_channels)
    stage = {"num_steps": 2, "num_epochs": 0, "batch_size": 2, "warmup_steps": 0, "crop_size": 0}
    return config.replace(
        recipe,
        height=64,
        width=48,
        vae_class="AutoencoderTiny",
        vae={"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (4,) * 4,
             "num_encoder_blocks": (0,) * 4, "num_decoder_blocks": (1,) * 4,
             "latent_channels": latents, "scaling_factor": 1.0},
        unet={**recipe.unet, "sample_size": (8, 6), "in_channels": latents, "out_channels": latents,
              "block_out_channels": (8, 16),
              "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
              "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
              "layers_per_block": 1, "attention_head_dim": 2, "cross_attention_dim": 16,
              "norm_num_groups": 4},
        image_encoder={**recipe.image_encoder, "image_size": 32, "patch_size": 16,
                       "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                       "num_attention_heads": 2, "projection_dim": 16},
        num_crops=2,
        pose_detail=1,
        vae_stage=config.replace(
            recipe.vae_stage, **{**stage, "crop_size": 32, "perceptual_weight": 0.0}
        ),
        encoder_stage=config.replace(recipe.encoder_stage, **stage),
        base_stage=config.replace(recipe.base_stage, **stage),
        subject_stage=config.replace(recipe.subject_stage, **stage),
        subject_vae_stage=config.replace(recipe.subject_vae_stage, **stage),
    )  # fmt: skip


@pytest.fixture
def tiny_pipeline(tiny_recipe: config.Recipe) -> Any:
    """A randomly initialised pipeline of the tiny recipe, the same weights in every test."""
    from dreampose import checkpoints

    torch.manual_seed(0)
    return checkpoints.build(tiny_recipe)


@pytest.fixture(scope="session")
def tiny_model(tiny_recipe: config.Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved folder of the tiny pipeline, for code that loads a model by path."""
    from dreampose import checkpoints

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    checkpoints.build(tiny_recipe).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """One Ray cluster for the whole run; the tests that use it are marked `ray`."""
    ray = pytest.importorskip("ray")
    if not ray.is_initialized():
        ray.init(
            # Each more would be one more worker that imports torch and diffusers at the same time.
            num_cpus=2,
            object_store_memory=200 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def sd_recipe() -> config.Recipe:
    """`sd14()` at a handful of channels: an `AutoencoderKL` and the paper's 5:4 frame."""
    small = tiny(recipes.sd14())
    return config.replace(
        small,
        height=80,
        width=64,
        vae_class="AutoencoderKL",
        vae={**recipes.sd14().vae, "block_out_channels": (4,) * 4, "layers_per_block": 1,
             "norm_num_groups": 2},
        unet={**small.unet, "sample_size": 8},
    )  # fmt: skip


@pytest.fixture(scope="session")
def sd_folder(sd_recipe: config.Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of `sd_recipe` as a Stable Diffusion folder in diffusers' layout."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("base") / "sd"
    AutoencoderKL(**sd_recipe.vae).save_pretrained(folder / "vae")
    UNet2DConditionModel(**sd_recipe.unet).save_pretrained(folder / "unet")
    PNDMScheduler(**sd_recipe.scheduler).save_pretrained(folder / "scheduler")
    encoder = CLIPVisionModel(CLIPVisionConfig(**sd_recipe.image_encoder))
    encoder.save_pretrained(folder / "image_encoder")
    return folder


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A bucket that speaks S3, on this machine and empty at first; its URI."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.setenv(name, "test")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fs.S3FileSystem(
            endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True
        ).create_dir("studio")
        yield "s3://studio"
    server.stop()


@pytest.fixture(params=["disk", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of the test's own, on this disk and then in a bucket: its path or URI."""
    if request.param == "disk":
        return str(tmp_path / "anywhere")
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


@pytest.fixture
def turn():
    """Notes in an MP4 that players must turn it, as phones do that film lying."""

    def turn(path, quarters):
        content, one = bytearray(path.read_bytes()), 0x10000
        cos, sin = {1: (0, one), 2: (-one, 0), 3: (0, -one)}[quarters]
        place = content.index(b"tkhd") + 44
        content[place : place + 36] = struct.pack(
            ">9i", cos, sin, 0, -sin, cos, 0, 0, 0, 0x40000000
        )
        path.write_bytes(content)

    return turn


@pytest.fixture(scope="session")
def recipe_only_model(tiny_recipe, tmp_path_factory):
    """A model folder with the recipe but no weights."""
    folder = tmp_path_factory.mktemp("bare") / "tiny"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"recipe": tiny_recipe.to_dict()}))
    return folder
