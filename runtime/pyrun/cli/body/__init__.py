"""What the hot commands do, once their words are understood.

A function each, called with the session and the command's parameters: by the typer command of the same name,
or by `main` with what the lean parser read (`pyrun.cli.lean`). So nothing here imports typer or click.
"""
