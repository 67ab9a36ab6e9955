"""Prints counted costs of deformable attention's kernels, and the least time that each takes: `python -m pallas_kernels.roofline`."""

import sys

from pallas_kernels.deform_attn.roofline import main

if __name__ == "__main__":
    sys.exit(main())
