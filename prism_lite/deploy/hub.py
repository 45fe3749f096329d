"""After an export: upload to the hub, only on request, and the commands that convert to GGUF."""

from __future__ import annotations

import shlex
from pathlib import Path


def push_folder(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload an exported folder to a hub repository; create it (private) if it does not exist.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the hub refused; the folder is kept.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(repo_id=repository, folder_path=str(folder))
    except (HfHubHTTPError, LocalTokenNotFoundError, HFValidationError, OSError) as error:
        raise ValueError(
            f"--push {repository}: the hub refused ({str(error).splitlines()[0]}). The export is in "
            f"{folder}; log in with `hf auth login` and upload it with `hf upload {repository} {folder}`."
        ) from error
    return str(commit.commit_url)


def gguf_commands(folder: str | Path, output_type: str) -> list[str]:
    """Return the llama.cpp commands that convert an exported folder: language model, vision tower.

    Args:
        folder: a merged export.
        output_type: the converter's `--outtype`: f16, bf16 or q8_0.
    """
    convert = ["python", "llama.cpp/convert_hf_to_gguf.py", str(folder)]
    model, vision = f"{folder}/model-{output_type}.gguf", f"{folder}/mmproj-f16.gguf"
    return [
        shlex.join([*convert, "--outfile", model, "--outtype", output_type]),
        shlex.join([*convert, "--outfile", vision, "--outtype", "f16", "--mmproj"]),
    ]
