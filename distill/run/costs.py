"""What a stage is going to do and what that costs, in lines for the user, from its plan alone."""

from distill.launch.processes import Cluster
from distill.modeling.counting import count_parameters
from distill.run.planning import StagePlan
from distill.training.accounting import pass_flops


def describe_stage(plan: StagePlan, students: list[str], cluster: Cluster) -> str:
    """The start line of a stage: who learns from whom, and the batch arithmetic."""
    stage = plan.stage
    per_process = -(-stage.global_batch_size // cluster.world_size)
    micro = min(stage.rows_per_forward(), per_process)
    pieces = f"{-(-per_process // micro)} micro-batch(es) x up to {micro}"
    if stage.micro_batch_size == "auto":
        pieces = "micro-batches of a size that is tried out at the start"
    source = f"from {stage.teacher}" if stage.teacher else "without a teacher"
    length = f"{stage.steps:,} steps" if stage.steps else f"{stage.epochs:g} epochs"
    return (
        f"{stage.name}: {', '.join(students)} {source}, {length} of {stage.global_batch_size:,} sequences = "
        f"{cluster.world_size} process(es) x {pieces}, {stage.max_seq_length} tokens each"
    )


def describe_cost(plan: StagePlan, students: list[str]) -> list[str]:
    """Parameters, tokens, FLOPs and memory of a pass, from the configs alone."""
    stage, length = plan.stage, plan.stage.max_seq_length
    share = stage.data.mean_mask_probability()
    counts = {name: count_parameters(plan.students[name].config).masked_lm for name in students}
    lines = [f"{name}: {count:,} parameters, matches: {len(plan.matches[name])}" for name, count in counts.items()]
    flops = pass_flops(
        plan.teacher.config if plan.teacher else None,
        [(plan.students[name].config, plan.matches[name], stage.students[name]) for name in students],
        length=length, head_share=share,
    )  # fmt: skip
    if stage.steps:
        tokens = stage.steps * stage.global_batch_size * length
        lines.append(f"{tokens:,} tokens x {flops / 1e6:.3g} MFLOPs = {tokens * flops:.3g} FLOPs")
    # Weights, gradients, two moments, and a moving average if wanted, in float32; the teacher's weights alone.
    memory = sum((20 if stage.students[name].ema else 16) * count for name, count in counts.items())
    memory += 4 * count_parameters(plan.teacher.config).masked_lm if plan.teacher else 0
    lines.append(f"weights and optimiser: {memory / 1e6:,.1f} MB a process, activations not counted")
    return lines
