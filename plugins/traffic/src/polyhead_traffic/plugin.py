"""The manifest of the traffic plugin."""

from __future__ import annotations

from polyhead.manifest import AppSpec, DatasetSpec, ModelSpec, Plugin, TaskSpec
from polyhead.plugins import hookimpl

__all__ = ["polyhead_plugin"]

GMAN = ModelSpec(
    name="gman",
    target="polyhead_traffic.gman:GMAN",
    summary="graph multi-attention network: spatial, temporal and transform attention over a sensor graph",
    paper="Zheng et al. 2020, arXiv:1911.08415",
    presets={
        "tiny": {"depth": 1, "heads": 4, "head_dim": 4},
        "small": {"depth": 1, "heads": 8, "head_dim": 8},
        "paper": {"depth": 3, "heads": 8, "head_dim": 8},
        "groups": {"depth": 1, "heads": 8, "head_dim": 8, "group_size": 9},
    },
)

ROADS = DatasetSpec(
    name="simulated-roads",
    target="polyhead_traffic.formats:open_embedded",
    summary="simulated speeds of a small road network, 28 days at 15 minutes",
    embedded=True,
    source="simulated with UXsim by `traffic-forecast simulate`",
    licence="Apache-2.0",
)

SENSORS = DatasetSpec(
    name="sensors",
    target="polyhead_traffic.formats:open_folder",
    summary="your own sensors, or a public benchmark, from a file or a folder",
    formats=(
        "wide: CSV or Parquet, a column of times and one column a sensor",
        "long: CSV timestamp,sensor_id,value",
        "tgcn: NAME_speed.csv without times, with NAME_adj.csv",
        "h5: pandas HDF5 (METR-LA, PEMS-BAY, LargeST)",
        "npz: NPZ with an array data (PEMS03/04/07/08, STAEformer, LargeST)",
        "basicts: {train,val,test}_data.npy with meta.json, or data.dat with desc.json",
        "mat: MATLAB tensor (transdim)",
        "beside them: edges (from,to,distance), a matrix, or GMAN's Adj; coordinates; GMAN's SE",
    ),
    source="https://github.com/lehaifeng/T-GCN (METR-LA week), https://github.com/liyaguang/DCRNN (METR-LA, PEMS-BAY)",
    licence="that of the files",
)

FORECAST = TaskSpec(
    name="forecast",
    target="polyhead_traffic.task:ForecastTask",
    settings="polyhead_traffic.settings:ForecastSettings",
    summary="forecast every sensor for the next steps from the last ones",
    models=("gman",),
    datasets=("simulated-roads", "sensors"),
)

APP = AppSpec(
    name="traffic-forecast",
    target="polyhead_traffic.app:app",
    summary="forecast speeds or flows of road sensors",
)


@hookimpl
def polyhead_plugin() -> Plugin:
    """Return the manifest."""
    return Plugin(
        name="traffic",
        summary="traffic forecasting on your own sensors",
        models=(GMAN,),
        datasets=(ROADS, SENSORS),
        tasks=(FORECAST,),
        apps=(APP,),
    )
