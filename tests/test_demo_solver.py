"""The demo's solver alone: no cluster, no shared memory."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsm.demo import photograph, solver


def noise(planes: int, rows: int, columns: int) -> solver.Planes:
    return np.random.default_rng(7).random((planes, rows, columns))


def diffuse_in_bands(picture: solver.Planes, bands: int, iterations: int) -> solver.Planes:
    source, target = picture.copy(), np.full_like(picture, np.nan)
    for _ in range(iterations):
        for index in range(bands):
            solver.step(source, target, *solver.band(picture.shape[1], bands, index))
        source, target = target, source
    return source


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 7, 16, 37, 50])
def test_any_number_of_bands_gives_the_same_bits(bands: int) -> None:
    picture = noise(3, 37, 29)
    assert diffuse_in_bands(picture, bands, 9).tobytes() == solver.diffuse(picture, 9).tobytes()


@given(rows=st.integers(0, 200), bands=st.integers(1, 50))
def test_bands_cover_every_row_once_and_evenly(rows: int, bands: int) -> None:
    cuts = [solver.band(rows, bands, index) for index in range(bands)]
    assert cuts[0][0] == 0
    assert cuts[-1][1] == rows
    assert all(left[1] == right[0] for left, right in pairwise(cuts))
    sizes = [stop - start for start, stop in cuts]
    assert max(sizes) - min(sizes) <= 1


def test_a_step_is_the_formula_of_the_paper() -> None:
    rows, columns = 4, 5
    picture = noise(1, rows, columns)
    result = solver.diffuse(picture, 1)
    for row in range(rows):
        for column in range(columns):
            here = picture[0, row, column]
            flow = 0.0
            for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                if 0 <= row + down < rows and 0 <= column + right < columns:
                    difference = picture[0, row + down, column + right] - here
                    flow += difference / (1 + (difference / solver.EDGE) ** 2)
            assert result[0, row, column] == pytest.approx(here + solver.RATE * flow, rel=1e-12)


def test_a_step_writes_only_its_band_and_never_its_source() -> None:
    picture = noise(3, 12, 8)
    untouched = picture.copy()
    target = np.full_like(picture, -1.0)
    solver.step(picture, target, 5, 9)
    assert np.array_equal(picture, untouched)
    assert (target[:, :5] == -1).all()
    assert (target[:, 9:] == -1).all()
    assert (target[:, 5:9] != -1).all()


def test_a_band_reads_one_row_beyond_itself_and_no_more() -> None:
    picture = noise(1, 12, 8)
    expected = np.empty_like(picture)
    solver.step(picture, expected, 5, 9)
    picture[:, :4] = picture[:, 10:] = np.nan
    result = np.empty_like(picture)
    solver.step(picture, result, 5, 9)
    assert np.array_equal(result[:, 5:9], expected[:, 5:9])


def test_brightness_is_conserved_and_a_flat_picture_stays() -> None:
    picture = noise(3, 40, 30)
    assert solver.diffuse(picture, 50).sum() == pytest.approx(picture.sum(), rel=1e-12)
    flat = np.full((3, 10, 10), 0.25)
    assert np.array_equal(solver.diffuse(flat, 5), flat)


def test_noise_goes_and_the_edge_stays() -> None:
    clean = np.zeros((1, 40, 40))
    clean[:, :, 20:] = 1.0
    noisy = clean + np.random.default_rng(1).normal(0.0, 0.05, clean.shape)
    result = solver.diffuse(noisy, 40)
    assert photograph.psnr(result, clean) > photograph.psnr(noisy, clean) + 6
    assert (result[:, :, 20] - result[:, :, 19]).min() > 0.8


def test_the_photograph_fills_whole_pages_by_rows() -> None:
    clean = photograph.load()
    assert clean.shape == (3, 600, 512)
    assert clean[0, 0].nbytes == 4096
    assert 0 <= clean.min() < 0.1 < 0.9 < clean.max() <= 1


def test_noise_is_the_same_every_time() -> None:
    clean = np.full((3, 20, 20), 0.5)
    one, other = photograph.with_noise(clean), photograph.with_noise(clean)
    assert np.array_equal(one, other)
    assert np.std(one - clean) == pytest.approx(photograph.NOISE, rel=0.1)
