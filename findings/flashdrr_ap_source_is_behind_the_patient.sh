#!/bin/sh
# flashdrr 0.6.0: its C-arm in RAS coordinates puts the source of an "AP view" (0, 0 degrees; documented as in front of the
# patient) at negative y, which in RAS is behind the patient: the view is PA. The distance that is documented as source to
# image is laid off from the CT's centre, so it is the distance from source to isocentre. A positive lateral angle
# (documented: source to the patient's right) moves that source to positive x, and in RAS positive x is the right: so only
# this sign is as documented.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.14.1 torchvision==0.29.1 numpy tqdm
"$work/venv/bin/pip" install -q --no-deps flashdrr==0.6.0
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
from flashdrr.rendering import carm_to_camera_params

centre = (10.0, 20.0, 30.0)
front, middle, _ = carm_to_camera_params(1000.0, 0.0, 0.0, centre)
right, _, _ = carm_to_camera_params(1000.0, 0.0, 30.0, centre)
print("flashdrr", version("flashdrr"), "- AP source minus centre, RAS mm:", np.round(front - np.array(centre), 6).tolist())
print("30 degrees lateral:", np.round(right - np.array(centre), 3).tolist(), "looks at", np.asarray(middle).tolist())
assert np.allclose(front - np.array(centre), [0, -1000, 0]), "the behaviour has changed"
assert right[0] - centre[0] > 0, "the behaviour has changed"
PY
