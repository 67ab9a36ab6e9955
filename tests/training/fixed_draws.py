"""Points that replace the random ones."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class FixedDraws(NamedTuple):
    """`fcclip_jax.training.losses.points.PointDraws`."""

    shared: Float[Array, "B S 2"]
    candidates: Float[Array, "B G N 2"]
    others: Float[Array, "B G U 2"]

    def matcher(self, row: Int[Array, ""], count: int) -> Float[Array, "S 2"]:
        assert count == self.shared.shape[1]
        return self.shared[row]

    def oversampled(self, row: Int[Array, ""], slot: Int[Array, ""], count: int) -> Float[Array, "N 2"]:
        assert count == self.candidates.shape[2]
        return self.candidates[row, slot]

    def uniform(self, row: Int[Array, ""], slot: Int[Array, ""], count: int) -> Float[Array, "U 2"]:
        assert count == self.others.shape[2]
        return self.others[row, slot]
