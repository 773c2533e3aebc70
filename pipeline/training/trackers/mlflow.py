"""MLflow: a file store in OUT/mlruns, or the server at MLFLOW_TRACKING_URI.

In: numbers of steps. Out: OUT/mlruns, for `MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri OUT/mlruns`. Only
the client is used: the active run of the process is left alone.
"""

import os
import shlex
import time
from collections.abc import Mapping
from typing import final

from kdpipe.pipeline.training.trackers import PROJECT, TrackedRun, stored_id

# Limits of the server (mlflow/utils/validation.py).
MAX_PARAMS, MAX_VALUE = 100, 6000


@final
class Mlflow:
    """One run, which keeps its id when it is resumed."""

    def __init__(self, run: TrackedRun) -> None:
        # Databases need more than mlflow-skinny; no telemetry.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Imported here because it reads the environment at import.
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        folder = (run.folder / "mlruns").resolve()
        self._server, self._folder = os.environ.get("MLFLOW_TRACKING_URI"), run.folder / "mlruns"
        self._client = MlflowClient(self._server or folder.as_uri())
        self._id = stored_id(run, "mlflow", lambda: self._create(run.name))
        params = [Param(name, value[:MAX_VALUE]) for name, value in run.config.items()]
        # Equal parameters may be logged again.
        for begin in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._id, params=params[begin : begin + MAX_PARAMS])

    def _create(self, name: str) -> str:
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(PROJECT)
        return str(self._client.create_run(experiment, run_name=name).info.run_id)

    @property
    def location(self) -> str:
        if self._server:
            return f"view: run {self._id} on {self._server}"
        # `mlflow ui` is not part of mlflow-skinny.
        command = "mlflow ui --backend-store-uri " + shlex.quote(str(self._folder))
        return f"view: MLFLOW_ALLOW_FILE_STORE=true {command} (pip install mlflow)"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[self._metric(name, v, now, step) for name, v in numbers.items()])

    def finish(self) -> None:
        self._client.set_terminated(self._id)
