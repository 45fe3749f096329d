"""The memory planner: `plan(config)` simulates every stage's real step at full size, without a GPU.

architectures -> fake_backbone (a Backbone without data) -> steps (the stages' own) under fake_tensors and
tracker -> extrapolate (few layers to all) -> plan -> report, search.
"""
