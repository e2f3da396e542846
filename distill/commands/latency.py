"""`distill latency`. Heavy imports stand inside."""

from pathlib import Path
from typing import Annotated

import typer


def add_latency_command(app: typer.Typer) -> None:
    """Adds the command to the main one."""
    app.command()(latency)


def latency(
    models: Annotated[list[str], typer.Argument(help="model folders or hub ids; speed-up is relative to the first")],
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="sequences in a forward; repeatable; default: 1 and 32")
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(min=1, help="tokens of a sequence; repeatable; default: 32, 128, 512, as far as all models go"),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="threads on a CPU; repeatable; default: 1 and all cores")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, max=3600, help="least time for each model and shape")] = 1.0,
    output: Annotated[Path | None, typer.Option(help="also write times and machine to this JSON file")] = None,
) -> None:
    """Time encoders side by side.

    Prints p50 and p95 of a forward, tokens a second, speed-up and peak memory.
    """
    from distill.downstream.latency import describe_machine, latency_table, make_shapes, measure_latency
    from distill.downstream.latency import peak_memory as measure_memory
    from distill.downstream.scores import to_markdown
    from distill.durable import write_json
    from distill.finetuning import name_models
    from distill.machine import num_cores
    from distill.modeling.config import load_config
    from distill.modeling.models import find_model
    from distill.places import check_writable_file
    from distill.progress import show_progress

    if output is not None:
        check_writable_file(output)
    found = name_models({name: find_model(name) for name in models})
    positions = min(load_config(folder).max_position_embeddings for folder in found.values())
    lengths = length or [min(length, positions) for length in (32, 128, 512)]
    shapes = make_shapes(batch_size or (1, 32), lengths, threads or (1, num_cores()))
    with show_progress("timing", len(shapes), "shape") as advance:
        timings = measure_latency(found, shapes, seconds=seconds, progress=advance)
    largest = max(shapes, key=lambda shape: shape.batch_size * shape.length)
    memory = {name: measure_memory(folder, largest.batch_size, largest.length) for name, folder in found.items()}
    machine = describe_machine()
    typer.echo(to_markdown(latency_table(timings, next(iter(found)), memory)), nl=False)
    typer.echo(
        f"{machine['gpu'] or machine['cpu']}, torch {machine['torch']}; memory: of a process for batch "
        f"{largest.batch_size} x {largest.length}"
    )
    if output is not None:
        write_json(output, {"machine": machine, "timings": [vars(timing) for timing in timings], "memory_mb": memory})
