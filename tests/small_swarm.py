"""The run of the small swarms that tests emulate: two stages, tensors of little more than a packet."""


def small_run(steps: int) -> str:
    """What a scenario says of it."""
    return f"""
[run.model]
name = "smollm2-135m"
stages = 2

[run.train]
steps = {steps}
batch = 8
lora_rank = 1
lora_targets = ["q_proj"]

[run.data]
sequence_length = 128

[run.pipeline]
min_replicas = 2
rebalance = 0
"""
