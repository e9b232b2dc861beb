#!/bin/sh
# SimpleITK 2.5.2: the registration metric SetMetricAsCorrelation, documented as (negative) normalized cross correlation,
# is minus its square. An image and its own negative are therefore a perfect match, and a threshold of 0.5 means 0.71.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q SimpleITK==2.5.2 numpy==2.2.6
"$work/venv/bin/python" - <<'PY'
import numpy as np
import SimpleITK as sitk

random = np.random.default_rng(0)
a = random.standard_normal((20, 20, 20)).astype(np.float32)
b = (0.6 * a + 0.8 * random.standard_normal(a.shape)).astype(np.float32)


def metric(x, y):
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(sitk.Euler3DTransform())
    return method.MetricEvaluate(sitk.GetImageFromArray(x), sitk.GetImageFromArray(y))


r = np.corrcoef(a.ravel(), b.ravel())[0, 1]
print("SimpleITK", sitk.Version_VersionString())
print(f"correlation {r:.4f}; the metric {metric(a, b):.4f}, which is -r^2 = {-r * r:.4f}")
print(f"of an image and its negative: {metric(a, -a):.4f}")
assert abs(metric(a, b) + r * r) < 5e-3 and metric(a, -a) < -0.99, "the behaviour has changed"
PY
