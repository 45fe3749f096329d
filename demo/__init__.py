"""The Gradio demo: inspects run folders, controls training and samples from the models of a run.

It belongs to the repository, not to the wheel; `prism-lite demo` starts it.
"""
