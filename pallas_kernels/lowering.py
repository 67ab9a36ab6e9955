"""Logs or refuses an implementation when its program is lowered, since JAX chooses the platform long after tracing."""

import functools
import logging

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

logger = logging.getLogger("pallas_kernels")


def note_platform(x: jax.Array, *, operator: str, name: str, only: str | None, remark: str) -> jax.Array:
    """Returns x. When the program is lowered, logs once which implementation runs on which platform.

    operator, name: the operator, and its implementation.
    only: the platform that it runs on, None for any.
    remark: text to add to the log.

    Raises:
        ValueError: at lowering, for another platform than `only`.
    """
    return _note_platform.bind(x, operator=operator, name=name, only=only, remark=remark)


@functools.cache
def log_once(operator: str, name: str, platform: str, remark: str) -> None:
    """Logs an implementation's platform, unless the same line was logged before."""
    logger.info("%s runs as %r on %s%s", operator, name, platform, remark)


def _lower(context: mlir.LoweringRuleContext, x, *, operator: str, name: str, only: str | None, remark: str):
    for platform in context.module_context.platforms:
        if only not in (None, platform):
            raise ValueError(
                f"implementation {name!r} runs on {only} only, but this program is for {platform}; choose"
                " another implementation"
            )
        log_once(operator, name, platform, remark)
    return [x]


_note_platform = Primitive("note_platform")
_note_platform.def_impl(lambda x, **_: x)
_note_platform.def_abstract_eval(lambda x, **_: x)
batching.defvectorized(_note_platform)
mlir.register_lowering(_note_platform, _lower)
