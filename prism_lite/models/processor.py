"""Tokenizer and picture processor of a Qwen3-VL, with or without torchvision.

transformers' stock `AutoProcessor` for Qwen3-VL needs torchvision, for videos only. Without it,
`ImageOnlyProcessor` is the same class without videos and with the PIL image processor, which gives the same
pixels.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PATCH_PIXELS = 16
MERGE = 2  # 2 x 2 patches become one visual token


class ImageOnlyProcessor(Qwen3VLProcessor):
    """Qwen3VLProcessor without videos: pictures through PIL, no torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor" and argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str, **kwargs: Any
    ) -> ImageOnlyProcessor:
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        pictures = Qwen2VLImageProcessorPil.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return cls.from_parts(tokenizer, pictures)

    @classmethod
    def from_parts(
        cls, tokenizer: PreTrainedTokenizerBase, pictures: Qwen2VLImageProcessorPil
    ) -> ImageOnlyProcessor:
        return cls(
            image_processor=pictures,
            tokenizer=tokenizer,
            video_processor=None,
            chat_template=tokenizer.chat_template,
        )

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, **kwargs: Any
    ) -> list[str]:
        """Write the folder as the stock processor does, so that `AutoProcessor` loads it too."""
        folder = Path(save_directory)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        _update_json(folder / "tokenizer_config.json", processor_class="Qwen3VLProcessor")
        _update_json(
            folder / "preprocessor_config.json",
            processor_class="Qwen3VLProcessor",
            image_processor_type="Qwen2VLImageProcessorFast",
        )
        _update_json(
            folder / "video_preprocessor_config.json",
            video_processor_type="Qwen3VLVideoProcessor",
            processor_class="Qwen3VLProcessor",
            patch_size=PATCH_PIXELS,
            temporal_patch_size=2,
            merge_size=MERGE,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            size={"shortest_edge": 4096, "longest_edge": 25165824},
        )
        (folder / "chat_template.jinja").write_text(str(self.chat_template), encoding="utf-8")
        return [str(folder)]


def load_processor(path: str, revision: str | None = None) -> Qwen3VLProcessor:
    """Load the processor of a hub id or folder: the stock one if torchvision is installed, else ours."""
    of_hub = {} if revision is None else {"revision": revision}
    if importlib.util.find_spec("torchvision") is not None:
        return AutoProcessor.from_pretrained(path, **of_hub)
    return ImageOnlyProcessor.from_pretrained(path, **of_hub)


def _update_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | values, indent=1), encoding="utf-8")
