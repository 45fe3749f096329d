"""Who loads the backbone: the choice, what Unsloth is given, and that its release takes it."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from prism_lite.config import ModelConfig
from prism_lite.digits.base_model import base_folder
from prism_lite.models import backbone, load_unsloth
from prism_lite.models.backbone import load_backbone
from prism_lite.models.device import Card, choose_precision
from prism_lite.models.families.qwen3_vl import NOT_QUANTISED
from prism_lite.models.load_unsloth import (
    choose_backend,
    known_to,
    load_with_unsloth,
    note_check_passed,
)
from prism_lite.stages.context import Context
from tests.micro import micro_recipe, quiet_console

T4 = Card("Tesla T4", (7, 5), 14.7)


@pytest.fixture
def stand_in(monkeypatch, micro_cache):
    """A module that notes what it is asked for and loads with transformers, as Unsloth would."""
    calls = []

    class FastVisionModel:
        @staticmethod
        def from_pretrained(
            model_name="unsloth/Llama-3.2-11B-Vision-Instruct-bnb-4bit", max_seq_length=2048,
            dtype=None, load_in_4bit=True, load_in_8bit=False, load_in_16bit=False,
            full_finetuning=False, token=None, device_map="sequential", trust_remote_code=False,
            use_gradient_checkpointing="unsloth", use_exact_model_name=False, fast_inference=False,
            random_state=3407, *args, **kwargs,
        ):  # fmt: skip
            assert not args and not kwargs, "an argument that this release does not know"
            calls.append({k: v for k, v in locals().items() if k not in ("args", "kwargs")})
            quantisation = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=NOT_QUANTISED,
            )  # fmt: skip
            core = AutoModelForImageTextToText.from_pretrained(
                model_name,
                dtype=dtype,
                quantization_config=quantisation if load_in_4bit else None,
                device_map=device_map,
            )
            return core, None

    module = types.ModuleType("unsloth")
    module.FastVisionModel = FastVisionModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth", module)
    return calls


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """A cache folder in which no check has been noted."""
    monkeypatch.setenv("PRISM_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_auto_takes_unsloth_only_where_a_check_passed_with_it(stand_in, own_cache, monkeypatch):
    """On this card and with these versions; the stand-in is "installed"."""
    auto = ModelConfig()
    backend, reason = choose_backend(auto, T4)
    assert backend == "transformers"
    assert "not yet checked on this card: `python -m tests.gpu_check` does it" in reason
    note_check_passed(T4)
    assert choose_backend(auto, T4) == ("unsloth", "loaded by Unsloth (checked on this Tesla T4)")
    other = dataclasses.replace(T4, name="NVIDIA L4", capability=(8, 9))
    assert choose_backend(auto, other)[0] == "transformers"
    monkeypatch.setattr(load_unsloth, "installed_version", lambda _name: "another")
    assert choose_backend(auto, T4)[0] == "transformers"


def test_the_choice_and_its_reason(stand_in, own_cache):
    """The stand-in is "installed"."""
    auto, asked = ModelConfig(), ModelConfig(backend="unsloth")
    note_check_passed(T4)
    assert choose_backend(asked, T4)[0] == "unsloth"
    assert choose_backend(ModelConfig(backend="transformers"), T4)[0] == "transformers"
    backend, reason = choose_backend(asked, None)
    assert backend == "transformers"
    assert "needs an NVIDIA GPU" in reason and "transformers + bitsandbytes instead" in reason
    assert choose_backend(auto, None)[0] == "transformers"


def test_the_reason_is_given_if_not_installed_or_too_late(monkeypatch):
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    backend, reason = choose_backend(ModelConfig(), T4)  # this process has imported transformers
    assert backend == "transformers" and "put `import unsloth` first" in reason
    monkeypatch.delitem(sys.modules, "transformers")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    backend, reason = choose_backend(ModelConfig(backend="unsloth"), T4)
    assert backend == "transformers" and "pip install 'prism-lite[gpu]'" in reason


def test_what_unsloth_is_asked_for(stand_in):
    config = micro_recipe(model__max_pack_tokens=4096)
    model = dataclasses.replace(config.model, compute_dtype="float16")
    load_with_unsloth(base_folder(config), model, choose_precision(model, None), seed=7)
    (call,) = stand_in
    assert call["model_name"] == base_folder(config)
    assert call["dtype"] == torch.float16 and call["device_map"] == {"": "cpu"}
    assert call["load_in_4bit"] is True and call["load_in_16bit"] is False
    assert call["use_exact_model_name"] is True, "another repository's weights were loaded"
    assert call["use_gradient_checkpointing"] is False and call["fast_inference"] is False
    assert call["max_seq_length"] == 4096 and call["random_state"] == 7
    plain = dataclasses.replace(model, quantization="none")
    load_with_unsloth(base_folder(config), plain, choose_precision(plain, None), seed=7)
    assert stand_in[1]["load_in_4bit"] is False and stand_in[1]["load_in_16bit"] is True


def test_its_environment_is_set_before_it_is_imported(monkeypatch, tmp_path, own_cache):
    (tmp_path / "unsloth.py").write_text(
        "import os\nSEEN = {k: v for k, v in os.environ.items() if k[:7] in ('UNSLOTH', 'TORCHDY')}\n"
    )
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in os.environ if name[:7] in ("UNSLOTH", "TORCHDY")]:
        monkeypatch.delenv(name)
    (own_cache / "unsloth_compiled").mkdir(parents=True, mode=0o755)

    seen = load_unsloth.import_unsloth().SEEN
    for name in seen:
        monkeypatch.delenv(name)
    sys.modules.pop("unsloth")  # not by monkeypatch, which would put it back
    generated = Path(seen.pop("UNSLOTH_COMPILE_LOCATION"))
    assert seen == {
        "UNSLOTH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1", "UNSLOTH_BLOCK_COMPILE": "0",
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }  # fmt: skip
    assert generated == own_cache / "unsloth_compiled"
    assert generated.stat().st_mode & 0o777 == 0o700, "Python code that others could change"


def test_arguments_that_a_release_does_not_know_are_left_out():
    def old(model_name, dtype, load_in_4bit, **kwargs):
        raise AssertionError

    settings = {"model_name": "m", "dtype": 1, "load_in_4bit": True, "fast_inference": False}
    assert known_to(old, settings) == {"model_name": "m", "dtype": 1, "load_in_4bit": True}

    def renamed(model, dtype, load_in_4bit):
        raise AssertionError

    with pytest.raises(RuntimeError, match=r"does not take model_name.*transformers"):
        known_to(renamed, settings)


def test_both_loaders_train_alike(stand_in, monkeypatch, task, tmp_path):
    """The stand-in loads what transformers loads: an SFT stage must come out the same to the bit."""
    from prism_lite.runs.folder import open_run
    from prism_lite.stages.sft import run_sft

    states = []
    for backend in ("transformers", "unsloth"):
        monkeypatch.setattr(backbone, "choose_backend", lambda _m, _c, b=backend: (b, f"by {b}"))
        config = micro_recipe(sft__steps=2)
        found = load_backbone(config.model, config.lora, base_folder(config), seed=0)
        assert found.loader == f"by {backend}"
        with open_run(tmp_path / backend, config, quiet_console()) as folder:
            run_sft(Context(config, folder, found, task))
        states.append(found.adapter_state())
    assert len(stand_in) == 1
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def named_arguments(source: str, class_name: str, function: str) -> set[str]:
    """Names of a method's arguments, read from the source: importing Unsloth needs a GPU."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == function:
                    arguments = method.args
                    return {a.arg for a in (*arguments.args, *arguments.kwonlyargs)}
    raise AssertionError(f"{class_name}.{function} is not in the source")


def test_reading_a_signature_from_source():
    source = "class A:\n    @staticmethod\n    def f(x, y=1, *, z=2, **rest): ...\n"
    assert named_arguments(source, "A", "f") == {"x", "y", "z"}


@pytest.mark.skipif(
    not isinstance(sys.modules.get("unsloth"), types.ModuleType)
    and importlib.util.find_spec("unsloth") is None,
    reason="Unsloth is not installed here; `make test-unsloth` runs this in an environment of its own",
)
def test_the_installed_unsloth_takes_what_we_pass(monkeypatch):
    spec = importlib.util.find_spec("unsloth")
    assert spec is not None and spec.origin is not None
    loader = (Path(spec.origin).parent / "models" / "loader.py").read_text(encoding="utf-8")
    names = named_arguments(loader, "FastModel", "from_pretrained")
    wanted = {
        "model_name", "max_seq_length", "dtype", "load_in_4bit", "load_in_16bit", "full_finetuning",
        "device_map", "use_gradient_checkpointing", "use_exact_model_name", "fast_inference",
        "random_state", "trust_remote_code",
    }  # fmt: skip
    assert wanted <= names
    # what cannot run without a GPU, and is not used: still there under the names we switch off
    assert {"gpu_memory_utilization", "float8_kv_cache", "offload_embedding"} <= names
    assert "class FastVisionModel(FastModel)" in loader
