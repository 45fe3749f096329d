"""A recipe's model at full size: a step of every stage beside the planner's prediction, tokens a second.

With `is_random` the weights are random and made on the device, in NF4 by bitsandbytes: nothing is
downloaded, and neither time nor memory depends on their values.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import itertools
import re
import time
from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any

import torch
from torch import nn

from prism_lite.config import RunConfig
from prism_lite.models.backbone import (
    REFERENCE,
    TRUNK,
    Backbone,
    apply_model_settings,
    load_backbone,
)
from prism_lite.models.device import card_of, choose_precision, use_tensor_cores
from prism_lite.models.families import qwen3_vl as family
from prism_lite.models.load_transformers import keep_cpu_weights_unpacked
from prism_lite.planner import cards, fake_backbone
from prism_lite.planner.architectures import Architecture, architecture_of
from prism_lite.planner.hours import phase_seconds
from prism_lite.planner.simulate_phase import simulate_phase
from prism_lite.planner.steps import run_phase
from prism_lite.planner.workload import Phase, Workload, phases_of
from prism_lite.recipe import load_recipe
from prism_lite.sampling.rollouts import sample_groups
from tests.gpu_check.timing import GIB, wait_for

SMALL = {
    "model.max_prompt_tokens": 200, "model.max_pack_tokens": 400, "model.max_pixels": 64 * 64,
    "model.picture_cache_gib": 0.001, "model.max_cached_pictures": 4,
    "sampling.max_completion_tokens": 12, "sampling.max_rows": 4,
    "discriminator.max_part_tokens": 20, "discriminator.prompt_cache_gib": 0.001,
}  # fmt: skip
_STAGES_WITH_OPTIMIZER = ("sft", "warmup", "discriminator", "align", "rlvr")
_NUM_DRAWS = 24  # tokens of a sampling phase; the memory is that of full length from the start
_DECODED = (16, 80)  # lengths whose difference in time is that of tokens alone


def size_facts(
    name: str, device: str, *, small: bool, is_random: bool
) -> Iterator[Mapping[str, Any]]:
    """Yield the figures of a recipe's model.

    Raises:
        RuntimeError: a phase failed; the others were measured.
    """
    config, architecture = recipe_of(name, device, small=small)
    started_s = time.perf_counter()
    if is_random:
        backbone = random_backbone(config, architecture, device)
    else:
        backbone = load_backbone(config.model, config.lora, config.model.name, seed=0)
    wait_for(device)
    yield {
        "built_s": round(time.perf_counter() - started_s, 1),
        "weights_gib": _allocated_gib(device),
        "precision": backbone.precision.reason,
    }
    yield {"decode": list(decode_facts(backbone, config, device, small=small))}
    phases = []
    for phase in phases_of(config):
        phases.append(phase_facts(backbone, config, architecture, phase, device))
        yield {"phases": phases}
    failed = [facts for facts in phases if "error" in facts]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(phases)} phases failed: {failed[0]['error']}")


def recipe_of(name: str, device: str, *, small: bool) -> tuple[RunConfig, Architecture]:
    """Return the recipe for this device and its model's sizes."""
    settings: dict[str, Any] = {
        "model.device": device, "model.min_gpu_gib": 0, "data.train": "none.jsonl",
    }  # fmt: skip
    if device == "cpu":
        settings |= {"model.compute_dtype": "float32"}
        settings |= {f"{stage}.optim.name": "adamw" for stage in _STAGES_WITH_OPTIMIZER}
    else:
        settings |= {"model.compute_dtype": "auto"}  # this card's, not those of the recipe's card
    config = load_recipe(name, settings | (SMALL if small else {}))
    architecture = architecture_of(config)
    if small:
        text, vision = architecture.config.text_config, architecture.config.vision_config
        for key, value in {
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        }.items():  # fmt: skip
            setattr(text, key, value)
        text.rope_parameters["mrope_section"] = [6, 5, 5]
        for key, value in {
            "hidden_size": 32, "intermediate_size": 64, "depth": 4, "num_heads": 2,
            "out_hidden_size": 64, "deepstack_visual_indexes": [0, 1, 2],
        }.items():  # fmt: skip
            setattr(vision, key, value)
    return config, architecture


def random_backbone(config: RunConfig, architecture: Architecture, device: str) -> Backbone:
    """Build the model on the device with random weights; its language model in NF4."""
    from transformers import Qwen3VLForConditionalGeneration

    card = card_of(config.model)
    precision = choose_precision(config.model, card)
    use_tensor_cores(precision, card)
    torch.manual_seed(0)
    model_class: Any = Qwen3VLForConditionalGeneration
    attention = {"text_config": "sdpa", "vision_config": precision.vision_attention}
    with torch.device(device):
        core = model_class._from_config(
            copy.deepcopy(architecture.config),  # transformers writes the attention into it
            attn_implementation=attention,
            dtype=precision.compute_dtype,
        )
    if config.model.quantization == "nf4":
        _quantise(core, precision.compute_dtype, device)
    processor = fake_backbone._stand_in_processor()
    processor.image_processor.size = {
        "shortest_edge": config.model.min_pixels,
        "longest_edge": config.model.max_pixels,
    }
    keep_cpu_weights_unpacked(core)
    apply_model_settings(core, config.model, precision)
    return Backbone(core, processor, config.model, config.lora, precision, "random weights")


def _quantise(core: Any, dtype: torch.dtype, device: str) -> None:
    """Replace the language model's linears by bitsandbytes' 4-bit ones, one after the other."""
    import bitsandbytes as bnb

    for name, module in list(core.named_modules()):
        if not (isinstance(module, nn.Linear) and re.fullmatch(family.LANGUAGE_LINEARS, name)):
            continue
        quantised = bnb.nn.Linear4bit(1, 1, bias=False, compute_dtype=dtype, quant_type="nf4")
        quantised.in_features, quantised.out_features = module.in_features, module.out_features
        quantised.weight = bnb.nn.Params4bit(
            module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to(device)
        parent, _, leaf = name.rpartition(".")
        setattr(core.get_submodule(parent), leaf, quantised)
    core.is_loaded_in_4bit = True  # PEFT asks for it


class Stopwatch:
    """Stands in for the planner's tracker: notes the time at each mark, and counts no memory."""

    def __init__(self, device: str, work: str) -> None:
        self._device, self._work = device, work
        self.marks: list[tuple[tuple[Any, ...], float]] = []

    @property
    def free_bytes(self) -> int | None:
        """The card's memory that new tensors can take; None on a CPU."""
        if self._device == "cpu":
            return None
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    def seed(self, *_args: Any) -> None:
        """Nothing: the card counts."""

    def mark(self, key: tuple[Any, ...]) -> None:
        wait_for(self._device)
        if key == (self._work,) and self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.marks.append((key, time.perf_counter()))

    def seconds(self) -> float:
        """From the beginning of the work to its end."""
        times = dict(self.marks)
        return times["end",] - times[self._work,]

    def seconds_per_token(self) -> float:
        draws = [at_s for key, at_s in self.marks if key[0] == "draw"]
        return (draws[-1] - draws[1]) / (len(draws) - 2)


def phase_facts(
    backbone: Backbone, config: RunConfig, architecture: Architecture, phase: Phase, device: str
) -> dict[str, Any]:
    """Run a phase twice, the second time to be measured, and predict it."""
    facts: dict[str, Any] = {"stage": phase.stage, "work": phase.work}
    workload = Workload(backbone, config)
    num_draws = min(_NUM_DRAWS, config.sampling.max_completion_tokens)
    try:
        for _ in range(2):
            watch = Stopwatch(device, phase.work)
            _forget(backbone, device)
            run_phase(
                watch,  # pyright: ignore[reportArgumentType]
                contextlib.nullcontext(),  # pyright: ignore[reportArgumentType]
                workload,
                phase,
                building=contextlib.nullcontext(),
                on_card=device == "cuda",
                num_draws=num_draws,
            )
    except (RuntimeError, AssertionError) as error:  # out of memory is a RuntimeError
        _forget(backbone, device)
        return facts | {"error": f"{type(error).__name__}: {error}"[:500]}
    num_repeats = _num_repeats(workload, phase)
    seconds = watch.seconds()
    num_tokens = config.sampling.max_completion_tokens if phase.work == "sample" else num_draws
    if phase.work == "sample":
        per_token = watch.seconds_per_token()
        facts["ms_per_token_step"] = round(1e3 * per_token, 2)
        seconds += per_token * (config.sampling.max_completion_tokens - num_draws)
    facts |= {"seconds": round(seconds, 3), "step_s": round(seconds * num_repeats, 3)}
    if device == "cuda":
        facts["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 3)
        facts["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 3)
    predicted = _prediction(config, architecture, phase, device, num_tokens)
    if "predicted_s" in predicted:
        predicted["predicted_s"] = round(predicted["predicted_s"] * num_repeats, 3)
    return facts | predicted


def _num_repeats(workload: Workload, phase: Phase) -> int:
    """Return how often a step repeats what a phase runs once; 0 of what is not in every step."""
    if phase.work in ("judge", "train"):
        return ceil(workload.step_tokens(phase) / workload.pack_tokens(phase))
    if phase.work != "sample" or phase.stage == "warmup":
        return 0
    group_size, num_prompts = workload.sampled(phase)
    rows, at_once = workload.sampling_batch(phase, workload.config.sampling.max_rows)
    return ceil(num_prompts / at_once) * ceil(group_size / rows)


def _prediction(
    config: RunConfig, architecture: Architecture, phase: Phase, device: str, num_tokens: int
) -> dict[str, float]:
    """Return the planner's peak, for a card of this size and type; on a card its seconds, too."""
    card = None
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        card = cards.card_of(properties.total_memory / GIB)
        dtype = str(choose_precision(config.model, card_of(config.model)).compute_dtype)
        model = dataclasses.replace(config.model, compute_dtype=dtype.removeprefix("torch."))
        config = dataclasses.replace(config, model=model)
    simulated = simulate_phase(config, architecture, card, phase)
    figures = {"predicted_gib": round(simulated.peak_gib, 3)}
    if card is not None:
        figures["predicted_s"] = phase_seconds(config, card, simulated, num_tokens=num_tokens)
    return figures


def _forget(backbone: Backbone, device: str) -> None:
    """Remove what a phase leaves: adapters, gradients, pictures, unused memory."""
    for adapter in (TRUNK, REFERENCE):
        backbone.drop_adapter(adapter)
    for parameter in backbone.policy_parameters():
        parameter.grad = None
    backbone.vision.clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def decode_facts(
    backbone: Backbone, config: RunConfig, device: str, *, small: bool
) -> Iterator[dict[str, Any]]:
    """Yield milliseconds of a token step and tokens a second by rows and weights, with and without a graph.

    The end token is not drawn, so that all rows have the same length; the time of a token is the difference
    of two lengths.
    """
    workload = Workload(backbone, config)
    backbone.suppressed_ids.append(backbone.end_id)
    lengths = (3, 6) if small else _DECODED
    graphs = ("never", "auto") if device == "cuda" else ("never",)
    for num_rows in (4,) if small else (16, 32, 64):
        for weights, graph in itertools.product(("never", "always"), graphs):
            settings = {"dense_weights": weights, "cuda_graph": graph}
            facts: dict[str, Any] = {"rows": num_rows} | settings
            _forget(backbone, device)
            try:
                taken = {
                    length: _seconds_of_decoding(workload, device, num_rows, settings, length)
                    for length in (*lengths, *lengths)  # the first two only warm up
                }
            except torch.OutOfMemoryError as error:
                yield facts | {"error": str(error)[:300]}
                continue
            step_s = (taken[lengths[1]] - taken[lengths[0]]) / (lengths[1] - lengths[0])
            yield facts | {"ms": round(1e3 * step_s, 2), "tokens_per_s": round(num_rows / step_s)}
    backbone.suppressed_ids.remove(backbone.end_id)


def _seconds_of_decoding(
    workload: Workload, device: str, num_rows: int, settings: Any, length: int
) -> float:
    sampling = dataclasses.replace(
        workload.config.sampling,
        max_completion_tokens=length,
        max_rows=num_rows,
        **settings,
    )
    wait_for(device)
    started_s = time.perf_counter()
    sample_groups(
        workload.backbone, workload.samples(num_rows // 4), group_size=4, sampling=sampling,
        seed=("decode",),
    )  # fmt: skip
    wait_for(device)
    return time.perf_counter() - started_s


def _allocated_gib(device: str) -> float | None:
    return round(torch.cuda.memory_allocated() / GIB, 3) if device == "cuda" else None
