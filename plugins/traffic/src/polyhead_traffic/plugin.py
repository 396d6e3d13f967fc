"""The manifest of the traffic plugin."""

from __future__ import annotations

from polyhead.manifest import AppSpec, DatasetSpec, ModelSpec, Plugin, RemoteFile, TaskSpec
from polyhead.plugins import hookimpl

__all__ = ["polyhead_plugin"]

USUAL = {"profile": True, "input_mask": True, "input_dropout": 0.8}
"""Ours: start from the usual day, and know and have trained with missing readings."""

GMAN = ModelSpec(
    name="gman",
    target="polyhead_traffic.gman:GMAN",
    summary="graph multi-attention network: spatial, temporal and transform attention over a sensor graph",
    paper="Zheng et al. 2020, arXiv:1911.08415",
    presets={
        "tiny": {"depth": 1, "heads": 4, "head_dim": 4, **USUAL},
        "small": {"depth": 1, "heads": 8, "head_dim": 8, **USUAL},
        "groups": {"depth": 1, "heads": 8, "head_dim": 8, "group_size": 9, **USUAL},
        "paper": {"depth": 3, "heads": 8, "head_dim": 8},
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
        "dcrnn: {train,val,test}.npz with windows x and y (DCRNN, Graph WaveNet)",
        "basicts: {train,val,test}_data.npy with meta.json, or data.dat with desc.json",
        "mat: MATLAB tensor (transdim)",
        "beside them: edges (from,to,distance), a matrix, or GMAN's Adj; coordinates; GMAN's SE",
    ),
    source="https://github.com/lehaifeng/T-GCN (METR-LA week), https://github.com/liyaguang/DCRNN (METR-LA, PEMS-BAY)",
    licence="that of the files",
)

_TGCN = "https://raw.githubusercontent.com/lehaifeng/T-GCN/master/data"
_TRANSDIM = "https://raw.githubusercontent.com/xinychen/transdim/master/datasets"

METR_LA_WEEK = DatasetSpec(
    name="metr-la-week",
    target="polyhead_traffic.formats:open_folder",
    summary="a week of speeds at 207 sensors on Los Angeles highways, 5 minutes (METR-LA)",
    formats=("tgcn: los_speed.csv, los_adj.csv",),
    source="https://github.com/lehaifeng/T-GCN",
    licence="none stated at the address; MIT in its T-GCN-PyTorch",
    files=(
        RemoteFile(
            name="los_speed.csv",
            url=f"{_TGCN}/los_speed.csv",
            sha256="7b732d86ae32b2930595becba28aff39dacbfb2197e250fc0332e1744ce2cbf4",
            bytes=3_402_125,
        ),
        RemoteFile(
            name="los_adj.csv",
            url=f"{_TGCN}/los_adj.csv",
            sha256="7a6eb41e10677992b5af50f5ab187c6c05c5c3a92cb973950cfddbf857361e76",
            bytes=111_686,
        ),
    ),
)

HANGZHOU_METRO = DatasetSpec(
    name="hangzhou-metro",
    target="polyhead_traffic.formats:open_folder",
    summary="25 days of passengers who entered 80 metro stations, 10 minutes, no service at night",
    formats=("mat: tensor.mat, 80 stations x 25 days x 108 slots",),
    source="https://github.com/xinychen/transdim",
    licence="MIT (transdim); that of the original, Zenodo 3145404, was not verified",
    files=(
        RemoteFile(
            name="tensor.mat",
            url=f"{_TRANSDIM}/Hangzhou-data-set/tensor.mat",
            sha256="55891c7e102a8352f3c8022f79bc588ae77a68625a565d79ed8aaadbf8e9202d",
            bytes=282_799,
        ),
    ),
)

FORECAST = TaskSpec(
    name="forecast",
    target="polyhead_traffic.task:ForecastTask",
    settings="polyhead_traffic.settings:ForecastSettings",
    summary="forecast every sensor for the next steps from the last ones",
    models=("gman",),
    datasets=("simulated-roads", "sensors", "metr-la-week", "hangzhou-metro"),
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
        datasets=(ROADS, SENSORS, METR_LA_WEEK, HANGZHOU_METRO),
        tasks=(FORECAST,),
        apps=(APP,),
    )
