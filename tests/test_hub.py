"Weights by address: downloaded once from a stand-in for the Hugging Face hub, then used without a network."

import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from xvr.models import PoseRegressor, parameter_frame, save_checkpoint
from xvr.pose import Pose

REPO, COMMIT = "somebody/models", "0123456789" * 4
# Each line that is read is a command, whose answer is one line or more, and "."
LOOP = """
import sys
from xvr.cli import main
for line in sys.stdin:
    try:
        main(line.split())
    except SystemExit as end:
        print("code", end.code or 0)
    sys.stderr.flush()
    print(".", flush=True)
"""


class Hub(BaseHTTPRequestHandler):
    "Answers as the hub does for one repository"

    files, asked = {}, []

    def do_HEAD(self):
        type(self).asked.append((self.command, self.path))
        repo, _, rest = self.path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        wrong = None if repo == REPO else "RepoNotFound"
        wrong = wrong or (None if revision in ("main", "v1", COMMIT) else "RevisionNotFound")
        wrong = wrong or (None if name in self.files else "EntryNotFound")
        content = b"" if wrong else self.files[name]
        self.send_response(404 if wrong else 200)
        headers = {"X-Error-Code": wrong} if wrong else {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        for key, value in (headers | {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        return content

    def do_GET(self):
        self.wfile.write(self.do_HEAD())

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    "The server, and what runs commands beside it"
    frame = parameter_frame(Pose.from_euler([[-9.0, -9, -9], [9, 9, 9]], [[-9.0, -820, -9], [9, -780, 9]]))
    network = PoseRegressor("test_resnet", norm_layer="default", height=32, frame=frame)
    config = dict(detector=dict(sdd=1020.0, height=32, delx=12.0, orientation="PA"))
    save_checkpoint(tmp_path / "model.pth", network, config)
    Hub.files, Hub.asked = {"deep/model.pth": (tmp_path / "model.pth").read_bytes()}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = dict(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=str(tmp_path / "home"))

    def run(*lines, **more):
        env = os.environ | place | dict(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_TOKEN="") | more
        done = subprocess.run(
            [sys.executable, "-c", LOOP], input="\n".join(lines), env=env, cwd=Path(__file__).with_name("data"),
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        return done.stdout.split(".\n")[:-1], done.stderr

    yield run, server, tmp_path
    server.shutdown()
    server.server_close()


WRONG = {
    f"hf://{REPO}/none.pth": "no such file",
    "hf://nobody/models/a.pth": "no such repository",
    f"hf://{REPO}@v9/deep/model.pth": "no such revision",
    "hf://model.pth": "expected hf://OWNER/REPO/FILE",
}


def test_weights_by_address(hub):
    "Downloaded once, used again without a network, checked; errors of one line"
    run, server, tmp_path = hub
    address = f"hf://{REPO}/deep/model.pth"
    xray = f"register model xrays/xray_000.dcm -v ct.nii.gz --init_only --device cpu -c {address} -o {tmp_path}/out"
    right = [f"info {address}", xray, f"info hf://{REPO}@v1/deep/model.pth"]
    told, problems = run(*right, *(f"info {path}" for path in WRONG))
    assert "test_resnet" in told[0] and (tmp_path / "out/xray_000/result.json").exists(), problems
    assert [text.splitlines()[-1] for text in told] == 3 * ["code 0"] + 4 * ["code 1"]
    lines = [line for line in problems.splitlines() if line.startswith("xvr: ")]
    assert all(text in line for text, line in zip(WRONG.values(), lines, strict=True)), problems
    fetched = [path for kind, path in Hub.asked if kind == "GET" and REPO in path]
    assert fetched == [f"/{REPO}/resolve/main/deep/model.pth"]

    server.shutdown()
    server.server_close()
    again = f"register model --config {tmp_path}/out/config.yaml -o {tmp_path}/again"
    told, problems = run(f"info {address}", again)
    assert "test_resnet" in told[0] and "code 0" in told[1], problems
    results = [(tmp_path / name / "xray_000/pose.tfm").read_text() for name in ("out", "again")]
    assert results[0] == results[1]

    (blob,) = (path for path in (tmp_path / "home").rglob("blobs/*") if path.stat().st_size > 1000)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    # without this variable it tries for half a minute
    told, problems = run(f"info {address}", f"info hf://{REPO}/other.pth", HF_HUB_OFFLINE="1")
    assert all("code 1" in text for text in told)
    damaged, absent = (line for line in problems.splitlines() if line.startswith("xvr: "))
    assert "damaged in the cache" in damaged and "not in the cache" in absent
