"""The real libraries, each in a process of its own: no network, nothing outside the run's folder, nothing on stdout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PRELUDE = """
import sys
from pathlib import Path

def no_network(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        address = arguments[1] if event != "socket.getaddrinfo" else arguments[0]
        host = address[0] if isinstance(address, tuple) else address
        if host not in ("127.0.0.1", "localhost", "::1") and not str(host).startswith("/"):
            raise AssertionError(f"{event} {host}")

sys.addaudithook(no_network)
from kdpipe.pipeline.training.trackers import Tracked, Trackers

def fail(text):
    raise AssertionError(text)

kind, folder = sys.argv[1], Path(sys.argv[2])
config = {"losses.mode": "hybrid", "optimizer.lr": "0.0001", "run.phases": "x" * 7000}
"""
WRITE = (
    PRELUDE
    + """
for begin, end in ((0, 5), (3, 7)):
    told = Trackers([kind], Tracked(name="a run", folder=folder, config=config, step=begin), fail)
    for step in range(begin + 1, end + 1):
        told.write({"step": step, "loss": begin + 1 / step, "terms": {"ce": {"raw": 2.0}}, "bad": float("nan")})
    told.finish()
"""
)
# What each library itself reads back: the steps and values of "loss".
READ = {
    "tensorboard": """
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
read = EventAccumulator(str(folder / "tensorboard"))
read.Reload()
found = [(event.step, event.tensor_proto.float_val[0]) for event in read.Tensors("loss")]
assert b"hybrid" in read.Tensors("settings/text_summary" if "settings/text_summary" in read.Tags()["tensors"]
                                 else "settings")[0].tensor_proto.string_val[0]
""",
    "wandb": """
import json
from wandb.proto import wandb_internal_pb2

def records(data):
    # LevelDB's log: behind a header of 7 bytes, each record has a checksum (4), a length (2) and a type (1: whole).
    place = 7
    while place < len(data):
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        assert kind == 1 and len(data) < 1 << 15
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[place + 7 : place + 7 + length])
        yield record
        place += 7 + length

found, ids = [], set()
for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
    for record in records(file.read_bytes()):
        if record.run.run_id:
            ids.add(record.run.run_id)
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        if "loss" in items:
            found.append((json.loads(items["_step"]), json.loads(items["loss"])))
assert len(ids) == 1, ids
""",
    "mlflow": """
import os
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
from mlflow.tracking import MlflowClient
client = MlflowClient((folder / "mlruns").as_uri())
(run,) = client.search_runs([client.get_experiment_by_name("kdpipe").experiment_id])
assert run.info.run_name == "a run" and run.info.status == "FINISHED"
assert run.data.params["losses.mode"] == "hybrid"
found = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "loss")]
""",
    "trackio": """
import os
os.environ["TRACKIO_DIR"] = str(folder / "trackio")
from trackio.sqlite_storage import SQLiteStorage
assert SQLiteStorage.get_runs("kdpipe") == ["a run"]
found = [(one["step"], one["loss"]) for one in SQLiteStorage.get_logs("kdpipe", "a run")]
""",
}
TWICE = (
    PRELUDE
    + """
Trackers([kind], Tracked(name="a", folder=folder / "one", config={}), fail).finish()
import os
del os.environ["TRACKIO_DIR"]
Trackers([kind], Tracked(name="a", folder=folder / "two", config={}), fail)
"""
)


def child(program: str, kind: str, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    named = ("WANDB_", "MLFLOW_", "TRACKIO_", "HF_", "XDG_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(named)}
    command = [sys.executable, "-W", "error", "-c", program, kind, str(folder)]
    return subprocess.run(
        command, env=environment | {"HOME": str(home)}, cwd=home, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", sorted(READ))
def test_a_run_is_followed_and_gone_on_with_below_its_folder(kind: str, tmp_path: Path) -> None:
    folder, home = tmp_path / "run", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    wrote = child(WRITE, kind, folder, home)
    assert wrote.returncode == 0, wrote.stderr
    assert wrote.stdout == ""
    assert [path for path in home.rglob("*") if path.is_file()] == []
    read = child(PRELUDE + READ[kind] + "\nimport json\nprint(json.dumps(found))\n", kind, folder, home)
    assert read.returncode == 0, read.stderr
    found = sorted(json.loads(read.stdout.splitlines()[-1]))
    first, second = [(step, 1 / step) for step in range(1, 6)], [(step, 3 + 1 / step) for step in range(4, 8)]
    # TensorBoard hides what was undone; the others keep both courses.
    expected = sorted(first[:3] + second if kind == "tensorboard" else first + second)
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected])


def test_trackio_says_that_one_process_has_one_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("home", "one", "two"):
        (tmp_path / name).mkdir()
    answer = child(TWICE, "trackio", tmp_path, home)
    assert answer.returncode == 1
    assert f"trackio writes to {tmp_path}/one/trackio in this process, and {tmp_path}/two/trackio" in answer.stderr
