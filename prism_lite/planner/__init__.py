"""The memory planner: `plan(config)` simulates every stage's real step at full size, without a GPU.

architectures -> fake_backbone (a Backbone without data) -> steps (the stages' own code) under
fake_tensors and tracker -> simulate_phase -> plan -> search (which settings fit).
"""
