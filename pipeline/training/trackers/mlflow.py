"""MLflow: a file store in OUT/mlruns, or the server that MLFLOW_TRACKING_URI names.

In: numbers of steps. Out: OUT/mlruns, for `MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri OUT/mlruns`. Its
client alone is used: no run of a process is touched.
"""

import os
import time
from collections.abc import Mapping
from typing import final

from kdpipe.pipeline.training.trackers import PROJECT, TrackedRun, remembered

# A batch of the server's at most (mlflow/utils/validation.py); settings longer than this are cut there too.
MAX_PARAMS, MAX_VALUE = 100, 6000


@final
class Mlflow:
    """One run, under one id however often it is gone on with."""

    def __init__(self, run: TrackedRun) -> None:
        # Databases need more than mlflow-skinny; and nobody is told of a run but who asked.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Here, since it reads the environment when it is imported.
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        folder = (run.folder / "mlruns").resolve()
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", folder.as_uri()))
        self._id = remembered(run, "mlflow", lambda: self._begin(run.name))
        params = [Param(name, value[:MAX_VALUE]) for name, value in run.config.items()]
        # What is known already may be said again, if it is the same.
        for begin in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._id, params=params[begin : begin + MAX_PARAMS])

    def _begin(self, name: str) -> str:
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(PROJECT)
        return str(self._client.create_run(experiment, run_name=name).info.run_id)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep some numbers of a step."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[self._metric(name, v, now, step) for name, v in numbers.items()])

    def finish(self) -> None:
        """Say that the run is over."""
        self._client.set_terminated(self._id)
