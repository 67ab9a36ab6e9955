"""The counts of `tests.device.hlo`, by hand. Compiling needs jaxlib's CUDA plugin, which the other requirements do not include."""

import importlib.util

import pytest

from tests.device import hlo

PROGRAM = """
HloModule jit_f, is_scheduled=true

%fused_slice (param_0: f32[3,8,4], param_1: s32[]) -> f32[1,8,4] {
  %param_0 = f32[3,8,4]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %constant_1 = s32[] constant(0)
  %dynamic-slice.1 = f32[1,8,4]{2,1,0} dynamic-slice(%param_0, %param_1, %constant_1, %constant_1)
  ROOT %copy.1 = f32[1,8,4]{2,1,0} copy(%dynamic-slice.1)
}

%fused_transpose (param_0: bf16[8,4]) -> bf16[4,8] {
  %param_0 = bf16[8,4]{1,0} parameter(0)
  ROOT %transpose.1 = bf16[4,8]{1,0} transpose(%param_0), dimensions={1,0}
}

%body (arg: (s32[], f32[3,8,4])) -> (s32[], f32[3,8,4]) {
  %arg = (s32[], f32[3,8,4]{2,1,0}) parameter(0)
  %get-tuple-element.1 = f32[3,8,4]{2,1,0} get-tuple-element(%arg), index=1
  %get-tuple-element.2 = s32[] get-tuple-element(%arg), index=0
  %fusion.1 = f32[1,8,4]{2,1,0} fusion(%get-tuple-element.1, %get-tuple-element.2), kind=kCustom, calls=%fused_slice
  %conv.1 = (f32[1,8,4]{2,1,0}, u8[0]{0}) custom-call(%fusion.1), custom_call_target="__cudnn$convForward"
  ROOT %tuple.1 = (s32[], f32[3,8,4]{2,1,0}) tuple(%get-tuple-element.2, %get-tuple-element.1)
}

ENTRY %main (x: bf16[8,4], y: (s32[], f32[3,8,4])) -> bf16[4,8] {
  %x = bf16[8,4]{1,0} parameter(0)
  %y = (s32[], f32[3,8,4]{2,1,0}) parameter(1)
  %while.1 = (s32[], f32[3,8,4]{2,1,0}) while(%y), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %fusion.2 = bf16[4,8]{1,0} fusion(%x), kind=kInput, calls=%fused_transpose
}
"""


def test_counts_by_hand():
    """The loop's two kernels count three times; the transposed result has 32 elements of two bytes."""
    found = list(hlo.launches(*hlo.parse(PROGRAM)))
    assert found == [("slice", 3, 8 * 4 * 4), ("conv", 3, 8 * 4 * 4), ("transpose", 1, 4 * 8 * 2)]


def test_without_the_compiler_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert hlo.main([]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "XLA's compiler for GPUs is not installed; on Linux: pip install 'jax[cuda13]'"
    ]


def test_a_size_that_is_none(capsys):
    with pytest.raises(SystemExit) as stop:
        hlo.main(["--size", "800"])
    assert stop.value.code == 2
    assert "'800' is not HEIGHTxWIDTH" in capsys.readouterr().err
