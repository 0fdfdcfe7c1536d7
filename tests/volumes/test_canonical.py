"""The canonical voxel order, against nibabel's."""

import nibabel as nib
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.geometry import Box
from volseg.volumes.canonical import Orientation, canonical, in_order_of
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Space

SHAPE = (5, 6, 7)
ARRAY = np.arange(210, dtype=np.int16).reshape(SHAPE)


@st.composite
def affines(draw):
    """Any order and direction of the axes, turned by up to about 20 degrees."""
    order = draw(st.permutations(range(3)))
    matrix = np.zeros((3, 3))
    for axis, world in enumerate(order):
        matrix[world, axis] = draw(st.sampled_from([-1, 1])) * draw(st.sampled_from([0.5, 1.0, 3.0]))
    for a, b in ((0, 1), (1, 2)):
        angle = draw(st.floats(-0.35, 0.35))
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = draw(st.tuples(*[st.integers(-100, 100)] * 3))
    return affine


@st.composite
def boxes(draw, shape):
    ends = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))


@settings(deadline=None, max_examples=150)
@given(affines(), st.data())
def test_agrees_with_nibabel_and_inverts(affine, data):
    space = Space(SHAPE, affine)
    orientation = Orientation.of(space)
    theirs = nib.as_closest_canonical(nib.Nifti1Image(ARRAY.T, affine))
    ours = orientation.to_canonical(ARRAY)
    np.testing.assert_array_equal(ours, np.asarray(theirs.dataobj).T)
    turned = orientation.canonical_space(space)
    np.testing.assert_allclose(turned.affine, theirs.affine, atol=1e-9)
    assert turned.shape == ours.shape == orientation.canonical_shape
    assert Orientation.of(turned).is_canonical
    np.testing.assert_array_equal(orientation.from_canonical(ours), ARRAY)
    box = data.draw(boxes(SHAPE))
    there = orientation.box_to_canonical(box)
    assert orientation.box_from_canonical(there) == box
    np.testing.assert_array_equal(ours[there.slices], orientation.to_canonical(ARRAY[box.slices]))


@settings(deadline=None, max_examples=20)
@given(affines())
def test_channels_stay_in_front(affine):
    orientation = Orientation.of(Space(SHAPE, affine))
    both = np.stack([ARRAY, -ARRAY])
    turned = orientation.to_canonical(both)
    np.testing.assert_array_equal(turned[1], orientation.to_canonical(-ARRAY))
    np.testing.assert_array_equal(orientation.from_canonical(turned), both)


@settings(deadline=None, max_examples=25)
@given(affines(), affines(), st.data())
def test_views_read_the_same_voxels(tmp_path_factory, affine, other, data):
    path = tmp_path_factory.mktemp("canonical") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(ARRAY.T, affine), path)
    volume = open_volume(path)
    orientation = Orientation.of(volume.space)
    view = canonical(volume)
    whole = orientation.to_canonical(ARRAY)
    box = data.draw(boxes(view.shape))
    np.testing.assert_array_equal(view.read(box), whole[box.slices])
    seen = np.full(view.shape, -1, np.int16)
    for part, array in view.slabs(2):
        assert (seen[part.slices] == -1).all()
        seen[part.slices] = array
    np.testing.assert_array_equal(seen, whole)
    np.testing.assert_allclose(view.space.affine, orientation.canonical_space(volume.space).affine)

    target = Orientation.of(Space(SHAPE, other))
    ordered = in_order_of(volume, Space(SHAPE, other))
    np.testing.assert_array_equal(target.to_canonical(ordered.read(Box.whole(ordered.shape))), whole)
    again = Orientation.of(ordered.space)
    assert (again.axes, again.flips) == (target.axes, target.flips)


def test_a_canonical_volume_is_its_own_view(tmp_path):
    nib.save(nib.Nifti1Image(ARRAY.T, np.eye(4)), tmp_path / "scan.nii")
    volume = open_volume(tmp_path / "scan.nii")
    assert canonical(volume) is volume
