"""The subcommands of fcclip, one module each.

Each has HELP, DESCRIPTION, EPILOG, MEMORY_ADVICE (what to do when memory runs out), `add_arguments(parser)` and
`run(arguments)`, which returns the exit code. Modules that take long to import, such as JAX, are imported inside `run`.
"""
