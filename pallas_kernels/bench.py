"""Measures time, memory and rates of an operator's implementations: `python -m pallas_kernels.bench [OPERATOR] [OPTIONS]`.

OPERATOR is one of `OPERATORS`, by default ms_deform_attn; its module describes the tables.
"""

import sys
from collections.abc import Sequence

import pallas_kernels.deform_attn.bench
import pallas_kernels.depthwise.bench

OPERATORS = {
    "ms_deform_attn": pallas_kernels.deform_attn.bench.main,
    "depthwise_norm": pallas_kernels.depthwise.bench.main,
}


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
