"""The imports that a user waits for before the page."""

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
        "import inspect, jinja2; getfile, render = inspect.getfile, jinja2.Template.render\n"
        "stubs = []\n"
        "def record(*a, **k): stubs.extend(k); return render(*a, **k)\n"
        "jinja2.Template.render = record  # each stub is rendered from a template\n"
        "from demo.startup import import_gradio; import_gradio(); import gradio as gr\n"
        "assert 'contents' not in stubs and inspect.getfile is getfile\n"
        "with gr.Blocks() as page:\n"
        "    box = gr.Textbox('a'); box.change(lambda text: text, box, box)\n"
        "assert box.get_config()['value'] == 'a' and len(page.fns) == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
