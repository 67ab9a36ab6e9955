"""Clusters of dense features."""

import re

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.evaluation.clusters import agreement, cluster, main
from tests.inference.test_segmenter import make_photo


def test_directions_are_clustered_and_the_largest_is_first():
    """Lengths do not matter; 14, 7 and 3 positions have three directions."""
    directions = np.repeat([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], (7, 14, 3), axis=0)
    rng = np.random.default_rng(0)
    features = (directions + 0.01 * rng.normal(size=(24, 3))) * rng.uniform(0.1, 10, (24, 1))
    expected = np.repeat([1, 0, 2], (7, 14, 3))
    np.testing.assert_array_equal(cluster(features.reshape(4, 6, 3), 3), expected.reshape(4, 6))


def test_fewer_positions_than_clusters():
    assert sorted(cluster(np.eye(2)[None]).ravel().tolist()) == [0, 1]


def test_agreement_by_hand():
    clusters = np.array([[0, 1]])
    assert agreement(clusters, np.array([[7, 7, 3, 3]] * 2)) == pytest.approx(1)
    assert agreement(clusters, np.array([[7] * 4, [3] * 4])) == pytest.approx(0)
    assert agreement(np.zeros((1, 1), int), np.zeros((2, 2), int)) == 1
    # A cluster of two pixels in one segment, another of one pixel in each: I = H(segment) - H(1/2) / 2.
    segment = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    expected = 2 * (segment - 0.5 * np.log(2)) / (segment + np.log(2))
    assert agreement(clusters, np.array([[1, 1, 1, 2]])) == pytest.approx(expected)


def test_the_picture_and_what_is_refused(tmp_path, capsys):
    Image.fromarray(make_photo((60, 90))).save(tmp_path / "photo.png")
    photo, output = str(tmp_path / "photo.png"), tmp_path / "out.png"
    assert main(["--checkpoint", "random", "--image", photo, "--sizes", "64", "--output", str(output)]) == 0
    assert not capsys.readouterr().out.startswith("random at")
    assert (
        main(["--checkpoint", "random", "--scene", "0", "--sizes", "64", "--agreement", "2", "--output", str(output)])
        == 0
    )
    assert re.match(r"random at 64 pixels: 0\.\d{3}\n", capsys.readouterr().out)
    assert main(["--checkpoint", "random", "--scene", "0", "--agreement", "1001", "--output", str(output)]) == 2
    assert "the world has 1000 test scenes" in capsys.readouterr().err
    with Image.open(output) as picture:
        assert picture.size[0] > 200
    assert main(["--checkpoint", "random", "--scene", "1000", "--output", str(output)]) == 2
    assert "the world has the test scenes 0 to 999" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--checkpoint", "random", "--output", str(output)])
    assert stop.value.code == 2
