"""Draws the paper's figure 1: clusters of CLIP's dense features, of images at rising sizes.

    python -m fcclip_jax.evaluation.clusters --checkpoint CLIP_DIR [CLIP_DIR2] --scene 7 --output clusters.png
    python -m fcclip_jax.evaluation.clusters --checkpoint DIR --image photo.jpg --sizes 256 512 1024 --output clusters.png

Each checkpoint, a CLIP or a whole FC-CLIP, has a row, and each size a column. Features are normalised and clustered by
k-means for each picture alone; colours follow the sizes of the clusters. --agreement 40 also measures on 40 test scenes of the
miniature world how well the clusters agree with the true segments.
"""

import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy import special
from scipy.cluster.vq import kmeans2

from fcclip_jax import caching, command_line, files
from fcclip_jax.conventions import STRIDE
from fcclip_jax.data.images import load_image
from fcclip_jax.evaluation.clips import open_clip
from fcclip_jax.inference.inside import dense_features

CLUSTERS = 8
ROUNDS = 50
SIZES = (128, 256, 512)


def cluster(features: Float[np.ndarray, "h w C"], count: int = CLUSTERS) -> Int[np.ndarray, "h w"]:
    """Returns the cluster of each position, the largest first. The same features give the same clusters."""
    rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    # Each cluster starts from the row that is the farthest from those before.
    chosen = [0]
    while len(chosen) < min(count, len(np.unique(rows, axis=0))):
        distances = np.linalg.norm(rows[:, None] - rows[chosen][None], axis=2).min(axis=1)
        chosen.append(int(np.argmax(distances)))
    _, labels = kmeans2(rows, rows[chosen], iter=ROUNDS, minit="matrix")
    order = np.argsort(-np.bincount(labels, minlength=len(chosen)), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[labels].reshape(features.shape[:2])


def agreement(clusters: Int[np.ndarray, "h w"], segments: Int[np.ndarray, "H W"]) -> float:
    """Returns the normalised mutual information of a pixel's cluster and its segment: 2 I / (H + H), from 0 to 1.

    clusters: counted from 0; each covers its part of the image.
    segments: any numbers.
    """
    (height, width), (rows, columns) = segments.shape, clusters.shape
    found = clusters[np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)].reshape(-1)
    _, true = np.unique(segments, return_inverse=True)
    true = true.reshape(-1)
    joint = np.zeros((found.max() + 1, true.max() + 1))
    np.add.at(joint, (found, true), 1 / found.size)
    entropies = [special.entr(joint.sum(axis=axis)).sum() for axis in (0, 1)]
    mutual = sum(entropies) - special.entr(joint).sum()
    return float(2 * mutual / sum(entropies)) if sum(entropies) else 1.0


def draw(image: UInt8[np.ndarray, "H W 3"], rows: Sequence[tuple[str, Sequence[tuple[int, np.ndarray]]]]) -> Figure:
    """Returns the figure.

    rows: the title of each trunk, with the sizes in pixels and their clusters.
    """
    columns = 1 + len(rows[0][1])
    figure = Figure(figsize=(2.4 * columns, 2.6 * len(rows)), layout="constrained")
    for axes, (title, maps) in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        axes[0].imshow(image)
        axes[0].set_title(title, fontsize=8)
        for axis, (size, labels) in zip(axes[1:], maps, strict=True):
            axis.imshow(labels, cmap=colormaps["tab10"], vmin=0, vmax=9, interpolation="nearest")
            axis.set_title(f"{size} pixels", fontsize=8)
        for axis in axes:
            axis.set_axis_off()
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = command_line.ArgumentParser(
        prog="python -m fcclip_jax.evaluation.clusters", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="DIR", help="folders of CLIPs or FC-CLIPs")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--image", metavar="FILE", help="a photograph")
    which.add_argument("--scene", type=int, metavar="N", help="a test scene of the miniature world, from 0")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="PIXELS", help="shorter sides")
    parser.add_argument(
        "--agreement",
        type=command_line.count,
        metavar="N",
        help="print how well the clusters of N test scenes of the miniature world agree with their segments, from 0 to 1",
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="PNG", help="the picture to write")
    args = parser.parse_args(argv)
    return command_line.run(
        lambda: _run(args.checkpoint, args.image, args.scene, args.sizes, args.agreement, args.output),
        memory_advice="give smaller --sizes",
    )


def _run(
    paths: Sequence[str],
    image: str | None,
    scene: int | None,
    sizes: Sequence[int],
    scenes: int | None,
    output: pathlib.Path,
) -> int:
    if min(sizes) < STRIDE:
        raise ValueError(f"--sizes has {min(sizes)}; give at least {STRIDE} pixels")
    files.check_writable(output.parent, f"--output {output}")
    caching.keep_compiled_programs()
    if image is not None:
        pixels = load_image(image)
    if scene is not None or scenes is not None:
        # The notebook imports this module where the packages that read datasets are not installed.
        from fcclip_jax.evaluation.examples import open_world

        examples = open_world("training")
        if scenes is not None and scenes > len(examples):
            raise ValueError(f"--agreement is {scenes}; the world has {len(examples)} test scenes")
        if scene is not None:
            if not 0 <= scene < len(examples):
                raise ValueError(f"--scene is {scene}; the world has the test scenes 0 to {len(examples) - 1}")
            pixels = examples[scene].image
    rows = []
    for path in paths:
        trunk = open_clip(path).clip.image
        rows.append((path, [(size, cluster(dense_features(trunk, pixels, size))) for size in sizes]))
        for size in sizes if scenes is not None else ():
            chosen = [examples[place] for place in range(scenes)]
            found = [
                agreement(cluster(dense_features(trunk, example.image, size)), example.panoptic.id_map)
                for example in chosen
            ]
            print(f"{path} at {size} pixels: {np.mean(found):.3f}", flush=True)
    with files.replacing(output) as temporary:
        draw(pixels, rows).savefig(temporary, format="png", dpi=120)
    print(f"wrote {output}")
    return command_line.DONE


if __name__ == "__main__":
    sys.exit(main())
