"""The Gradio demo: looks at run folders, steers training, asks the models of a run.

It is part of the repository and not of the wheel; `prism-lite demo` starts it.
"""
