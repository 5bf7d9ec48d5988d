"""The values that guided-diffusion publishes for its own files, where these are.

LDM_JAX_REFERENCE_BATCHES names a folder with VIRTUAL_imagenet256_labeled.npz,
admnet_guided_upsampled_imagenet256.npz and pt_inception-2015-12-05-6726825d.pth.
"""

import json
import os
from pathlib import Path

import pytest

from lDM_jax.tools import evaluate

FOLDER = os.environ.get("LDM_JAX_REFERENCE_BATCHES", "")
# Of its README. The TensorFlow graph and the port of its weights differ in f32: 1e-3.
# IS depends on nothing else; precision and recall were computed from f16 distances.
PUBLISHED = {
    "is": (215.8370361328125, 1e-3),
    "fid": (3.9425574129223264, 1e-3),
    "sfid": (6.140433703346162, 1e-3),
    "precision_adm": (0.8265, 5e-3),
    "recall_adm": (0.5309, 5e-3),
}


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="needs the files of LDM_JAX_REFERENCE_BATCHES")
def test_guided_diffusion_s_published_values(capsys):
    folder = Path(FOLDER)
    arguments = [
        "compare",
        str(folder / "admnet_guided_upsampled_imagenet256.npz"),
        str(folder / "VIRTUAL_imagenet256_labeled.npz"),
        "--bootstrap=0",
        f"--weights=inception={folder / 'pt_inception-2015-12-05-6726825d.pth'}",
    ]
    assert evaluate.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    for name, (value, tolerance) in PUBLISHED.items():
        assert result[name] == pytest.approx(value, rel=tolerance), name
