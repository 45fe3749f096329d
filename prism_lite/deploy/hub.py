"""What may follow an export: upload to the hub (only when asked) and GGUF through llama.cpp."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

CONVERTER = "convert_hf_to_gguf.py"


def push_folder(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload an exported folder to a hub repository; made (private) where it does not exist.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the hub refused; the folder stays where it is.
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


def gguf_commands(
    folder: str | Path, kind: str, converter: str | Path = f"llama.cpp/{CONVERTER}"
) -> list[list[str]]:
    """The commands that turn an exported folder into GGUF: the language model, and the projector of
    its vision tower.
    """
    folder = Path(folder)
    start = [sys.executable, str(converter), str(folder)]
    return [
        [*start, "--outfile", str(folder / f"model-{kind}.gguf"), "--outtype", kind],
        [*start, "--outfile", str(folder / "mmproj-f16.gguf"), "--outtype", "f16", "--mmproj"],
    ]


def find_converter() -> Path | None:
    """llama.cpp's converter: in $LLAMA_CPP, in ./llama.cpp, or on the path."""
    places = [os.environ.get("LLAMA_CPP"), "llama.cpp", os.path.expanduser("~/llama.cpp")]
    for place in places:
        if place and (Path(place) / CONVERTER).is_file():
            return Path(place) / CONVERTER
    found = shutil.which(CONVERTER)
    return Path(found) if found else None


def write_gguf(folder: str | Path, kind: str) -> list[str]:
    """Convert an exported folder, or say how.

    Args:
        kind: an `--outtype` of the converter: f16, bf16, q8_0.

    Returns:
        The commands still to be run by hand: none where llama.cpp is here.

    Raises:
        RuntimeError: the converter failed; it has said why.
    """
    converter = find_converter()
    if converter is None:
        return [shlex.join(command) for command in gguf_commands(folder, kind)]
    for command in gguf_commands(folder, kind, converter):
        done = subprocess.run(command)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode} of: {shlex.join(command)}")
    return []
