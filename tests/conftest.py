"""Fixtures: micro backbones, data and one whole micro run (settings in micro.py)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.make_micro_base import put_micro_base
from tests.micro import fill_adapter, micro_recipe, quiet_console


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # the time of an example says how busy the machine is
    settings.register_profile("any_speed", deadline=None)
    settings.load_profile("any_speed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: begun last, one would keep one process busy and the other idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def float32_products() -> Iterator[None]:
    """Loading a model for a card lets the process use TF32; the next test computes in float32 again."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def micro_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where tiny bases are kept in this session, with the stored micro base in it.

    One thread is fastest for micro models; OMP_NUM_THREADS sets another number (`make test-cpus`).
    """
    import torch

    folder = tmp_path_factory.mktemp("bases")
    put_micro_base(folder)
    before = os.environ.get("PRISM_LITE_CACHE")
    threads = torch.get_num_threads()
    os.environ["PRISM_LITE_CACHE"] = str(folder)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    yield folder
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["PRISM_LITE_CACHE"]
    else:
        os.environ["PRISM_LITE_CACHE"] = before


@pytest.fixture
def make_backbone(micro_cache: Path) -> Callable[..., Any]:
    """`make_backbone(tiny__steps=0, model__quantization="none")` loads a micro backbone."""
    from prism_lite.digits.base_model import base_folder
    from prism_lite.models.backbone import load_backbone

    def make(**overrides: Any):
        config = micro_recipe(**overrides)
        return load_backbone(config.model, config.lora, base_folder(config), seed=config.seed)

    return make


@pytest.fixture
def backbone(make_backbone: Callable[..., Any]):
    """NF4, trained micro base, fresh policy adapter."""
    return make_backbone()


@pytest.fixture
def random_backbone(make_backbone: Callable[..., Any]):
    """Not quantised, random weights, and a policy adapter that is not zero."""
    backbone = make_backbone(tiny__steps=0, model__quantization="none")
    fill_adapter(backbone)
    return backbone


@pytest.fixture(scope="session")
def task(micro_cache: Path):
    from prism_lite.data.task import load_task

    return load_task(micro_recipe())


@pytest.fixture(scope="session")
def micro_run(micro_cache: Path, tmp_path_factory: pytest.TempPathFactory):
    """One whole micro run: config, folder, results, printed text. Read it, do not change it."""
    from prism_lite import pipeline

    config, folder, console = micro_recipe(), tmp_path_factory.mktemp("run") / "a", quiet_console()
    results = pipeline.run(config, folder, console=console)
    return config, folder, results, console.file.getvalue()
