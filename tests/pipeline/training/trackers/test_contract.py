"""The contract of trackers, with the real libraries, each in a process of its own."""

from pathlib import Path

import pytest

from kdpipe.pipeline.training.trackers import TRACKERS
from support.trackers import PRELUDE, check_tracker, child

pytestmark = pytest.mark.slow
# A program per tracker that reads back the steps and values of "loss" with the library's own reader.
READERS = {
    "tensorboard": """
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
events = EventAccumulator(str(folder / "tensorboard"))
events.Reload()
points = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors("loss")]
assert b"hybrid" in events.Tensors("settings/text_summary" if "settings/text_summary" in events.Tags()["tensors"]
                                   else "settings")[0].tensor_proto.string_val[0]
""",
    "wandb": """
from wandb.proto import wandb_internal_pb2

def records(data):
    # LevelDB's log: after a header of 7 bytes, each record has a checksum (4), a length (2) and a type (1: whole).
    place = 7
    while place < len(data):
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        assert kind == 1 and len(data) < 1 << 15
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[place + 7 : place + 7 + length])
        yield record
        place += 7 + length

points, ids = [], set()
for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
    for record in records(file.read_bytes()):
        if record.run.run_id:
            ids.add(record.run.run_id)
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        if "loss" in items:
            points.append((json.loads(items["_step"]), json.loads(items["loss"])))
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
points = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")]
""",
    "trackio": """
import os
os.environ["TRACKIO_DIR"] = str(folder / "trackio")
from trackio.sqlite_storage import SQLiteStorage
assert SQLiteStorage.get_runs("kdpipe") == ["a run"]
points = [(line["step"], line["loss"]) for line in SQLiteStorage.get_logs("kdpipe", "a run")]
""",
}
TWO_FOLDERS = (
    PRELUDE
    + """
Trackers([name], TrackedRun(name="a", folder=folder / "one", config={}), Strict()).finish()
import os
del os.environ["TRACKIO_DIR"]
Trackers([name], TrackedRun(name="a", folder=folder / "two", config={}), Strict())
"""
)


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_a_resumed_run_is_one_run_below_its_folder(name: str, tmp_path: Path) -> None:
    check_tracker(name, READERS[name], tmp_path, hides_undone=name == "tensorboard")


def test_trackio_refuses_a_second_folder_in_one_process(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("home", "one", "two"):
        (tmp_path / name).mkdir()
    answer = child(TWO_FOLDERS, "trackio", tmp_path, home)
    assert answer.returncode == 1
    assert f"{tmp_path}/one/trackio" in answer.stderr and f"{tmp_path}/two/trackio" in answer.stderr
