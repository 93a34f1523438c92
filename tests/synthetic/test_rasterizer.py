"""Rasterizer against a plain loop over pixels and triangles."""

import numpy as np

from dreampose.synthetic import rasterizer


def _slow(points, faces, height, width):
    """Index of the nearest triangle of every pixel by the half-plane rule; -1 if none."""
    result = np.full((height, width), -1)
    depth = np.full((height, width), np.inf)
    for index, face in enumerate(faces):
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = points[face].astype(np.float64)
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        for row in range(height):
            for column in range(width):
                x, y = column + 0.5, row + 0.5
                one = ((bx - x) * (cy - y) - (cx - x) * (by - y)) / area
                two = ((cx - x) * (ay - y) - (ax - x) * (cy - y)) / area
                three = 1 - one - two
                far = one * az + two * bz + three * cz
                if min(one, two, three) >= 0 and far < depth[row, column]:
                    result[row, column], depth[row, column] = index, far
    return result


def test_equals_a_plain_loop_over_pixels():
    random = np.random.default_rng(0)
    height, width = 24, 20
    points = random.uniform(-4, 28, (60, 3)).astype(np.float32)
    faces = random.permutation(60).reshape(20, 3)
    found = rasterizer.fragments(points, faces, height, width)
    hits = found.take(rasterizer.nearest(found, height * width))
    seen = np.full(height * width, -1)
    seen[hits.pixel] = hits.face
    assert (seen.reshape(height, width) == _slow(points, faces, height, width)).all()
    place = np.einsum("nk,nkc->nc", hits.bary, points[faces[hits.face]])
    np.testing.assert_allclose(place[:, 0], hits.pixel % width + 0.5, atol=1e-3)
    np.testing.assert_allclose(place[:, 1], hits.pixel // width + 0.5, atol=1e-3)


def test_triangles_outside_the_picture_or_without_area_have_no_fragments():
    points = np.array([[-9, -9, 1], [-5, -9, 1], [-9, -5, 1], [3, 3, 1], [3, 3, 1], [3, 3, 1]])
    found = rasterizer.fragments(points.astype(np.float32), np.arange(6).reshape(2, 3), 8, 8)
    assert len(found.pixel) == 0
    assert len(rasterizer.nearest(found, 64)) == 0
