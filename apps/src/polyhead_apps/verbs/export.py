"""The verb `export`: a saved model for use elsewhere."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from polyhead_apps.app import App
from polyhead_apps.config import UsageError
from polyhead_apps.console import Console
from polyhead_apps.opening import TASK_FILE, data_arguments, load_model, open_data, settings_class
from polyhead_apps.options import Given, Target
from polyhead_apps.runs import command_line, find_model
from polyhead_apps.runtime import pick_device, prepare_process

__all__ = ["export"]


def export(
    app: App,
    given: Given,
    console: Console,
    *,
    data: str | None = None,
    task: str | None = None,
    model: str | None = None,
    targets: Sequence[Target] | None = None,
    out: Path | None = None,
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
    as_json: bool = False,
) -> None:
    """Write the model folder (safetensors), a torch.export program (pt2) or ONNX; each is checked before it is written.

    Programs are traced and checked on the CPU in float32, so ``device`` only has to exist.
    """
    from polyhead.models import from_pretrained, read_extra, save_pretrained
    from polyhead_apps.export import ExportError, example_inputs, export_onnx, export_pt2

    wanted = list(dict.fromkeys(targets or (Target.safetensors, Target.pt2)))
    folder, run = find_model(app.name, model)
    loaded = load_model(app, task, folder)
    target = out or (run.folder if run else folder.parent) / "export"
    files = {kind: target / (f"{loaded.name}" if kind == "safetensors" else f"{loaded.name}.{kind}") for kind in wanted}
    taken = [str(file) for file in files.values() if file.exists()]
    if taken and not force:
        raise UsageError(f"{', '.join(taken)} exists: name another --out, or replace it with --force.")
    cls = settings_class(loaded.spec)
    data, base = data_arguments(data, run, cls)
    settings = given.settings(cls, base, f"{folder.parent / 'config.yaml'}")
    pick_device(device)
    prepare_process(settings.seed, threads)
    console.line(f"model: {folder}")

    network = copy.deepcopy(loaded.model).float().eval()
    inputs = {}
    if any(kind != "safetensors" for kind in wanted):
        needs_data = not hasattr(loaded.task, "example_inputs") and data is not None
        inputs = example_inputs(
            network, loaded.task, open_data(loaded.spec, data, settings.data) if needs_data else None
        )
    target.mkdir(parents=True, exist_ok=True)
    report = []
    for kind, file in files.items():
        if kind == "safetensors":
            save_pretrained(loaded.model, file, extra={TASK_FILE: read_extra(folder, TASK_FILE)})
            again = from_pretrained(file).state_dict()
            differing = [name for name, tensor in loaded.model.state_dict().items() if not tensor.equal(again[name])]
            if differing:
                raise ExportError(f"{file} does not hold what the model holds: {', '.join(differing)}.")
            worst = 0.0
        else:
            worst = (export_pt2 if kind == "pt2" else export_onnx)(network, inputs, file)
        report.append({"file": str(file), "format": str(kind), "largest_deviation": worst})
        console.line(f"{kind}: checked, largest deviation from the model {worst:.3g}")

    if as_json:
        console.result(json.dumps({"model": str(folder), "files": report}, indent=2))
    else:
        for entry in report:
            console.result(str(entry["file"]))
    again_command = command_line(app.name, ["predict", "--model", str(run.folder if run else folder)])
    console.line(f"made {target}. Next: {again_command}")
