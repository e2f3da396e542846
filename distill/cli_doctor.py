"""`distill doctor`."""

import typer


def add_doctor_command(app: typer.Typer) -> None:
    """Adds the command to the main one."""
    app.command()(doctor)


def doctor() -> None:
    """Say what this machine has and lacks.

    Looks at versions, processor, memory, disk, GPU, weights and extras, and says how to get what is missing. Exit code
    2 if something that every run needs is missing.
    """
    from distill.doctor import examine, is_usable

    findings = examine()
    width = max(len(finding.about) for finding in findings)
    for finding in findings:
        typer.echo(f"{finding.state:7}  {finding.about:{width}}  {finding.found}")
    if not is_usable(findings):
        typer.echo("error: something needed is missing; pip install -r requirements.txt installs it", err=True)
        raise typer.Exit(2)
