"Motion over time against oracles: least squares over all frames, noise made by the model, and noisy copies of a joint"

import math

import pytest
import torch
from scipy.stats import binom, chi2

from xvr.conventions import XvrError
from xvr.kinematics import (
    _JOINTS,
    MotionFilter,
    _carried_back,
    _filtered,
    _screw,
    _twist_of,
    frame_from_landmarks,
    helical_axis,
    joint_coordinates,
    save_sequence,
    smooth,
)
from xvr.pose import Pose

RUNS, FRAMES = 300, 16
ACCELERATION = (200.0, 300.0)
WALK = torch.tensor([math.radians(ACCELERATION[0])] * 3 + [ACCELERATION[1]] * 3).double()


def spread_of(turn, shift, depth=1.0, seed=0):
    "A full covariance with deviations of `turn` degrees and `shift` mm, `depth` times that along y"
    mix = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)).double())[0]
    size = torch.tensor([math.radians(turn)] * 3 + [shift, depth * shift, shift]).double()
    mixed = mix @ torch.diag(torch.linspace(0.5, 1.5, 6).double()) @ mix.mT
    return size[:, None] * mixed * size


def random_walks(times, seed=1, parts=8):
    "Poses and velocities (T, RUNS, ...) of bones whose velocity is a random walk"
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(RUNS, 6, generator=g).double()
    velocity = draw() * torch.tensor([1.0, 1, 1, 100, 100, 100])
    matrix = _screw(draw() * torch.tensor([0.5, 0.5, 0.5, 50, 50, 50]))
    matrices, velocities = [matrix], [velocity]
    for step in times.diff().tolist():
        for _ in range(parts):
            half = math.sqrt(step / parts / 2) * WALK
            velocity = velocity + half * draw()
            matrix = _screw(velocity * step / parts) @ matrix
            velocity = velocity + half * draw()
        matrices.append(matrix)
        velocities.append(velocity)
    return torch.stack(matrices), torch.stack(velocities)


@pytest.fixture(scope="module")
def simulated():
    "Truth, covariances and the filter's and the smoother's states of many noisy bones at uneven times, with a gap"
    times = torch.cumsum(torch.tensor([0.0] + [0.02, 0.05, 0.03] * 5), 0).double()
    matrices, velocities = random_walks(times)
    noise = spread_of(0.3, 0.3, depth=4.0)
    g, root = torch.Generator().manual_seed(2), torch.linalg.cholesky(noise)
    seen = _screw(torch.randn(FRAMES, RUNS, 6, generator=g).double() @ root.mT) @ matrices
    seen[8:11] = torch.nan
    spreads = noise.expand(FRAMES, 1, 6, 6)
    after, before, _ = _filtered(seen, spreads, times.tolist(), ACCELERATION)
    return matrices, velocities, after, before, _carried_back(after, before, times.tolist())


def inside(error, covariance):
    "Asserts that 95% ellipsoids hold the truth in as many runs as they say"
    n = error.shape[-1]
    distance = (error * torch.linalg.solve(covariance, error)).sum(-1)
    held = int((distance < chi2.ppf(0.95, n)).sum())
    low, high = binom.interval(0.999, len(error), 0.95)
    assert low <= held <= high, f"{held} of {len(error)}, expected {low:.0f} to {high:.0f}"
    low, high = chi2.interval(0.999, n * len(error))
    assert low <= distance.sum() <= high


@pytest.mark.parametrize("frame", [3, 7, 9, 10, 11, 15])
@pytest.mark.parametrize("which", ["filter", "prediction", "smoother"])
def test_uncertainty_is_what_it_says(simulated, which, frame):
    "The normalised error squared of pose and velocity is chi-squared, also in the gap (frames 8 to 10) and after it"
    matrices, velocities, after, before, smoothed = simulated
    state = dict(filter=after, prediction=before, smoother=smoothed)[which][frame]
    error = torch.cat(
        [_twist_of(matrices[frame] @ torch.linalg.inv(state.matrix)), velocities[frame] - state.velocity], -1
    )
    inside(error, state.covariance)
    inside(error[:, :6], state.covariance[:, :6, :6])


def test_smoother_is_surer_and_nearer(simulated):
    matrices, _, after, _, smoothed = simulated
    error = lambda states: torch.stack([_twist_of(m @ torch.linalg.inv(s.matrix)) for m, s in zip(matrices, states)])
    rms = lambda states: error(states)[1:-1].square().mean((0, 1)).sqrt()
    assert (rms(smoothed) < 0.9 * rms(after)).all()


def test_shifts_are_the_least_squares_solution():
    "Without turns the model is linear: one dense problem over all frames, uneven times, a gap and first velocities"
    g, n = torch.Generator().manual_seed(3), 12
    times = torch.cumsum(0.02 + 0.03 * torch.rand(n, generator=g).double(), 0)
    place = torch.cumsum(3 * torch.randn(n, 3, generator=g).double(), 0)
    seen = torch.ones(n, dtype=torch.bool)
    seen[[4, 5, 9]] = False
    block = spread_of(1.0, 0.7, seed=4)[3:, 3:]
    covariances = torch.block_diag(1e-16 * torch.eye(3).double(), block).expand(n, 6, 6)
    matrices = torch.eye(4).double().repeat(n, 1, 1)
    matrices[:, :3, 3] = place
    matrices[~seen] = torch.nan
    found = smooth(Pose(matrices), covariances, times, acceleration=(0.0, 250.0), fill=True)
    information, right = torch.zeros(6 * n, 6 * n).double(), torch.zeros(6 * n).double()

    def weigh(rows, value, covariance):
        inverse = torch.linalg.inv(covariance)
        information.add_(rows.mT @ inverse @ rows)
        right.add_(rows.mT @ inverse @ value)

    every, eye = torch.eye(6 * n).double().view(n, 6, 6 * n), torch.eye(3).double()
    for k in range(n):
        if seen[k]:
            weigh(every[k, :3], place[k], block)
    weigh(every[0, 3:], torch.zeros(3).double(), 1000.0**2 * eye)
    for k, t in enumerate(times.diff().tolist()):
        walk = 250.0**2 * torch.tensor([[t**3 / 3, t**2 / 2], [t**2 / 2, t]]).double()
        onward = torch.kron(torch.tensor([[1, t], [0, 1]]).double(), eye)
        weigh(every[k + 1] - onward @ every[k], torch.zeros(6).double(), torch.kron(walk, eye))
    covariance = torch.linalg.inv(information)
    solution = (covariance @ right).view(n, 6)
    blocks = torch.stack([covariance[6 * k : 6 * k + 6, 6 * k : 6 * k + 6] for k in range(n)])
    assert torch.allclose(found.poses.translation, solution[:, :3], atol=1e-6)
    assert torch.allclose(found.velocities[:, 3:], solution[:, 3:], atol=1e-5)
    assert torch.allclose(found.covariances[:, 3:, 3:], blocks[:, :3, :3], rtol=1e-5, atol=1e-8)
    assert torch.allclose(found.velocity_covariances[:, 3:, 3:], blocks[:, 3:, 3:], rtol=1e-5, atol=1e-5)
    assert found.poses.rotation.allclose(torch.eye(3).double(), atol=1e-9)


def test_constant_velocity_is_found_in_closed_form():
    "Exact poses of a screw, 25° a frame: every frame, the gap and the velocity are the screw's"
    twist = torch.tensor([[0.3, -0.2, 0.25, 10, -30, 20]]).double() * 30
    matrices = _screw(torch.arange(9).double()[:, None] / 30 * twist)
    given = matrices.clone()
    given[[0, 4, 5, 8]] = torch.nan
    small = (1e-10 * torch.eye(6).double()).expand(9, 6, 6)
    found = smooth(Pose(given), small, torch.arange(9) / 30, acceleration=(0, 0), fill=True)
    assert torch.allclose(found.poses.matrix, matrices, atol=1e-4)
    assert torch.allclose(found.velocities, twist, rtol=1e-5, atol=1e-4)
    assert found.measured.tolist() == [False, True, True, True, False, False, True, True, False]
    marked = smooth(Pose(given), small, torch.arange(9) / 30, acceleration=(0, 0))
    for part in (marked.poses.matrix, marked.covariances, marked.velocities, marked.velocity_covariances):
        assert torch.equal(part.isfinite().flatten(1).all(1), found.measured)


def test_frame_by_frame_is_the_same_filter(simulated):
    "A tracker's calls, one bone at a time, give what the batch gives"
    matrices, _, after, _, _ = simulated
    times = torch.cumsum(torch.tensor([0.0] + [0.02, 0.05, 0.03] * 5), 0).double()
    noise = spread_of(0.3, 0.3, depth=4.0)
    g, root = torch.Generator().manual_seed(2), torch.linalg.cholesky(noise)
    seen = _screw(torch.randn(FRAMES, RUNS, 6, generator=g).double() @ root.mT) @ matrices
    bone = MotionFilter(Pose(seen[0, 7]), noise[None], times[0], acceleration=ACCELERATION)
    for k in range(1, 7):
        bone.predict(times[k])
        bone.update(Pose(seen[k, 7]), noise[None])
    assert torch.allclose(bone.pose.matrix[0], after[6].matrix[7], atol=1e-9)
    assert torch.allclose(bone.state.covariance[0], after[6].covariance[7], atol=1e-9)


def test_surprise_is_chi_squared():
    times = torch.arange(8).double() / 25
    matrices, _ = random_walks(times, seed=5)
    noise = spread_of(0.4, 0.5)
    g, root = torch.Generator().manual_seed(6), torch.linalg.cholesky(noise)
    seen = _screw(torch.randn(8, RUNS, 6, generator=g).double() @ root.mT) @ matrices
    bones = MotionFilter(Pose(seen[0]), noise[None], 0.0, acceleration=ACCELERATION)
    for k in range(1, 8):
        bones.predict(times[k])
        surprise = bones.update(Pose(seen[k]), noise[None])
    low, high = chi2.interval(0.999, 6 * RUNS)
    assert low < surprise.sum() < high


def test_acceleration_is_estimated():
    "Over five bones, the median estimate is within 30% of the truth, and each within a factor of two"
    times = torch.arange(24).double() / 30
    matrices, _ = random_walks(times, seed=8)
    noise = spread_of(0.2, 0.2)
    g, root = torch.Generator().manual_seed(9), torch.linalg.cholesky(noise)
    seen = _screw(torch.randn(24, RUNS, 6, generator=g).double() @ root.mT) @ matrices
    found = [smooth(Pose(seen[:, k]), noise.expand(24, 6, 6), times).acceleration for k in range(5)]
    ratio = torch.tensor(found) / torch.tensor(ACCELERATION)
    assert ((ratio.median(0)[0] - 1).abs() < 0.3).all() and (ratio > 0.5).all() and (ratio < 2).all()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("joint", _JOINTS)
def test_deviations_of_a_joint_are_those_of_noisy_copies(joint, side):
    "Two bones with errors that are partly shared, frames away from the origin"
    g, n = torch.Generator().manual_seed(10), 3000
    points = dict(o=(30.0, -20, 50), y=(35.0, -10, 150), z=(80.0, -25, 45))
    proximal = frame_from_landmarks(points, {"Y": ("o", "y"), "Z": ("o", "z")}, "o")
    distal = proximal.perturb(torch.tensor([[0.1, -0.2, 0.15, 4, 2, -3]]).double())
    a, b = (
        Pose(_screw(torch.randn(1, 6, generator=g).double() * torch.tensor([0.4, 0.4, 0.4, 20, 20, 20]))) for _ in "ab"
    )
    mix = torch.randn(12, 12, generator=g).double() * 0.1 + torch.eye(12)
    size = torch.tensor([math.radians(0.1)] * 3 + [0.1] * 3).double().repeat(2)
    both = size[:, None] * (mix @ mix.mT) * size
    noise = torch.randn(n, 12, generator=g).double() @ torch.linalg.cholesky(both).mT
    copies = (
        Pose(a.matrix.expand(n, 4, 4)).perturb(noise[:, :6])
        @ Pose(b.matrix.expand(n, 4, 4)).perturb(noise[:, 6:]).inverse()
    )
    found = joint_coordinates(copies, proximal, distal, joint, side=side)
    said = joint_coordinates(a @ b.inverse(), proximal, distal, joint, side=side, covariances=both[None])
    assert torch.allclose(found.values.std(0), said.deviations[0], rtol=0.08)
    correlation = said.covariances[0] / said.deviations[0].outer(said.deviations[0])
    assert torch.allclose(torch.corrcoef(found.values.T), correlation, atol=0.08)


CLINICAL = [
    # joint, axis and angle of the distal bone's turn in a right joint, coordinate that it is, where the distal end goes
    ("hip", "Z", 20, "flexion", "front"),
    ("hip", "X", 20, "adduction", "middle"),
    ("knee", "Z", -20, "flexion", "back"),
    ("knee", "X", -20, "abduction", "side"),
    ("elbow", "Z", 90, "flexion", "front"),
    ("wrist", "Z", 30, "flexion", "front"),
    ("wrist", "X", 20, "ulnar deviation", "middle"),
    ("shoulder", "X", -70, "elevation", "side"),
    ("scapula", "X", -20, "lateral rotation", "side"),
    ("scapula", "Z", 20, "posterior tilt", "front"),
]
TOWARDS = dict(front=(1, 0, 0), back=(-1, 0, 0), middle=(0, 0, -1), side=(0, 0, 1))


@pytest.mark.parametrize("joint, axis, degrees, name, where", CLINICAL)
def test_positive_senses(joint, axis, degrees, name, where):
    turn = torch.zeros(1, 6).double()
    turn[0, "XYZ".index(axis)] = math.radians(degrees)
    motion, identity = Pose(_screw(turn)), Pose(torch.eye(4).double()[None])
    end = motion(torch.tensor([[[0, -1.0, 0]]]).double())[0, 0]
    assert (end @ torch.tensor(TOWARDS[where]).double()) > 0.3
    found = joint_coordinates(motion, identity, identity, joint)
    value = dict(zip(found.names, found.values[0].tolist()))
    value["abduction"] = -value.get("adduction", 0.0)
    assert value[name] == pytest.approx(abs(degrees))


def test_distraction_is_positive_apart():
    identity = Pose(torch.eye(4).double()[None])
    for joint in ("hip", "knee", "ankle", "elbow", "wrist", "shoulder"):
        apart = Pose(torch.eye(4).double()[None])
        apart.matrix[0, 1, 3] = -5.0  # the distal bone, 5 mm down
        found = joint_coordinates(apart, identity, identity, joint)
        assert dict(zip(found.names, found.values[0].tolist()))["distraction"] == pytest.approx(5.0)


def test_helical_axis_below_the_least_rotation_is_not_defined():
    turns = torch.tensor([0.0, 0.5, 0.99, 1.01, 90.0])
    twists = torch.zeros(5, 6).double()
    twists[:, 2] = torch.deg2rad(turns)
    found = helical_axis(Pose(_screw(twists)))
    assert found.rotation.isfinite().tolist() == [False, False, False, True, True]
    assert torch.allclose(found.rotation[3:], turns[3:].double())
    gap = Pose(torch.full((2, 4, 4), torch.nan).double())
    assert helical_axis(gap).direction.isnan().all() and helical_axis(gap).direction.shape == (2, 3)


@pytest.mark.parametrize("name, match", [("a.h5", "neither"), ("a.mha", "neither"), ("a.seq.mha", "one motion")])
def test_files_that_slicer_reads_otherwise_are_refused(name, match, tmp_path):
    poses = Pose(torch.eye(4).expand(2, 4, 4))
    with pytest.raises(XvrError, match=match):
        save_sequence(tmp_path / name, dict(a=poses, b=poses), [0.0, 0.1])
    assert not list(tmp_path.iterdir())


def test_exact_gimbal_lock_is_flagged_and_does_not_raise():
    "Where angles are not defined, their deviations are not finite or huge, and those of the shifts stand"
    identity, small = Pose(torch.eye(4).double()[None]), (spread_of(0.1, 0.1)[None],) * 2
    found = joint_coordinates(identity, identity, identity, "shoulder", covariances=small)
    assert found.locked.tolist() == [True] and "gimbal lock" in repr(found)
    assert not (found.deviations[0, [0, 2]] < 1e3).any()
    upright = joint_coordinates(identity, identity, identity, "hip", covariances=small)
    assert upright.locked.tolist() == [False] and upright.deviations.isfinite().all()


def test_a_gap_has_no_coordinates():
    poses = torch.eye(4).double().repeat(3, 1, 1)
    poses[1] = torch.nan
    identity, spread = Pose(torch.eye(4).double()[None]), spread_of(0.1, 0.1).expand(3, 6, 6).clone()
    spread[1] = torch.nan
    found = joint_coordinates(Pose(poses), identity, identity, "hip", covariances=(spread, spread))
    assert found.values.isfinite().all(1).tolist() == found.deviations.isfinite().all(1).tolist() == [True, False, True]
    assert found.locked.tolist() == [False] * 3


@pytest.mark.parametrize(
    "step, kept", [(1.0, False), (1.5, False), (1.7, False), (2.0, True), (2.5, True), (33.3, True)]
)
def test_times_that_slicer_merges_are_refused(step, kept, tmp_path):
    "Of 5 frames 1 ms apart, slicer-core 5.13 keeps 3; 1.5 ms apart, 4; 2 ms apart, all"
    poses, times = Pose(torch.eye(4).expand(5, 4, 4)), torch.arange(5).double() * step / 1e3
    if kept:
        assert save_sequence(tmp_path / "a.mrb", dict(a=poses), times).exists()
        return
    with pytest.raises(XvrError, match="2 ms"):
        save_sequence(tmp_path / "a.mrb", dict(a=poses), times)
