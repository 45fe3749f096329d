"""What a person waits for before the page: imports."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "matplotlib", "datasets", "sympy", "peft")


def test_no_heavy_library_is_imported_before_the_page() -> None:
    code = (
        "import sys; from demo.startup import import_gradio; import_gradio(); import demo.app;"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_gradio_writes_no_stubs_and_its_components_work() -> None:
    code = (
        "from demo.startup import import_gradio; import_gradio(); import gradio as gr\n"
        "from gradio import component_meta\n"
        "assert component_meta.create_or_modify_pyi.__name__ == '<lambda>'\n"
        "with gr.Blocks() as page:\n"
        "    box = gr.Textbox('a'); box.change(lambda text: text, box, box)\n"
        "assert box.get_config()['value'] == 'a' and len(page.fns) == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
