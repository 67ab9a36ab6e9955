"""Prints counted costs of an operator's kernels, and the least time that each takes: `python -m pallas_kernels.roofline [OPERATOR] [OPTIONS]`.

OPERATOR is one of `OPERATORS`, by default ms_deform_attn; its module describes the tables.
"""

import sys
from collections.abc import Sequence

import pallas_kernels.deform_attn.roofline

OPERATORS = {"ms_deform_attn": pallas_kernels.deform_attn.roofline.main}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of the operator's command, which parses the options."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "ms_deform_attn"
    if name not in OPERATORS:
        print(f"error: there is no operator {name!r}; choose {' or '.join(OPERATORS)}", file=sys.stderr)
        return 2
    return OPERATORS[name](arguments)


if __name__ == "__main__":
    sys.exit(main())
